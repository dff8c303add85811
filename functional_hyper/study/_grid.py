"""The standard grid: single workloads, and sweeps of one number at a time around them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import torch
from torch import nn

from ..paths import PATHS
from ._compare import moved, steps
from ._workloads import CALLS, ODES, STEPS, Workload, call_functions, mlp, problem, solve_functions, step_functions

SHAPES = [(784, 32), (784, 256), (64, 64), (128, 128), (256, 256), (64, 2), (2, 64), (16, 128), (128, 16), (128, 512)]
LOADS = [(1, 1), (4, 1), (16, 1), (64, 1), (256, 1), (1, 4), (4, 4), (1, 16), (1, 80)]  # N, E
LARGEST = 1e10  # operations of a step, and a fifth of it in numbers: what a minute has room for
FORMS = ("contracted", "bmm", "auto")
ALL = (*PATHS, "auto")

SWEEPS: dict[str, list[dict[str, Any]]] = {
    "B": [{"B": B} for B in (1, 4, 16, 64, 256, 1024, 4096)],
    "width": [{"widths": (w, w, w), "B": 16} for w in (8, 16, 32, 64, 128, 256, 512, 1024)],
    "K": [{"K": K} for K in (2, 4, 8, 16, 32, 64, 128, 256)],
    "N": [{"N": N} for N in (1, 4, 16, 64, 256)],
    "evaluations": [{"E": E, "B": 16} for E in (1, 5, 20, 80, 320)],
    "conv": [{"conv": True, "B": B} for B in (1, 8, 64)],
    "dtype": [{"dtype": d, "B": B} for d in ("float32", "bfloat16") for B in (16, 256)],
    "threads": [
        {"threads": n, "B": B} for n in range(1, (os.cpu_count() or 1) + 1) if not n & (n - 1) for B in (16, 256)
    ],
    "cuda": [{"device": "cuda", "B": B} for B in (1, 16, 256, 4096)] if torch.cuda.is_available() else [],
    "crossover": [
        {"widths": (64, 64), "K": K, letter: n, "paths": FORMS}
        for letter, K, n in product("NE", (2, 8, 32, 128), (1, 4, 16, 64))
        if n > 1 or letter == "N"
    ],
}
QUICK: dict[str, list[dict[str, Any]]] = {
    "B": [{"B": B} for B in (1, 16, 256)],
    "crossover": [
        {"widths": (64, 64), "K": K, letter: n, "paths": FORMS}
        for letter, K, n in product("NE", (2, 32), (1, 16))
        if n > 1 or letter == "N"
    ],
    "conv": [{"conv": True, "B": 8}],
    "dtype": [{"dtype": "bfloat16"}],
}
KINDS = ("steps", "calls", "odes", "layers", *SWEEPS)


@dataclass(frozen=True)
class Case:
    """One workload of the grid: `build` makes it, when its turn comes."""

    kind: str
    name: str
    build: Callable[[], Workload]
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    threads: int | None = None


def cases(kinds: Sequence[str], seed: int, compile: bool, points: int, quick: bool) -> Iterator[Case]:
    """The workloads of these kinds, in order."""
    if "steps" in kinds:
        for widths, B, K in STEPS[:1] if quick else STEPS:
            name = f"step {_dashed(widths)} B={B} K={K}"
            build = lambda w=widths, B=B, K=K: step_functions(w, B, K, seed, compile)
            yield Case("steps", name, build, {"widths": list(widths), "B": B, "N": 1, "E": 1, "K": K})
    if "calls" in kinds:
        for widths, B in CALLS:
            build = lambda w=widths, B=B: call_functions(w, B, seed)
            yield Case("calls", f"call {_dashed(widths)} B={B}", build, {"widths": list(widths), "B": B})
    if "odes" in kinds:
        for name, (widths, B, N, K, T) in list(ODES.items())[-1 if quick else 0 :]:
            build = lambda w=widths, B=B, N=N, K=K, T=T: solve_functions(w, B, N, K, T, seed, compile)
            yield Case("odes", f"ode {name}", build, {"widths": list(widths), "B": B, "N": N, "K": K, "E": 4 * (T - 1)})
    if "layers" in kinds:
        for I, O, B, K, N, E in drawn_layers(4 if quick else points, seed):
            yield sweep_case("layers", seed, widths=(I, O), B=B, K=K, N=N, E=E, paths=FORMS)
    for kind, changes in (QUICK if quick else SWEEPS).items():
        if kind in kinds:
            for change in changes:
                yield sweep_case(kind, seed, **change)


def drawn_layers(points: int, seed: int) -> list[tuple[int, int, int, int, int, int]]:
    """Layers ``(I, O, B, K, N, E)``, drawn from all combinations of shapes and loads."""
    layers = [
        (I, O, B, K, N, E)
        for (I, O), B, K, (N, E) in product(SHAPES, (4, 32, 256), (2, 16, 64), LOADS)
        if 6 * B * N * E * K * I * O < LARGEST and 6 * B * I * O * E < LARGEST
    ]
    return random.Random(seed).sample(layers, min(points, len(layers)))


def sweep_case(
    kind: str,
    seed: int,
    *,
    widths: Sequence[int] = (32, 64, 64, 32),
    B: int = 64,
    K: int = 32,
    N: int = 1,
    E: int = 1,
    conv: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int | None = None,
    paths: Sequence[str] = ALL,
) -> Case:
    """A training step of an MLP, or of a small convolutional network, head included; N inputs, E evaluations."""
    numbers, kept = getattr(torch, dtype), torch.device(device)

    def build() -> Workload:
        net, size = (convolutional(), (1, 12, 12)) if conv else (mlp(widths), (widths[0],))
        main, hyper, *tensors = problem(net, (N, *size), B, K, seed, numbers)
        phi, cond, x = moved(tensors, kept, None)
        options = {"many": True, "evaluations": E}
        return steps(main.to(kept), hyper, phi, cond, x, paths, seed=seed, **options)

    shape = "conv" if conv else _dashed(widths)
    where = (
        f" {dtype}" * (dtype != "float32")
        + f" {device}" * (device != "cpu")
        + (f" threads={threads}" if threads else "")
    )
    name = f"{kind}: {shape} B={B} N={N} E={E} K={K}{where}"
    settings = {"widths": shape if conv else list(widths), "B": B, "N": N, "E": E, "K": K}
    return Case(kind, name, build, settings, numbers, kept, threads)


def convolutional() -> nn.Module:
    """A classifier of 12 x 12 images: two convolutions and a linear layer, 1,898 weights."""
    convolutions = [nn.Conv2d(1, 8, 3, stride=2), nn.SiLU(), nn.Conv2d(8, 16, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 10))


def linear_layers(widths: Sequence[int]) -> list[tuple[int, int]]:
    """``(O, I)`` of an MLP's layers."""
    return [(o, i) for i, o in pairwise(widths)]


def _dashed(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))
