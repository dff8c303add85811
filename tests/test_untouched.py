"""Nothing of the caller's is changed, and no state is kept: after an answer, and after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import EVERY_PATH, hypernet, mlp
from torch import Tensor, nn

import functional_hyper as fh

B, N = 3, 4


def snapshot(main: nn.Module) -> Callable[[], None]:
    """A check that the module is what it was: the same tensors, values, order and mode."""
    own = [(n, p, p.detach().clone(), p.grad) for n, p in main.named_parameters(remove_duplicate=False)]
    buffers = [(n, b, b.clone()) for n, b in main.named_buffers()]
    modes = [(m, m.training, list(m._parameters), list(vars(m))) for m in main.modules()]
    lists = [list(m._flat_weights) for m in main.modules() if isinstance(m, nn.RNNBase)]

    def check() -> None:
        now = list(main.named_parameters(remove_duplicate=False))
        assert [n for n, _ in now] == [n for n, *_ in own]
        for (_, p), (name, before, value, grad) in zip(now, own, strict=True):
            assert p is before, name
            assert torch.equal(p, value), name
            assert p.grad is grad, name
        assert all(
            b is c and torch.equal(b, v) for (_, b), (_, c, v) in zip(main.named_buffers(), buffers, strict=True)
        )
        for module, training, names, attributes in modes:
            assert module.training == training
            assert list(module._parameters) == names
            assert list(vars(module)) == attributes
        for module, before in zip([m for m in main.modules() if isinstance(m, nn.RNNBase)], lists, strict=True):
            assert all(a is b for a, b in zip(module._flat_weights, before, strict=True))

    return check


class Failing(nn.Module):
    """Fails half-way, where the caller says so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)
        self.error: Exception | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.error is not None:
            raise self.error
        return self.b(x)


def tied() -> nn.Module:
    main = mlp(5, 5, 5)
    main[2].weight = main[0].weight
    return main.float()


MAINS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Failing,
    "tied": tied,
    "buffers": lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval(),
    "rnn": lambda: nn.Sequential(nn.RNN(5, 4)),
}


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", ["full", "low rank"])
@pytest.mark.parametrize("name", MAINS)
def test_after_an_answer(name: str, kind: str, path: str) -> None:
    main = MAINS[name]()
    check = snapshot(main)
    hyper = hypernet(kind, fh.param_spec(main))
    phi = hyper.init()
    values = {k: v.detach().clone() for k, v in phi.items()}
    cond, x = torch.randn(B, 2, requires_grad=True), torch.randn(B, N, 5)
    inputs = x.clone()
    try:
        y = fh.compose(hyper, main, path, many=True)(phi, cond, x)
        (y[0] if isinstance(y, tuple) else y).sum().backward()
    except fh.Refused:
        assert name == "rnn"
    check()
    assert torch.equal(x, inputs)
    assert all(torch.equal(phi[k], v) for k, v in values.items())


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", ["full", "low rank"])
@pytest.mark.parametrize(
    "error", [KeyError("own"), RuntimeError("own"), ValueError("own"), fh.HyperError("own"), NotImplementedError("own")]
)
def test_after_an_error_of_the_main_network(error: Exception, kind: str, path: str) -> None:
    main = Failing()
    check = snapshot(main)
    hyper = hypernet(kind, fh.param_spec(main))
    net = fh.compose(hyper, main, path, many=True).bind(hyper.init(), torch.randn(B, 2), torch.randn(B, N, 5))
    x = torch.randn(B, N, 5)
    want = net(x)
    main.error = error
    with pytest.raises(type(error), match="own"):
        net(x)
    main.error = None
    check()
    torch.testing.assert_close(net(x), want)
    torch.testing.assert_close(torch.vmap(main)(x), main(x))  # no level of a transform is left open


@pytest.mark.parametrize("path", EVERY_PATH)
def test_after_a_keyboard_interrupt(path: str) -> None:
    main = Failing()
    check = snapshot(main)
    main.forward = lambda x: (main.a(x), (_ for _ in ()).throw(KeyboardInterrupt))[1]  # type: ignore[assignment,method-assign]
    with pytest.raises(KeyboardInterrupt):
        fh.evaluate(main, {n: torch.zeros(B, *p.shape) for n, p in main.named_parameters()}, torch.zeros(B, 5), path)
    del main.forward
    check()


@pytest.mark.parametrize("path", EVERY_PATH)
def test_the_callers_weights_are_not_changed(path: str) -> None:
    main = mlp(5, 4, 2)
    params = {n: torch.randn(B, *p.shape).double().requires_grad_() for n, p in main.named_parameters()}
    before = {n: (t, t.detach().clone(), t._version) for n, t in params.items()}
    net = fh.bind(main, params, path)
    for _ in range(2):
        net(torch.randn(B, 5).double()).sum().backward()
    assert list(params) == list(before)
    for name, (t, value, version) in before.items():
        assert params[name] is t
        assert torch.equal(t, value)
        assert t._version == version
    assert torch.equal(params["2.bias"].grad, torch.full((B, 2), 2.0))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ randomness


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", ["full", "scaled"])
def test_random_numbers_are_refused_unless_asked_for(kind: str, path: str) -> None:
    main = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5))
    hyper = hypernet(kind, fh.param_spec(main))
    phi, cond, x = hyper.init(), torch.randn(B, 2), torch.randn(B, N, 5)
    check, state = snapshot(main), torch.get_rng_state()
    with pytest.raises(fh.Refused, match="randomness"):
        fh.compose(hyper, main, path, many=True)(phi, cond, x)
    check()
    assert torch.equal(state, torch.get_rng_state())
    main.eval()
    fh.compose(hyper, main, path, many=True)(phi, cond, x)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_every_network_and_input_has_its_own_mask(path: str) -> None:
    main = nn.Sequential(nn.Linear(1, 64, bias=False), nn.Dropout(0.5))
    ones: Any = {"0.weight": torch.ones(8, 64, 1)}
    y = fh.evaluate(main, ones, torch.ones(8, 4, 1), path, many=True, randomness="different")
    assert set(y.unique().tolist()) == {0.0, 2.0}
    masks = y.reshape(32, 64)
    assert len(masks.unique(dim=0)) == 32
    assert 0.4 < (masks > 0).float().mean() < 0.6
    main.eval()
    assert (fh.evaluate(main, ones, torch.ones(8, 4, 1), path, many=True) == 1).all()
