"""Each path under every transform: the same as `loop`, which is the same as the definition.

The README's table of transforms is made of what passed here.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import optree
import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_PATH, Encoder, assert_same, define, hypernet, mlp, random_phi, told
from readme_tables import check, table
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import functional_hyper as fh

B, N, C, D = 3, 4, 2, torch.float64
KINDS = ("full", "chunked by layer", "low rank", "scaled")
COMBINATIONS = [(kind, path) for kind in KINDS for path in EVERY_PATH]

Model = Callable[..., Tensor]

FOUND: dict[tuple[str, str], str] = {}
"""(row, path) -> what the README says of it."""


def found(row: str, path: str, cell: str = "yes") -> None:
    assert FOUND.setdefault((row, path), cell) == cell


class Affine(nn.Module):
    """A layer whose weights no matrix product takes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, dtype=D)), nn.Parameter(torch.zeros(4, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight + self.bias).tanh()


class Squashed(nn.Linear):
    """A layer that computes with its weight before it multiplies."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.tanh(), self.bias)


def setting(kind: str, B: int = B) -> tuple[fh.Hypernet, nn.Module, Any, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    main = nn.Sequential(*mlp(5, 4), Affine(), Squashed(4, 2, dtype=D))
    hyper = hypernet(kind, fh.param_spec(main), C)
    cond, x = torch.randn(B, C, generator=g, dtype=D), torch.randn(B, N, 5, generator=g, dtype=D)
    return hyper, main, random_phi(hyper), cond, x


def loss(model: Model, phi: Any, cond: Tensor, x: Tensor) -> Tensor:
    return model(phi, cond, x).square().sum()


def per_sample(model: Model, phi: Any, cond: Tensor, x: Tensor) -> Any:
    return vmap(grad(partial(loss, model)), (None, 0, 0))(phi, cond[:, None], x[:, None])


def hessian_vector(model: Model, phi: Any, cond: Tensor, x: Tensor) -> Any:
    return jvp(grad(lambda phi: loss(model, phi, cond, x)), (phi,), ({k: v.cos() for k, v in phi.items()},))[1]


def vector_hessian(model: Model, phi: Any, cond: Tensor, x: Tensor) -> Any:
    pull = vjp(grad(lambda phi: loss(model, phi, cond, x)), phi)[1]
    return pull({k: v.cos() for k, v in phi.items()})[0]


def tangents(model: Model, phi: Any, cond: Tensor, x: Tensor) -> Any:
    return jvp(model, (phi, cond, x), ({k: v.sin() for k, v in phi.items()}, cond.cos(), x.sin()))


def bound_inside(model: Any, phi: Any, cond: Tensor, x: Tensor) -> Any:
    if isinstance(model, fh.Model):
        return grad(lambda phi, x: model.bind(phi, cond, x)(x).square().sum(), (0, 1))(phi, x)
    return grad(lambda phi, x: loss(model, phi, cond, x), (0, 1))(phi, x)


def bound_outside(model: Any, phi: Any, cond: Tensor, x: Tensor) -> Any:
    net = model.bind(phi, cond, x) if isinstance(model, fh.Model) else partial(model, phi, cond)
    net(x)
    return [
        grad(lambda x: net(x).square().sum())(x),
        vmap(net)(torch.stack([x, 2 * x])),
        jvp(net, (x,), (x.cos(),))[1],
        vmap(jacrev(net))(torch.stack([x, 2 * x])),
        net(x),
    ]


def trained(phi: Any) -> dict[str, Tensor]:
    return {k: v.detach().requires_grad_() for k, v in phi.items()}


def double_backward(model: Model, phi: Any, cond: Tensor, x: Tensor) -> Any:
    leaves = trained(phi)
    first = torch.autograd.grad(loss(model, leaves, cond, x), list(leaves.values()), create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))  # type: ignore[arg-type]


def checkpointed(model: Model, phi: Any, cond: Tensor, x: Tensor) -> Any:
    leaves = trained(phi)
    y = checkpoint(model, leaves, cond, x, use_reentrant=False)
    return y, torch.autograd.grad(y.square().sum(), list(leaves.values()))  # type: ignore[union-attr]


TRANSFORMS: dict[str, Callable[[Model, Any, Tensor, Tensor], Any]] = {
    "`grad`": lambda m, phi, c, x: grad(partial(loss, m), (0, 1, 2))(phi, c, x),
    "`vmap(grad)`: per-sample gradients": per_sample,
    "`vmap` over all": lambda m, phi, c, x: vmap(m, (None, 0, 0))(phi, torch.stack([c, -c]), torch.stack([x, 2 * x])),
    "`vmap` over x": lambda m, phi, c, x: vmap(m, (None, None, 0))(phi, c, torch.stack([x, 2 * x])),
    "`vmap` over cond": lambda m, phi, c, x: vmap(m, (None, 1, None))(phi, torch.stack([c, -c], 1), x),
    "`vmap` over phi": lambda m, phi, c, x: vmap(m, (0, None, None))(
        {k: torch.stack([v, 2 * v]) for k, v in phi.items()}, c, x
    ),
    "`vmap` of `vmap`": lambda m, phi, c, x: vmap(vmap(m, (None, 0, None)), (None, None, 0))(
        phi, torch.stack([c, -c]), torch.stack([x, 2 * x])
    ),
    "`jacrev`": lambda m, phi, c, x: jacrev(m, (1, 2))(phi, c, x),
    "`jacfwd`": lambda m, phi, c, x: jacfwd(m, (1, 2))(phi, c, x),
    "`jvp`": tangents,
    "`hessian`": lambda m, phi, c, x: hessian(lambda c: loss(m, phi, c, x))(c),
    "Hessian-vector product, forward over reverse": hessian_vector,
    "Hessian-vector product, reverse over reverse": vector_hessian,
    "bound inside a transform": bound_inside,
    "bound outside, called inside": bound_outside,
    "double backward, `create_graph=True`": double_backward,
    "activation checkpointing around it": checkpointed,
}


def flat(tree: Any) -> dict[str, Tensor]:
    return {f"y{i}": t for i, t in enumerate(optree.tree_leaves(tree))}


@pytest.mark.parametrize(("kind", "path"), COMBINATIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, kind: str, path: str) -> None:
    hyper, main, *args = setting(kind)
    got = TRANSFORMS[transform](fh.compose(hyper, main, path, many=True), *args)
    assert_same(flat(got), flat(TRANSFORMS[transform](partial(define, hyper, main, many=True), *args)))
    found(transform, path)


# ------------------------------------------------------------------------------------------------ autograd


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_first(mode: Any, path: str) -> None:
    hyper, main, phi, cond, x = setting("full")
    for v in phi.values():
        v.requires_grad_()
    model = fh.compose(hyper, main, path, many=True)
    net = model.bind(phi, cond, x)
    with mode():
        value = model(phi, cond, x)
        assert not value.requires_grad
        assert_same({"y": net(x)}, {"y": value})
    got = torch.autograd.grad([net(x).square().sum(), model(phi, cond, x).square().sum()], list(phi.values()))
    want = torch.autograd.grad(2 * define(hyper, main, phi, cond, x, many=True).square().sum(), list(phi.values()))
    assert_same(flat(got), flat(want))
    found("`torch.no_grad`, `torch.inference_mode`", path)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_bound_without_gradients_is_never_silently_constant(path: str) -> None:
    hyper, main, phi, cond, x = setting("full")
    params = {n: t.detach().requires_grad_() for n, t in fh.unravel(hyper.spec, hyper.apply(phi, cond)).items()}
    x.requires_grad_()  # so that a backward pass without the weights is no error by itself
    with torch.no_grad():
        net = fh.bind(main, params, path, many=True)
    try:
        net(x).sum().backward()
    except fh.HyperError:
        return
    for name, t in params.items():
        assert t.grad is not None, name
        assert t.grad.abs().sum() > 0, name


# ------------------------------------------------------------------------------------------------ compile


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize(("kind", "path"), COMBINATIONS)
def test_compiles_to_one_graph_and_stays(kind: str, path: str) -> None:
    hyper, main, phi, cond, x = setting(kind)
    model = fh.compose(hyper, main, path, many=True)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(phi: Any, cond: Tensor, x: Tensor) -> Tensor:
        return loss(model, phi, cond, x)

    for k in range(3):
        leaves = {n: (v + 0.1 * k).requires_grad_() for n, v in phi.items()}
        inputs = (leaves, cond + k, x * (k + 1))
        got = torch.autograd.grad(step(*inputs), list(leaves.values()))
        want = torch.autograd.grad(loss(partial(define, hyper, main, many=True), *inputs), list(leaves.values()))
        assert_same(flat(got), flat(want))
    assert counter.frame_count == 1
    found("`torch.compile(fullgraph=True)`", path)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("path", EVERY_PATH)
def test_per_sample_gradients_compile(path: str) -> None:
    hyper, main, phi, cond, x = setting("full")
    model = fh.compose(hyper, main, path, many=True)
    compiled = torch.compile(partial(per_sample, model), fullgraph=True, backend="aot_eager")
    want = per_sample(partial(define, hyper, main, many=True), phi, cond, x)
    assert_same(flat(compiled(phi, cond, x)), flat(want))
    found("`torch.compile` of its per-sample gradients", path)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize(("kind", "path"), [c for c in COMBINATIONS if "full" in c or "auto" in c])
def test_compiles_for_batches_of_other_sizes(kind: str, path: str) -> None:
    hyper, main, phi, cond, x = setting(kind)
    model = fh.compose(hyper, main, path, many=True)
    counter = CompileCounterWithBackend("eager")  # what Dynamo makes of the sizes is in question
    step = torch.compile(model, fullgraph=True, backend=counter)
    for B, N in ((2, 3), (3, 3), (4, 5), (6, 2)):
        inputs = cond[:1].expand(B, -1) * torch.arange(1, B + 1)[:, None], x[:1, :1].expand(B, N, -1).clone()
        assert_same({"y": step(phi, *inputs)}, {"y": define(hyper, main, phi, *inputs, many=True)})
    found("`torch.compile(fullgraph=True)`, four batch sizes", path, f"{counter.frame_count} graphs")


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_bound_network_compiles(path: str) -> None:
    hyper, main, phi, cond, x = setting("full")
    net = fh.compose(hyper, main, path, many=True).bind(phi, cond, x)
    want = net(x)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: net(x), fullgraph=True, backend=counter)
    for k in range(1, 4):
        assert_same({"y": compiled(k * x)}, {"y": define(hyper, main, phi, cond, k * x, many=True)})
    assert counter.frame_count == 1
    assert_same({"y": net(x)}, {"y": want})  # and eager calls go on
    found("`torch.compile` of a bound network", path)


EXPORTED = {"`torch.export` (non-strict) of `as_module`": None, "the same, any batch size": torch.export.Dim.AUTO}


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize(("kind", "path"), COMBINATIONS)
@pytest.mark.parametrize("row", EXPORTED)
def test_exports(row: str, kind: str, path: str) -> None:
    hyper, main, phi, cond, x = setting(kind)
    module = fh.as_module(fh.compose(hyper, main, path, many=True), phi)
    sizes = None if EXPORTED[row] is None else ({0: EXPORTED[row]}, {0: EXPORTED[row], 1: EXPORTED[row]}, None)
    program = torch.export.export(module, (cond, x, None), dynamic_shapes=sizes, strict=False).module()
    for k in (1, 2):
        assert_same({"y": program(k * cond, x, None)}, {"y": define(hyper, main, phi, k * cond, x, many=True)})
    if sizes is None:
        return found(row, path)
    many = torch.cat([cond, cond]), torch.cat([x, x])
    if path == "loop":  # whose graph has each network's call
        with pytest.raises(AssertionError, match="Guard failed: cond"):
            program(*many, None)
        return found(row, path, "that B")
    assert_same({"y": program(*many, None)}, {"y": define(hyper, main, phi, *many, many=True)})
    return found(row, path)


# ------------------------------------------------------------------------------------------------ autocast


def image() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(9, 2))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mha = nn.Linear(1, 4), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x.unsqueeze(-1))
        return self.mha(tokens, tokens, tokens)[0].flatten(1)


class Products(nn.Module):
    """What else multiplies, and an einsum that does not sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, 5)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.addmm(self.bias, x, self.weight.T)
        return y, x @ self.weight.T, torch.einsum("ni,oi->no", x, self.weight), torch.einsum("no,o->no", y, self.bias)


