"""A user's own path and a user's own hypernetwork work wherever the library's do."""

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functional_hyper as fh


def product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    y = torch.einsum("bni,boi->bno", x, w)
    return y if b is None else y + b.unsqueeze(1)


seen: list[torch.Size] = []


def watched(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    seen.append(x.shape)
    return product(x, w, b)


MINE = fh.Path("mine", {F.linear: fh.linear(watched)})


def init(generator: Any = None, dtype: Any = None, device: Any = None) -> dict[str, Tensor]:
    return {"scale": torch.ones(3, dtype=dtype or torch.float64, device=device).requires_grad_()}


def apply(phi: dict[str, Tensor], cond: Tensor) -> Tensor:
    return (cond * phi["scale"]).sum(-1, keepdim=True) * torch.linspace(-1, 1, 23, dtype=cond.dtype)


@pytest.fixture
def main() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten(0, -2)).double()[:3]


def own(main: nn.Module) -> fh.Hypernet:
    spec = fh.param_spec(main)
    return fh.Hypernet(spec, init, lambda phi, cond: apply(phi, cond)[..., : spec.size])


def test_a_path_of_ones_own(main: nn.Module):
    hyper = fh.full(fh.param_spec(main), 3)
    phi, cond, x = hyper.init(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    seen.clear()
    got = fh.compose(hyper, main, MINE)(phi, cond, x)
    assert seen == [(5, 1, 2), (5, 1, 4)]
    torch.testing.assert_close(got, fh.compose(hyper, main, "loop")(phi, cond, x))
    many = torch.randn(5, 6, 2).double()
    net = fh.bind(main, hyper.weights(phi, cond), MINE, many=True)
    torch.testing.assert_close(net(many), fh.bind(main, hyper.weights(phi, cond), "loop", many=True)(many))
    assert any(answer == "watched" for _, _, answer in fh.explain(net, many).calls)


def test_a_path_may_decline(main: nn.Module):
    declines = fh.Path("declines", {F.linear: lambda *args, **kwargs: NotImplemented})
    params = {n: torch.randn(3, *p.shape).double() for n, p in main.named_parameters()}
    x = torch.randn(3, 2).double()
    torch.testing.assert_close(fh.evaluate(main, params, x, declines), fh.evaluate(main, params, x, "loop"))


def test_a_hypernetwork_of_ones_own(main: nn.Module):
    hyper = own(main)
    phi, x = hyper.init(), torch.randn(5, 2).double()
    cond = torch.randn(5, 3).double()
    want = fh.compose(hyper, main, "loop")(phi, cond, x)
    for path in [*fh.PATHS, "auto"]:
        if path == "contracted":
            with pytest.raises(fh.HyperError, match="gives factors"):
                fh.compose(hyper, main, path)
            continue
        torch.testing.assert_close(fh.compose(hyper, main, path)(phi, cond, x), want)
    based = fh.with_base(hyper)
    assert set(based.init()) == {"scale", *(f"base.{n}" for n in hyper.spec.names)}
    assert based.apply(based.init(), cond).shape == (5, hyper.spec.size)
    tasks = fh.with_embedding(hyper, 4, embedding_dim=3)
    assert fh.compose(tasks, main)(tasks.init(), torch.arange(4), x[:4]).shape == (4, 2)


def test_a_hypernetwork_of_ones_own_may_give_factors():
    main = nn.Linear(2, 4, bias=False).double()
    spec, head = fh.param_spec(main), torch.randn(3, 4, 2).double()

    def weights(phi: dict[str, Tensor], cond: Tensor) -> Any:
        return {"weight": fh.Generated(cond * phi["scale"], head)}

    hyper = fh.Hypernet(spec, init, lambda phi, cond: (cond * phi["scale"]) @ head.flatten(1), weights)
    phi, cond, x = hyper.init(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    model = fh.compose(hyper, main, "contracted")
    torch.testing.assert_close(model(phi, cond, x), fh.compose(hyper, main, "loop")(phi, cond, x))
    assert fh.explain(model, phi, cond, x).weights[0][1].startswith("contracted")


def test_what_is_plain_pickles(main: nn.Module):
    hyper = fh.with_embedding(fh.with_base(fh.chunked(fh.param_spec(main), 4, num_chunks=2)), 3)
    again = pickle.loads(pickle.dumps(hyper))
    assert again.spec == hyper.spec
    phi, ids = hyper.init(), torch.arange(3)
    torch.testing.assert_close(again.apply(phi, ids), hyper.apply(phi, ids))
