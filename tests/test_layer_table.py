"""The README's table of layers: which path answers what, what stays in factors, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import hypernet
from readme_tables import check, table
from test_any_module import Lambda
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import functional_hyper as fh

B, N, D = 4, 2, torch.float64


def weight(f: Callable[[Tensor, Tensor], Any]) -> Callable[[], nn.Module]:
    """A main network of one linear layer's weight."""
    return lambda: Lambda(lambda m, x: f(x, m.a.weight), a=nn.Linear(6, 4))


def shaped(layer: Callable[[], nn.Module], *shape: int) -> Callable[[], nn.Module]:
    """A layer that wants its six inputs in another shape."""
    return lambda: nn.Sequential(nn.Unflatten(1, shape), layer())


def looked_up(rows: int, times: int) -> Callable[[], nn.Module]:
    ids = torch.arange(times) % rows
    return lambda: Lambda(lambda m, x: m.a(ids).sum() + x, a=nn.Embedding(rows, 4))


def sequence(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Lambda(lambda m, x: m.a(x.unflatten(1, (3, 2)))[0], a=layer())


def attention() -> nn.Module:
    return Lambda(lambda m, x: m.a(*[x.unflatten(1, (3, 2))] * 3)[0], a=nn.MultiheadAttention(2, 2, batch_first=True))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(2, 2, 4, dropout=0.0, batch_first=True)
    return Lambda(lambda m, x: m.a(x.unflatten(1, (3, 2))), a=layer)


def reused() -> nn.Module:
    return Lambda(lambda m, x: m.a(m.a(x).tanh()) @ m.a.weight.T, a=nn.Linear(6, 6))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "`Linear`, tied or reused": reused,
    "`x @ w.T`, `w @ x.T`, `einsum`, `addmm`": weight(lambda x, w: torch.einsum("ni,oi->no", x, w) + (w @ x.T).T),
    "a weight sliced, chunked, expanded": weight(lambda x, w: sum(x @ part.T for part in w.chunk(2))),
    "a weight and a number: `2 * w`, `w.sum()`": weight(lambda x, w: F.linear(x, w) + w.sum()),
    "a weight inside the main network's own `grad`, `vmap`": weight(lambda x, w: torch.func.vmap(lambda r: x @ r)(w).T),
    "convolution, more weights than pixels": shaped(lambda: nn.Conv1d(6, 8, 9, padding=4), 6, 1),
    "convolution, large image": shaped(lambda: nn.Conv1d(1, 2, 3), 1, 6),
    "transposed convolution": shaped(lambda: nn.ConvTranspose1d(3, 2, 2), 3, 2),
    "layer, group, RMS and instance norm": lambda: nn.Sequential(nn.LayerNorm(6), nn.RMSNorm(6), nn.GroupNorm(2, 6)),
    "batch norm, eval": lambda: nn.BatchNorm1d(6).eval(),
    "`Embedding`, a table far larger than its lookups": looked_up(100, 4),
    "`Embedding`, many lookups": looked_up(5, 40),
    "`MultiheadAttention`": attention,
    "`TransformerEncoderLayer`": encoder,
    "`LSTM`, `GRU`, `RNN` and their cells": sequence(lambda: nn.LSTM(2, 3, bidirectional=True)),
    "`Bilinear`": lambda: Lambda(lambda m, x: m.a(x, x.flip(1)), a=nn.Bilinear(6, 6, 3)),
    "weight norm, other parametrizations": lambda: parametrizations.weight_norm(nn.Linear(6, 4)),
    "spectral norm, eval": lambda: parametrizations.spectral_norm(nn.Linear(6, 4)).eval(),
    "`PReLU`, elementwise parameters": lambda: nn.PReLU(6),
    "TorchScript": lambda: torch.jit.script(nn.Linear(6, 4)),
    'dropout, unless `randomness="different"`': lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout()),
    "batch norm with running statistics, training": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)),
    "spectral norm, training": lambda: parametrizations.spectral_norm(nn.Linear(6, 4)),
    "`torch._foreach_*`": weight(lambda x, w: F.linear(x, torch._foreach_mul([w], 2.0)[0])),
    "boolean mask, `.item()`, `if` on data": weight(lambda x, w: (x @ w.T)[x[:, 0] > 99]),
}
PATHS = {
    "`loop`": ("loop",),
    "`vmap`": ("vmap",),
    "`grouped_conv`, `bmm`, `broadcast`": ("grouped_conv", "bmm", "broadcast"),
}
KINDS = {"`full`, `chunked` by layer": "full", "`low_rank`": "low rank", "`scaled`": "scaled rows"}
REFUSED = "**refused**"


def explained(main: nn.Module, kind: str, path: str) -> Any:
    hyper = hypernet(kind, fh.param_spec(main))
    x = torch.randn(B, N, 6, dtype=D)
    try:
        return fh.explain(fh.compose(hyper, main, path, many=True), hyper.init(), torch.randn(B, 2, dtype=D), x)
    except fh.Refused:
        return None


def answered(main: nn.Module, path: str) -> str:
    """Whether a rule answers a call with dense weights, or vmap all of them."""
    told = explained(main, "custom", path)
    if told is None:
        return REFUSED
    own = {answer for _, _, answer in told.calls}
    return "loop" if own == {"loop"} else "rule" if own - {"vmap"} else "vmap"


def kept(main: nn.Module, kind: str, path: str) -> str:
    """In which form the matrices and kernels are."""
    told = explained(main, kind, path)
    if told is None:
        return REFUSED
    large = {n for n, p in main.named_parameters() if p.dim() > 1}
    forms = {form for name, form, _ in told.weights if name in large or not large}
    if "dense, in each call" in forms:
        return "each call"
    return "dense" if forms <= {"dense", "dense, bmm"} else "factors"


def row(name: str) -> list[str]:
    main = LAYERS[name]().double()
    cells = [name]
    for paths in PATHS.values():
        found = {answered(main, path) for path in paths}
        assert len(found) == 1, found
        cells += found
    for kind in KINDS.values():
        contracted, auto = kept(main, kind, "contracted"), kept(main, kind, "auto")
        assert contracted == REFUSED or auto in (contracted, "dense"), (contracted, auto)
        cells.append(f"`auto` {auto}" if contracted == REFUSED != auto else contracted)
    return cells


@pytest.mark.filterwarnings("ignore")
def test_the_table_of_layers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [row(name) for name in LAYERS]
    check("layers", table([["", *PATHS, *KINDS], *rows]))