LOWERED = {
    "mlp": lambda: nn.Sequential(*mlp(5, 4, dtype=torch.float32), nn.Tanh(), nn.Linear(4, 2)),
    "convolution": image,
    "attention": Attending,
    "products": Products,
}


@pytest.mark.parametrize(("kind", "path"), COMBINATIONS)
@pytest.mark.parametrize("name", LOWERED)
def test_autocast(name: str, kind: str, path: str) -> None:
    main = LOWERED[name]()
    hyper = hypernet(kind, fh.param_spec(main), C)
    cond, x, phi = torch.randn(B, C), torch.randn(B, N, 5), trained(random_phi(hyper))
    weights = fh.unravel(hyper.spec, hyper.apply(phi, cond))
    models = {
        "all of it": (fh.compose(hyper, main, path, many=True), partial(define, hyper, main, many=True)),
        "its call": (
            lambda phi, cond, x: fh.evaluate(main, weights, x, path, many=True),
            lambda phi, cond, x: fh.evaluate(main, weights, x, "loop", many=True),
        ),
    }
    for what, pair in models.items():
        got, want = [], []
        for one, values in zip(pair, (got, want), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                ys = optree.tree_leaves(one(phi, cond, x))
            total = torch.stack([y.float().square().sum() for y in ys]).sum()
            grads = torch.autograd.grad(total, list(phi.values()), retain_graph=True)
            values += [*ys, *grads]
        with told(f"{what}: {name}"):
            # bfloat16 has 8 bits, and a sum of few products in another order loses some
            assert_same(flat(got), flat(want), 16 * torch.finfo(torch.bfloat16).eps)
    found("`torch.autocast` to bfloat16", path)


# ------------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("wrapper", ["plain", "base", "embedding", "encoder"])
def test_copies_and_pickles(wrapper: str, path: str) -> None:
    main = mlp(5, 4, 2)
    plain = fh.full(fh.param_spec(main), C)
    hyper = {
        "plain": plain,
        "base": fh.with_base(plain),
        "embedding": fh.with_embedding(plain, 3),
        "encoder": fh.with_encoder(plain, Encoder(C, D)),
    }[wrapper]
    cond = {"embedding": torch.tensor([0, 2]), "encoder": torch.randn(2, 2, 3, dtype=D)}.get(
        wrapper, torch.randn(2, C, dtype=D)
    )
    x, phi = torch.randn(2, 5, dtype=D), hyper.init()
    model = fh.compose(hyper, main, path)
    want = model(phi, cond, x)
    for duplicate in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        assert torch.equal(fh.compose(duplicate(hyper), main, path)(phi, cond, x), want)
        assert torch.equal(duplicate(model)(phi, cond, x), want)
        assert all(torch.equal(a, b) for a, b in zip(duplicate(hyper).init().values(), phi.values(), strict=True))
        assert duplicate(hyper).spec == hyper.spec
    found("`copy.deepcopy`, `pickle` of hypernetwork, spec and model", path)


# ------------------------------------------------------------------------------------------------ devices, the table


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("kind", "path"), COMBINATIONS)
def test_cuda(kind: str, path: str) -> None:
    hyper, main, *args = setting(kind)
    want = per_sample(partial(define, hyper, main, many=True), *args)
    moved = optree.tree_map(lambda t: t.cuda(), args)  # type: ignore[arg-type]
    got = per_sample(fh.compose(hyper, copy.deepcopy(main).cuda(), path, many=True), *moved)  # type: ignore[misc]
    assert_same(flat(optree.tree_map(Tensor.cpu, got)), flat(want))


@pytest.mark.parametrize("path", [p for p in EVERY_PATH if p != "loop"])
def test_vmaps_slow_fallback_names_the_operation(path: str) -> None:
    main = nn.EmbeddingBag(6, 4)
    params = {"weight": torch.randn(3, 6, 4)}
    with pytest.warns(UserWarning, match="performance drop .*aten::embedding_bag"):
        fh.evaluate(main, params, torch.randint(6, (3, 2)), path)


def test_the_table_of_transforms() -> None:
    rows = list(dict.fromkeys(row for row, _ in FOUND))
    if len(FOUND) < len(rows) * len(EVERY_PATH) or len(rows) < len(TRANSFORMS) + 9:
        pytest.skip("the table is of whole runs")
    check(
        "transforms",
        table([["", *(f"`{p}`" for p in EVERY_PATH)], *([r, *(FOUND[r, p] for p in EVERY_PATH)] for r in rows)]),
    )
