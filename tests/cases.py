"""What the tests share: the definition that every path is held to, hypernetworks of every kind, and the comparison."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.func import functional_call

import functional_hyper as fh

EVERY_PATH = (*fh.PATHS, "auto")
"""New paths come in here by themselves."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

# ------------------------------------------------------------------------------------------------ the definition


def call(main: Any, params: Any, args: tuple[Any, ...]) -> Any:
    """The main network with one set of weights, by torch alone."""
    return functional_call(main, params, args) if isinstance(main, nn.Module) else main(params, *args)


def definition(main: Any, params: Any, x: Any, many: bool = False, shared: bool = False) -> Any:
    """``y[b]`` is `main` on the ordinary batch ``x[b]`` with the weights ``params[b]``: one network after the other."""
    args = x if isinstance(x, tuple) else (x,)
    B = optree.tree_leaves(params)[0].shape[0]
    if B == 0:  # no network to ask for the shape of its output: ask one of zeros, and keep none
        one = optree.tree_map(lambda w: torch.cat([w, w.new_zeros(1, *w.shape[1:])]), params)
        rows = tuple(
            torch.cat([a, a.new_zeros(1, *a.shape[1:])]) if isinstance(a, Tensor) and not shared else a for a in args
        )
        return optree.tree_map(lambda y: y[:0], definition(main, one, rows, many, shared))

    def row(a: Any, b: int) -> Any:
        if shared or not isinstance(a, Tensor):
            return a
        return a[b] if many else a[b : b + 1]

    def network(b: int) -> Any:
        return call(main, optree.tree_map(lambda w: w[b], params), tuple(row(a, b) for a in args))

    each = [network(b) for b in range(B)]
    together = optree.tree_map(lambda *ys: torch.stack(ys), *each)
    return together if many or shared else optree.tree_map(lambda y: y.squeeze(1), together)


def define(hyper: fh.Hypernet, main: Any, phi: Any, cond: Any, x: Any, many: bool = False, shared: bool = False) -> Any:
    """The definition, with the weights that a hypernetwork means."""
    return definition(main, fh.unravel(hyper.spec, hyper.apply(phi, cond)), x, many, shared)


# ------------------------------------------------------------------------------------------------ hypernetworks


@dataclass(frozen=True)
class Affine:
    """Somebody's own hypernetwork, as two plain functions."""

    spec: fh.ParamSpec
    width: int

    def init(self, generator: Any = None, dtype: Any = None, device: Any = None) -> dict[str, Tensor]:
        generator = generator or torch.Generator().manual_seed(0)
        dtype = dtype or self.spec.dtype
        map_ = torch.randn(self.width, self.spec.size, generator=generator, dtype=dtype)
        return {"map": map_.requires_grad_(), "shift": torch.zeros(self.spec.size, dtype=dtype).requires_grad_()}

    def apply(self, phi: dict[str, Tensor], cond: Tensor) -> Tensor:
        return cond.tanh() @ phi["map"] + phi["shift"]


def custom(spec: fh.ParamSpec, C: int) -> fh.Hypernet:
    functions = Affine(spec, C)
    return fh.Hypernet(spec, functions.init, functions.apply)


