"""What a path cannot evaluate is refused by name, points to `loop`, and leaves the main network as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_PATH, assert_same, define, hypernet, mlp
from test_any_module import Lambda
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import functional_hyper as fh

B, N, D = 3, 4, torch.float64
OTHERS = tuple(path for path in EVERY_PATH if path != "loop")


def of_linear(f: Callable[[Tensor], Any], weight: bool = False) -> Callable[[], nn.Module]:
    """f of a linear layer's outputs, or of its weight."""
    if weight:
        return lambda: Lambda(lambda m, x: F.linear(x, f(m.a.weight)), a=nn.Linear(5, 4))
    return lambda: Lambda(lambda m, x: f(m.a(x)), a=nn.Linear(5, 4))


def assigned(y: Tensor) -> Tensor:
    y[y > 0] = 0.0
    return y


def multiplied(y: Tensor) -> Tensor:
    torch._foreach_mul_([y], 2.0)
    return y


class Average(nn.Module):
    """Keeps a running average of its outputs, in place or as a new tensor."""

    def __init__(self, in_place: bool, counts: bool = False) -> None:
        super().__init__()
        self.linear, self.in_place, self.counts = nn.Linear(5, 4), in_place, counts
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.counts:
            self.seen += 1
        elif self.in_place:
            self.average.mul_(0.9).add_(0.1 * y.detach().mean(0))
        else:
            self.average = 0.9 * self.average + 0.1 * y.detach().mean(0)
        return y - self.average


def functional_batch_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4).eval()
    return Lambda(
        lambda m, x: F.batch_norm(m.a(x), m.b.running_mean, m.b.running_var, training=True), a=nn.Linear(5, 4), b=norm
    )


# name: (the main network, what its refusal says)
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "foreach": (of_linear(lambda y: torch._foreach_add([y], 1.0)[0]), "_foreach_add"),
    "foreach of a weight": (of_linear(lambda w: torch._foreach_mul([w], 2.0)[0], True), "_foreach_mul"),
    "foreach in place": (of_linear(multiplied), "_foreach_mul_"),
    "mask": (of_linear(lambda y: y[y > 99]), "getitem"),
    "mask, assigned": (of_linear(assigned), "setitem"),
    "item": (of_linear(lambda y: y * y.sum().item()), "item"),
    "item of a weight": (of_linear(lambda w: w * w.sum().item(), True), "item"),
    "branch": (of_linear(lambda y: y if y.sum() > 0 else -y), "bool"),
    "unique": (of_linear(lambda y: (y > 99).unique()), "unique"),
    "packed sequence": (
        lambda: Lambda(lambda m, x: m.a(nn.utils.rnn.pack_sequence([x, x[:2]]))[1], a=nn.GRU(5, 3)),
        "(pad_sequence|torch.gru)",
    ),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 4)), r"normalize that changes.*_u;"),
    "old spectral norm": (lambda: nn.utils.spectral_norm(nn.Linear(5, 4)), r"normalize that changes.* weight_v;"),
    "spectral norm of a convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), parametrizations.spectral_norm(nn.Conv1d(1, 2, 3))),
        r"normalize that changes.*_u;",
    ),
    "batch norm, functional": (functional_batch_norm, "batch_norm"),
    "a buffer in place": (lambda: Average(True), "mul_ that changes the buffer average;"),
    "a buffer replaced": (lambda: Average(False), "another average after the call"),
    "a counter": (lambda: Average(True, counts=True), r"add_.* that changes the buffer seen;"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_untouched(name: str) -> None:
    make, says = REFUSED[name]
    main = make().double()
    hyper = hypernet("full", fh.param_spec(main))
    phi, cond, x = hyper.init(), torch.randn(B, 2, dtype=D), torch.randn(B, N, 5, dtype=D)
    before = {k: v.clone() for k, v in main.state_dict().items()}
    for path in OTHERS:
        for x_of_path, shared in ((x, False), (x[0], True)):
            with pytest.raises(fh.Refused, match=rf'`main` expected .*{says}.*path="loop"'):
                fh.compose(hyper, main, path, many=not shared, shared=shared)(phi, cond, x_of_path)
            after = main.state_dict()
            assert all(torch.equal(v, after[k]) for k, v in before.items()), path
    want = define(hyper, main, phi, cond, x, many=True)
    main.load_state_dict(before)
    assert_same({"y": fh.compose(hyper, main, "loop", many=True)(phi, cond, x)}, {"y": want})


@pytest.mark.parametrize("path", EVERY_PATH)
def test_outputs_of_several_shapes_are_an_error(path: str) -> None:
    main = of_linear(lambda y: y[y > 0])()
    hyper = hypernet("full", fh.param_spec(main))
    with pytest.raises(fh.HyperError, match="`main` expected"):
        fh.compose(hyper, main, path, many=True)(hyper.init(), torch.randn(B, 2), torch.randn(B, N, 5))


@pytest.mark.parametrize("path", EVERY_PATH)
def test_what_only_reads_its_buffers_is_right(path: str) -> None:
    main = nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.BatchNorm1d(4), mlp(4, 2)).double().eval()
    hyper = hypernet("full", fh.param_spec(main))
    phi, cond, x = hyper.init(), torch.randn(B, 2, dtype=D), torch.randn(B, N, 5, dtype=D)
    want = define(hyper, main, phi, cond, x, many=True)
    assert_same({"y": fh.compose(hyper, main, path, many=True)(phi, cond, x)}, {"y": want})
