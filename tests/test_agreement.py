"""Every path computes what the definition says, in value and in every gradient, for any hypernetwork and any shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import optree
import pytest
import torch
from cases import (
    EVERY_PATH,
    HAS_BASE,
    KINDS,
    WRAPPERS,
    assert_same,
    conds,
    define,
    definition,
    hypernet,
    mlp,
    model_results,
    random_phi,
    results,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import functional_hyper as fh

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu, in place": partial(nn.ELU, inplace=True),
    "learned": nn.PReLU,
    "none": nn.Identity,
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Problem:
    """Shapes, names and a seed: everything else follows."""

    widths: tuple[int, ...]
    activation: str
    bias: bool
    dtype: str
    kind: str
    wrapper: str
    B: int
    N: int
    form: str
    layout: str
    seed: int

    def main(self) -> nn.Module:
        torch.manual_seed(self.seed)
        dtype = DTYPES[self.dtype]
        return mlp(*self.widths, activation=ACTIVATIONS[self.activation], bias=self.bias).to(dtype)

    def build(self) -> tuple[fh.Hypernet, nn.Module, Any, Tensor, Tensor, dict[str, Any]]:
        """The hypernetwork, the main network, phi, cond, x, and how x comes."""
        main, C = self.main(), 3
        dtype = DTYPES[self.dtype]
        hyper = hypernet(self.kind, fh.param_spec(main), C, self.wrapper)
        rows = {"many": (self.B, self.N), "single": (self.B,), "shared": (self.N,), "grid": (self.B, self.N, 2)}[
            self.form
        ]
        g = torch.Generator().manual_seed(self.seed)
        x = torch.randn(*rows, self.widths[0], generator=g, dtype=dtype)
        if self.layout == "transposed":
            x = x.transpose(0, -1).contiguous().transpose(0, -1)
        if self.layout == "expanded":
            x = x[:1].expand(x.shape) if len(x) else x
        how = {"many": self.form in ("many", "grid"), "shared": self.form == "shared"}
        return hyper, main, random_phi(hyper, self.seed), conds(self.wrapper, self.B, C, dtype, self.seed), x, how


def allowed(problem: Problem) -> bool:
    return not ("base" in problem.wrapper and problem.kind.startswith(HAS_BASE))


problems = st.builds(
    Problem,
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    activation=st.sampled_from(list(ACTIVATIONS)),
    bias=st.booleans(),
    dtype=st.sampled_from(list(DTYPES)),
    kind=st.sampled_from(list(KINDS)),
    wrapper=st.sampled_from(list(WRAPPERS)),
    B=st.integers(0, 3),
    N=st.integers(0, 3),
    form=st.sampled_from(["many", "single", "shared", "grid"]),
    layout=st.sampled_from(["plain", "transposed", "expanded"]),
    seed=st.integers(0, 2**16),
).filter(allowed)


def contractible(path: str, kind: str) -> bool:
    return path != "contracted" or kind != "custom"


@pytest.mark.parametrize("path", EVERY_PATH)
@settings(max_examples=120)
@given(problem=problems)
def test_every_path_is_the_definition(path: str, problem: Problem) -> None:
    if not contractible(path, problem.kind):
        return
    hyper, main, phi, cond, x, how = problem.build()
    got = model_results(hyper, main, path, phi, cond, x, **how)
    assert_same(got, model_results(hyper, main, None, phi, cond, x, **how))


@pytest.mark.parametrize("path", EVERY_PATH)
@settings(max_examples=40)
@given(problem=problems)
def test_plain_weights_and_bound_networks(path: str, problem: Problem) -> None:
    """`evaluate` and `bind` with dense weights and with leaves; a bound network called twice."""
    hyper, main, phi, cond, x, how = problem.build()
    params = {n: t.detach() for n, t in fh.unravel(hyper.spec, hyper.apply(phi, cond)).items()}
    want = results(partial(definition, main, **how), (params, x))
    assert_same(results(lambda params, x: fh.evaluate(main, params, x, path, **how), (params, x)), want)

    def bound(params: Any, x: Tensor) -> Tensor:
        net = fh.bind(main, params, path, **how)
        return (net(x) + net(x)) / 2

    assert_same(results(bound, (params, x)), want)
    leaves = fh.evaluate(main, hyper.weights(phi, cond), x, path, **how)
    assert_same({"y0": leaves}, {"y0": want["y0"]})


@pytest.mark.parametrize("path", EVERY_PATH)
@settings(max_examples=40)
@given(problem=problems, rows=st.integers(0, 5))
def test_index_is_one_network_for_each_row(path: str, problem: Problem, rows: int) -> None:
    if not contractible(path, problem.kind) or (problem.B == 0 and rows):
        return
    hyper, main, phi, cond, _, _ = problem.build()
    g = torch.Generator().manual_seed(problem.seed)
    x = torch.randn(rows, problem.widths[0], generator=g, dtype=DTYPES[problem.dtype])
    index = torch.randint(max(problem.B, 1), (rows,), generator=g)
    model = fh.compose(hyper, main, path)
    got = results(lambda phi, cond, x: model(phi, cond, x, index), (phi, cond, x))
    want = results(lambda phi, cond, x: define(hyper, main, phi, cond[index], x), (phi, cond, x))
    assert_same(got, want)


@settings(max_examples=100)
@given(problem=problems, batch=st.lists(st.integers(0, 2), max_size=2).map(tuple))
def test_weights_mean_what_apply_says(problem: Problem, batch: tuple[int, ...]) -> None:
    if problem.dtype == "float32":
        return
    hyper, _, phi, _, _, _ = problem.build()
    count = int(torch.tensor(batch).prod()) if batch else 1
    cond = conds(problem.wrapper, count, 3, torch.float64, problem.seed)
    cond = cond.reshape((*batch, *cond.shape[1:]))
    theta = hyper.apply(phi, cond)
    assert theta.shape == (*batch, hyper.spec.size)
    dense = fh.unravel(hyper.spec, theta)
    leaves = optree.tree_map(fh.materialize, hyper.weights(phi, cond))
    for name, want in dense.items():
        torch.testing.assert_close(leaves[name], want, rtol=1e-12, atol=1e-14)


@settings(max_examples=60)
@given(problem=problems)
def test_init_is_a_function_of_its_generator(problem: Problem) -> None:
    hyper, _, _, cond, _, _ = problem.build()
    before = torch.get_rng_state()
    draw = lambda seed: hyper.init(torch.Generator().manual_seed(seed))
    a, b, c = draw(1), draw(1), draw(2)
    assert torch.equal(before, torch.get_rng_state())
    assert a.keys() == b.keys() == c.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    assert all(v.requires_grad and v.is_leaf and v.dtype == hyper.spec.dtype for v in a.values())
    other = hyper.init(dtype=torch.float32)
    assert all(v.dtype == torch.float32 for v in other.values())
    raw = cond.float() if cond.is_floating_point() else cond
    assert problem.wrapper.endswith("encoder") or hyper.apply(other, raw).dtype == torch.float32


STRUCTURES = ("full", "chunked by layer", "low rank", "scaled", "custom")


@pytest.mark.parametrize(("kind", "path"), [(k, p) for k in STRUCTURES for p in EVERY_PATH if contractible(p, k)])
def test_first_and_second_derivatives(kind: str, path: str) -> None:
    main = mlp(2, 3, 1)
    hyper = hypernet(kind, fh.param_spec(main))
    phi, cond, x = random_phi(hyper), torch.randn(2, 2).double(), torch.randn(2, 2, 2).double()
    model = fh.compose(hyper, main, path, many=True)
    leaves = tuple(t.requires_grad_() for t in (*phi.values(), cond, x))

    def f(*leaves: Tensor) -> Tensor:
        return model(dict(zip(phi, leaves, strict=False)), *leaves[-2:])

    assert torch.autograd.gradcheck(f, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)
