"""`contracted` never forms a weight of every network, forward or backward; `explain` says what took which form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Encoder, hypernet, random_phi
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import functional_hyper as fh

B, N, I, O, K = 48, 3, 44, 40, 3
WEIGHTS = B * O * I
"""Numbers in the weights of every network; what may be formed in place of them, ``B N K I``, is far smaller."""


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation returns, forward and backward, and which operation it was."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.where = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.numel() > self.largest:
                self.largest, self.where = t.numel(), f"{func} of shape {tuple(t.shape)}"
        return out


@contextmanager
def nothing_large() -> Iterator[None]:
    with Sizes() as sizes:
        yield
    assert sizes.largest < WEIGHTS // 2, sizes.where


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: F.linear(x, w),
    "linear of four dims": lambda x, w: F.linear(x[None, None], w),
    "linear of one dim": lambda x, w: F.linear(x[0], w),
    "t": lambda x, w: x @ w.t(),
    "T": lambda x, w: x @ w.T,
    "mT": lambda x, w: x @ w.mT,
    "transpose": lambda x, w: x @ w.transpose(0, 1),
    "transpose by name": lambda x, w: torch.matmul(x, torch.transpose(w, dim0=-1, dim1=-2)),
    "transposed twice": lambda x, w: F.linear(x, w.t().T),
    "matmul": lambda x, w: torch.matmul(x, w.T),
    "mm": lambda x, w: torch.mm(x, w.T),
    "addmm": lambda x, w: torch.addmm(x.mean(1, keepdim=True), x, w.t()),
    "weight first": lambda x, w: w @ x.T,
    "weight first, a vector": lambda x, w: w @ x[0],
    "einsum": lambda x, w: torch.einsum("ni,oi->no", x, w),
    "einsum, transposed": lambda x, w: torch.einsum("ni,io->on", x, w.T),
    "einsum, weight first": lambda x, w: torch.einsum("oi,ni->no", w, x),
}
KINDS = ("full", "chunked by layer", "low rank", "scaled", "scaled rows", "scaled columns")


def setting(kind: str, O: int, I: int) -> tuple[fh.Hypernet, Any, Tensor]:
    spec = fh.param_spec({"w": torch.zeros(O, I, dtype=torch.float64)})
    hyper = hypernet(kind, spec)
    phi = {k: v.requires_grad_() for k, v in random_phi(hyper).items()}
    return hyper, phi, torch.randn(B, 2, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("O", "I"), [(O, I), (I, O)], ids=["wide", "tall"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_no_weight_is_formed(form: str, kind: str, O: int, I: int) -> None:
    hyper, phi, cond = setting(kind, O, I)
    x = torch.randn(B, N, I, dtype=torch.float64, requires_grad=True)
    model = fh.compose(hyper, lambda p, x: FORMS[form](x, p["w"]), "contracted", many=True)
    with nothing_large():
        model(phi, cond, x).square().sum().backward()
    assert x.grad is not None
    assert cond.grad is not None


@pytest.mark.parametrize(("O", "I"), [(2, 64), (64, 2)], ids=["wide", "tall"])
def test_the_smaller_intermediate_is_formed(O: int, I: int) -> None:
    hyper, phi, cond = setting("full", O, I)
    x = torch.randn(B, N, I, dtype=torch.float64, requires_grad=True)
    width = next(iter(hyper.weights(phi, cond).values())).features.shape[-1]
    with Sizes() as sizes:
        fh.compose(hyper, lambda p, x: F.linear(x, p["w"]), "contracted", many=True)(phi, cond, x).sum().backward()
    assert sizes.largest < B * N * width * 64, sizes.where


def layers() -> nn.Module:
    return nn.Sequential(
        nn.Linear(I, O), nn.ReLU(), nn.LayerNorm(O), nn.Linear(O, I), nn.Tanh(), nn.Linear(I, 2)
    ).double()


WRAPPED: dict[str, tuple[Callable[[fh.ParamSpec], fh.Hypernet], Callable[[], Tensor]]] = {
    "base": (lambda spec: fh.with_base(fh.full(spec, 2, (K - 1,))), lambda: torch.randn(B, 2).double()),
    "embedding": (lambda spec: fh.with_embedding(fh.full(spec, 2, (K - 1,)), 5), lambda: torch.randint(5, (B,))),
    "encoder": (
        lambda spec: fh.with_encoder(fh.full(spec, 2, (K - 1,)), Encoder(2, torch.float64)),
        lambda: torch.randn(B, 2, 3).double(),
    ),
    "all of them": (
        lambda spec: fh.with_encoder(
            fh.with_base(fh.chunked(spec, 2, (K - 1,), by="layer")), Encoder(2, torch.float64)
        ),
        lambda: torch.randn(B, 2, 3).double(),
    ),
}


@pytest.mark.parametrize("form", ["many", "single", "shared", "index", "gradient penalty"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_no_weight_is_formed_in_a_whole_training_step(wrapper: str, form: str) -> None:
    make, conds = WRAPPED[wrapper]
    main = layers()
    hyper = make(fh.param_spec(main))
    phi, cond = hyper.init(), conds()
    rows = {"many": (B, N), "shared": (N,), "gradient penalty": (B,)}.get(form, (B,))
    x = torch.randn(*rows, I, dtype=torch.float64, requires_grad=True)
    index = torch.arange(B - 1, -1, -1) if form == "index" else None
    model = fh.compose(hyper, main, "contracted", many=form == "many", shared=form == "shared")
    with nothing_large():
        loss = model(phi, cond, x, index).square().sum()
        if form == "gradient penalty":
            loss = torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()
        loss.backward()
    assert all(v.grad is not None for v in phi.values())


@pytest.mark.parametrize("path", ["bmm", "vmap"])
def test_the_measurement_finds_a_weight_that_is_formed(path: str) -> None:
    hyper, phi, cond = setting("full", O, I)
    x = torch.randn(B, N, I, dtype=torch.float64)
    with Sizes() as sizes:
        fh.compose(hyper, lambda p, x: F.linear(x, p["w"]), path, many=True)(phi, cond, x).sum().backward()
    assert sizes.largest >= WEIGHTS


# ------------------------------------------------------------------------------------------------ explain


def explained(main: Any, spec: fh.ParamSpec, path: str, x: Tensor, **how: Any) -> Any:
    hyper = fh.full(spec, 2, (4,))
    return fh.explain(fh.compose(hyper, main, path, **how), hyper.init(), torch.zeros(len(x), 2).to(x), x)


def test_explain_tells_each_weights_form() -> None:
    main = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 6))
    told = explained(main, fh.param_spec(main), "contracted", torch.zeros(3, 1, 4, 4))
    forms = {name: (form, why) for name, form, why in told.weights}
    assert list(forms) == list(fh.param_spec(main).names)
    assert forms["0.weight"] == ("dense", "only matrices contract")
    assert forms["2.weight"][0] == "contracted, head first"
    assert forms["4.weight"][0] == "contracted, outer product first"
    assert forms["2.bias"][0] == "dense"
    answers = {call: answer for call, _, answer in told.calls}
    assert answers["torch.nn.functional.linear"] == "contract"
    assert answers["torch.nn.functional.conv2d"] == "vmap"
    text = str(told)
    for part in ('path "contracted"', "0.weight", "only matrices contract", "functional.conv2d", "head first"):
        assert part in text


def test_explain_tells_what_is_materialised() -> None:
    spec = fh.param_spec({"w": torch.zeros(2, 5)})
    told = explained(lambda p, x: F.linear(x, p["w"] * 2), spec, "contracted", torch.zeros(3, 5))
    assert any(call == "materialize" for call, _, _ in told.calls)
    kept = explained(lambda p, x: x @ p["w"].T, spec, "contracted", torch.zeros(3, 5))
    assert not any(call == "materialize" for call, _, _ in kept.calls)


WRITTEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiplied": lambda x, w: F.linear(x, w * 2),
    "transposed first": lambda x, w: x @ (2 * w.T),
    "beside a product": lambda x, w: F.linear(x, w) + w.sum(),
    "vmap over the weight": lambda x, w: torch.func.vmap(lambda row: x @ row)(w).T,
    "gradient of the weight": lambda x, w: x @ torch.func.grad(lambda w: F.linear(x, w).square().sum())(w).T,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_explain_does_not_call_a_weight_contracted_that_was_written_down(name: str) -> None:
    spec = fh.param_spec({"w": torch.zeros(2, 5), "v": torch.zeros(2, 5)})
    told = explained(lambda p, x: WRITTEN[name](x, p["w"]) + x @ p["v"].T, spec, "auto", torch.zeros(3, 5))
    forms = {weight: form for weight, form, _ in told.weights}
    assert forms["w"] == "dense, in each call"
    inside = name in ("vmap over the weight", "gradient of the weight")  # then no placeholder may be near
    assert forms["v"] == ("dense, in each call" if inside else "contracted, head first")
    assert ("matmul" in [answer for _, _, answer in told.calls]) == (not inside)


@pytest.mark.parametrize("path", fh.PATHS)
def test_explain_works_on_every_path(path: str) -> None:
    main = nn.Linear(5, 2)
    told = explained(main, fh.param_spec(main), path, torch.zeros(3, 5))
    assert told.path == path
    assert [name for name, _, _ in told.weights] == ["weight", "bias"]
    assert told.calls
    net = fh.bind(main, {"weight": torch.zeros(3, 2, 5)}, path)
    assert path in str(fh.explain(net, torch.zeros(3, 5)))


def test_auto_contracts_for_few_inputs_and_not_for_many() -> None:
    main = nn.Linear(64, 64)
    spec = fh.param_spec(main)
    few = explained(main, spec, "auto", torch.zeros(3, 64))
    many = explained(main, spec, "auto", torch.zeros(3, 1000, 64), many=True)
    often = explained(main, spec, "auto", torch.zeros(3, 30, 64), many=True, evaluations=1000)
    assert few.weights[0][1].startswith("contracted")
    assert many.weights[0][1].startswith("dense")
    assert often.weights[0][1].startswith("dense")
    for told in (few, many, often):
        assert "N=" in told.weights[0][2]
        assert "K=" in told.weights[0][2]
