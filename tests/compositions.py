"""Main networks composed at random: layers, mixers of the batch, and ways to put them together.

A composition is a nest of tuples, which hypothesis shrinks and prints: ``("chain", ("linear", 3), ("sort",))``. `build`
makes it a module on inputs ``(N, width)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Composition = tuple[Any, ...]
Layer = tuple[Callable[..., nn.Module], Callable[..., int]]


class Function(nn.Module):
    """A function of the input and of modules."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def tokens(x: Tensor) -> Tensor:
    """The features as a sequence of single numbers."""
    return x.unsqueeze(-1)


class Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def conv(width: int, channels: int) -> nn.Module:
    return Function(lambda x, c: c(x.unsqueeze(1)).flatten(1), nn.Conv1d(1, channels, 3, padding=1))


def attention(width: int) -> nn.Module:
    mha = nn.MultiheadAttention(2, 2, batch_first=True)
    return Function(lambda x, up, a: a(*[up(tokens(x))] * 3)[0].mean(-1), nn.Linear(1, 2), mha)


def recurrent(width: int, size: int) -> nn.Module:
    return Function(lambda x, gru: gru(tokens(x))[0][:, -1], nn.GRU(1, size, batch_first=True, bidirectional=True))


def tied(width: int, hidden: int) -> nn.Module:
    return Function(lambda x, l: l(x).tanh() @ l.weight, nn.Linear(width, hidden))


def looked_up(width: int) -> nn.Module:
    return Function(lambda x, table: x + table(torch.arange(len(x)) % width), nn.Embedding(width, width))


def batch_attention(width: int) -> nn.Module:
    """Every input of a network looks at its others."""
    qkv = nn.Linear(width, 3 * width)
    return Function(lambda x, l: F.scaled_dot_product_attention(*l(x)[None].chunk(3, -1))[0], qkv)


def of_rows(f: Callable[[Tensor], Tensor]) -> Layer:
    return lambda width: Function(f), lambda width: width


EPS = 0.1  # a norm of nearly equal numbers would enlarge rounding errors
same, given = lambda width, *_: width, lambda width, size: size
SIZED: dict[str, Layer] = {
    "linear": (nn.Linear, given),
    "linear without bias": (lambda width, size: nn.Linear(width, size, bias=False), given),
    "weight norm": (lambda width, size: parametrizations.weight_norm(nn.Linear(width, size)), given),
    "bilinear": (lambda width, size: Function(lambda x, b: b(x, x.flip(1)), nn.Bilinear(width, width, size)), given),
    "convolution": (conv, lambda width, size: width * size),
    "recurrent": (recurrent, lambda width, size: 2 * size),
    "tied": (tied, same),
}
PLAIN: dict[str, Layer] = {
    "affine": (Affine, same),
    "tanh": (lambda width: nn.Tanh(), same),
    "silu": (lambda width: nn.SiLU(), same),
    "prelu": (lambda width: nn.PReLU(width), same),
    "layer norm": (lambda width: nn.LayerNorm(width, EPS), same),
    "rms norm": (lambda width: nn.RMSNorm(width, EPS), same),
    "group norm": (lambda width: nn.GroupNorm(1, width, EPS), same),
    "batch norm, eval": (lambda width: nn.BatchNorm1d(width, EPS).eval(), same),
    "attention": (attention, same),
    "embedding": (looked_up, same),
}
MIXERS: dict[str, Layer] = {
    "less its mean": of_rows(lambda x: x - x.mean(0)),
    "by its size": of_rows(lambda x: x / x.shape[0]),
    "softmax over the batch": of_rows(lambda x: x.softmax(0)),
    "cumulated": of_rows(lambda x: x.cumsum(0)),
    "sorted": of_rows(lambda x: x.sort(dim=0, stable=True).values),
    "rolled": of_rows(lambda x: x.roll(1, 0)),
    "gram matrix": of_rows(lambda x: (x @ x.T).tanh() @ x),
    "outermost": of_rows(lambda x: x - x.logsumexp(0)),
    "first row": of_rows(lambda x: x + x[0]),
    "own statistics": of_rows(lambda x: F.batch_norm(x, None, None, training=True, eps=EPS)),
    "batch attention": (batch_attention, same),
}
REFUSED: dict[str, Layer] = {
    "a branch": of_rows(lambda x: x if x.sum() > 0 else 2 * x),
    "a mask": of_rows(lambda x: x + x[x > 0].sum()),
    "a number": of_rows(lambda x: x * x.mean().item()),
}
"""Every path but the loop refuses them."""
LAYERS = {**SIZED, **PLAIN, **MIXERS, **REFUSED}

usual = st.one_of(
    st.tuples(st.sampled_from(list(SIZED)), st.integers(1, 3)),
    st.tuples(st.sampled_from(list(PLAIN))),
    st.tuples(st.sampled_from(list(MIXERS))),
)
layers = st.integers(0, 40).flatmap(lambda n: usual if n else st.tuples(st.sampled_from(list(REFUSED))))


def combined(inner: st.SearchStrategy[Composition]) -> st.SearchStrategy[Composition]:
    chain = st.lists(inner, min_size=2, max_size=4).map(lambda parts: ("chain", *parts))
    two = st.tuples(st.sampled_from(["beside", "gate"]), inner, inner)
    return st.one_of(chain, two, st.tuples(st.sampled_from(["residual", "twice"]), inner))


compositions: st.SearchStrategy[Composition] = st.recursive(layers, combined, max_leaves=8)


def refusable(composition: Composition) -> bool:
    """Whether it has a layer that only the loop takes."""
    return composition[0] in REFUSED or any(refusable(c) for c in composition[1:] if isinstance(c, tuple))


def build(composition: Composition, width: int) -> tuple[nn.Module, int]:
    """The module of a composition on ``(N, width)``, and the width of what it makes."""
    name, *rest = composition
    if name in LAYERS:
        layer, size = LAYERS[name]
        return layer(width, *rest), size(width, *rest)
    parts: list[nn.Module] = []
    widths = [width]
    for part in rest:
        module, out = build(part, widths[-1] if name == "chain" else width)
        parts.append(module)
        widths.append(out)
    if name == "chain":
        return nn.Sequential(*parts), widths[-1]
    if name == "beside":
        return Function(lambda x, a, b: torch.cat([a(x), b(x)], -1), *parts), sum(widths[1:])
    if name == "gate":
        back = nn.Linear(widths[2], widths[1])
        return Function(lambda x, a, b, back: a(x) * back(b(x)).sigmoid(), *parts, back), widths[1]
    back = nn.Linear(widths[1], width)
    if name == "residual":
        return Function(lambda x, a, back: x + back(a(x)), *parts, back), width
    return Function(lambda x, a, back: back(a(back(a(x)).tanh())), *parts, back), width
