"""`auto` scored: single layers of many shapes, contracted and dense, against what it chooses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from ..compose import compose
from ..hypernets import full
from ..params import param_spec
from ._measure import Functions, interleaved, quartiles

SHAPES = [(784, 32), (784, 256), (64, 64), (128, 128), (256, 256), (64, 2), (2, 64), (16, 128), (128, 16), (128, 512)]
LOADS = [(1, 1), (4, 1), (16, 1), (64, 1), (256, 1), (1, 4), (4, 4), (1, 16), (1, 80)]  # N, E
LARGEST = 1e10  # operations of a step, and a fifth of it in numbers: what a minute has room for


def grid(points: int, seed: int) -> list[tuple[int, int, int, int, int, int]]:
    """Layers ``(I, O, B, K, N, E)``, drawn from the whole grid."""
    layers = [
        (I, O, B, K, N, E)
        for (I, O), B, K, (N, E) in product(SHAPES, (4, 32, 256), (2, 16, 64), LOADS)
        if 6 * B * N * E * K * I * O < LARGEST and 6 * B * I * O * E < LARGEST
    ]
    return random.Random(seed).sample(layers, min(points, len(layers)))


def layer_functions(I: int, O: int, B: int, K: int, N: int, E: int, seed: int) -> tuple[Functions, str]:
    """A training step of one layer, head included, E calls for one set of weights; and which form `auto` chooses."""
    generator = torch.Generator().manual_seed(seed)
    main = nn.Linear(I, O)
    hyper = full(param_spec(main), K, hidden=())
    phi, cond = hyper.init(generator), torch.randn(B, K, generator=generator).requires_grad_()
    x = torch.randn(B, N, I, generator=generator).requires_grad_()
    slopes = [torch.randn(B, N, O, generator=generator)] * E

    def step(path: str) -> Callable[[], Any]:
        model = compose(hyper, main, path, many=True, evaluations=E)

        def run() -> Any:
            net = model.bind(phi, cond, x)
            return torch.autograd.grad([net(x) for _ in range(E)], [*phi.values(), cond, x], slopes)

        return run

    chosen = compose(hyper, main, many=True, evaluations=E).bind(phi, cond, x).choices[0]
    return {name: step(name) for name in ("contracted", "bmm")}, "bmm" if "dense" in chosen.form else "contracted"


def scores(points: int, seconds: float, seed: int) -> Iterator[tuple[str, float]]:
    """For each layer of the grid: what `auto` chose and what was faster, and the ratio of the two times."""
    for layer in grid(points, seed):
        functions, chosen = layer_functions(*layer, seed=seed)
        times = {name: quartiles(t)[1] for name, t in interleaved(functions, seconds / 10).items()}
        best = min(times, key=times.__getitem__)
        shape = " ".join(f"{letter}={n}" for letter, n in zip("IOBKNE", layer, strict=True))
        yield f"{shape:36} auto takes {chosen}, best is {best}", times[chosen] / times[best]


def summary(ratios: Sequence[float]) -> str:
    """How often `auto` is near the best, and how far it strays."""
    near = [sum(r <= 1 + share for r in ratios) / len(ratios) for share in (0.10, 0.15)]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return (
        f"auto on {len(ratios)} layers: within 10 % of the best on {near[0]:.0%}, within 15 % on {near[1]:.0%}; "
        f"worst {max(ratios):.2f}x, geometric mean {mean:.3f}x"
    )