def by_count(spec: fh.ParamSpec, C: int) -> fh.Hypernet:
    return fh.chunked(spec, C, (4,), num_chunks=-(-spec.size // 3))


def frozen_low_rank(spec: fh.ParamSpec, C: int) -> fh.Hypernet:
    base = torch.linspace(-1, 1, spec.size, dtype=spec.dtype)
    return fh.low_rank(spec, C, (4,), rank=1, alpha=3.0, base=base, activation="tanh")


Constructor = Callable[[fh.ParamSpec, int], fh.Hypernet]

KINDS: dict[str, Constructor] = {
    "full": lambda spec, C: fh.full(spec, C, (4,)),
    "full, no trunk": lambda spec, C: fh.full(spec, C, ()),
    "full, deep": lambda spec, C: fh.full(spec, C, (5, 4), activation="tanh", layer_norm=True, init="hyperfan_in"),
    "chunked by size": lambda spec, C: fh.chunked(spec, C, (4,), chunk_size=3),
    "chunked by count": by_count,
    "chunked by layer": lambda spec, C: fh.chunked(spec, C, (4,), by="layer", init="hyperfan_out"),
    "low rank": lambda spec, C: fh.low_rank(spec, C, (4,), rank=2),
    "low rank, frozen base": frozen_low_rank,
    "scaled rows": lambda spec, C: fh.scaled(spec, C, (4,), scale="row"),
    "scaled columns": lambda spec, C: fh.scaled(spec, C, (4,), scale="column"),
    "scaled": lambda spec, C: fh.scaled(spec, C, (4,), scale="both"),
    "custom": custom,
}

HAS_BASE = ("low rank", "scaled")


class Encoder(nn.Module):
    """Maps a raw cond of one row of 2 x 3 numbers to a vector."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(6, width, dtype=dtype)

    def forward(self, raw: Tensor) -> Tensor:
        return self.linear(raw.flatten(-2)).tanh()


def embedded(hyper: fh.Hypernet, C: int) -> fh.Hypernet:
    return fh.with_embedding(hyper, 3, C)


def encoded(hyper: fh.Hypernet, C: int) -> fh.Hypernet:
    return fh.with_encoder(hyper, Encoder(C, hyper.spec.dtype))


WRAPPERS: dict[str, Callable[[fh.Hypernet, int], fh.Hypernet]] = {
    "plain": lambda hyper, C: hyper,
    "base": lambda hyper, C: fh.with_base(hyper),
    "embedding": embedded,
    "encoder": encoded,
    "base of embedding": lambda hyper, C: fh.with_base(embedded(hyper, C)),
    "embedding of base": lambda hyper, C: embedded(fh.with_base(hyper), C),
    "base of encoder": lambda hyper, C: fh.with_base(encoded(hyper, C)),
}


def hypernet(kind: str, spec: fh.ParamSpec, C: int = 2, wrapper: str = "plain") -> fh.Hypernet:
    return WRAPPERS[wrapper](KINDS[kind](spec, C), C)


def conds(wrapper: str, B: int, C: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """B conds of the kind that a wrapper reads."""
    g = torch.Generator().manual_seed(seed + 1)
    if "embedding" in wrapper:
        return torch.randint(3, (B,), generator=g)
    shape = (B, 2, 3) if "encoder" in wrapper else (B, C)
    return torch.randn(shape, generator=g, dtype=dtype)


def random_phi(hyper: fh.Hypernet, seed: int = 0) -> dict[str, Tensor]:
    """phi, moved from its start so that what starts at zero matters, too."""
    g = torch.Generator().manual_seed(seed)
    phi = hyper.init(g)
    return {k: (v + 0.3 * torch.randn(v.shape, generator=g, dtype=v.dtype)).detach() for k, v in phi.items()}


# ------------------------------------------------------------------------------------------------ the comparison


def results(f: Callable[..., Any], arguments: Any, also: tuple[Tensor, ...] = ()) -> dict[str, Tensor]:
    """The outputs of ``f(*arguments)``, and the gradients of a fixed random sum of them.

    Gradients are with respect to every floating tensor in `arguments` (any pytree), and to the tensors in `also`.
    """

    def leaf(t: Any) -> Any:
        floating = isinstance(t, Tensor) and t.is_floating_point()
        return t.detach().clone().requires_grad_() if floating else t

    arguments = optree.tree_map(leaf, arguments)
    paths, leaves, _ = optree.tree_flatten_with_path(arguments)
    named = {f"d {p}": t for p, t in zip(paths, leaves, strict=True) if isinstance(t, Tensor) and t.requires_grad}
    named |= {f"d also {i}": t for i, t in enumerate(also)}
    y = f(*arguments)
    outputs = {f"y{i}": t for i, t in enumerate(optree.tree_leaves(y))}
    loss = torch.zeros((), dtype=torch.float64)
    for name, t in outputs.items():
        assert isinstance(t, Tensor), f"{name} is {t!r}"
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        weight = torch.randn(t.shape, generator=g, dtype=torch.float64)
        loss = loss + (t * weight).sum() if t.is_floating_point() else loss
    zero = sum(t.sum() * 0 for t in named.values())  # so that an output without a graph has gradients of zero
    grads = torch.autograd.grad(loss + zero, list(named.values()))
    return {k: v.detach() for k, v in outputs.items()} | dict(zip(named, grads, strict=True))


def assert_same(
    got: dict[str, Tensor],
    ref: dict[str, Tensor],
    tolerance: float | None = None,
    rounded: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Same names, shapes and dtypes; values within `tolerance` of each reference's largest number.

    A reference that should be zero and is the rounding error of larger numbers is allowed rounding errors; where it may
    be one of numbers in between, `rounded` are references of inputs that were changed by rounding errors.
    """
    assert got.keys() == ref.keys()
    largest = {c: max((largest_of(t) for k, t in ref.items() if k[0] == c), default=0.0) for c in "yd"}
    for name, want in ref.items():
        have = got[name]
        assert have.shape == want.shape, f"{name}: shape {tuple(have.shape)}, expected {tuple(want.shape)}"
        assert have.dtype == want.dtype, f"{name}: {have.dtype}, expected {want.dtype}"
        if not want.is_floating_point():
            assert torch.equal(have, want), f"{name}: {have}, expected {want}"
            continue
        bound = TOLERANCE.get(want.dtype, 1e-4) if tolerance is None else tolerance
        noise = 32 * torch.finfo(want.dtype).eps * largest[name[0]]
        noise = max([noise, *(32 * largest_of(other[name] - want) for other in rounded)])
        worst = largest_of(have - want)  # NaN where either is NaN, and then no bound holds
        limit = max(bound * largest_of(want), noise)
        assert worst <= limit, f"{name}: off by {worst:.3g} where {limit:.3g} is allowed\n{have}\nexpected\n{want}"


@contextmanager
def told(what: str) -> Iterator[None]:
    """Adds to an error which of several cases it is about."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def largest_of(t: Tensor) -> float:
    return t.detach().abs().max().item() if t.numel() and t.is_floating_point() else 0.0


def model_results(
    hyper: fh.Hypernet, main: Any, path: str | fh.Path | None, phi: Any, cond: Any, x: Any, **how: Any
) -> dict[str, Tensor]:
    """`results` of a composed model; with path None of the definition."""
    f = partial(define, hyper, main, **how) if path is None else fh.compose(hyper, main, path, **how)
    return results(f, (phi, cond, x))


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.Tanh, **options: Any) -> nn.Sequential:
    """A multilayer perceptron in float64, unless `options` name another dtype."""
    options = {"dtype": torch.float64} | options
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o, **options), activation()]
    return nn.Sequential(*layers[:-1])
