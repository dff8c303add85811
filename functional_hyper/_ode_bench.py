"""``python -m functional_hyper._ode_bench``: a training step of a neural ODE, the best of this library against three.

Solve, loss and backward with the hypernetwork's head included; RK4 with 20 steps, 80 evaluations (Lotka-Volterra: 19
steps, 76). All in one process, interleaved; medians, and their ratios to the best. A compiled step's first call, its
warm-up, is reported beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

import functional_hyper as fh
from functional_hyper import ode

CASES = {  # sizes, networks, states for each, features, times
    "2-64-64-2 B=256": ((2, 64, 64, 2), 256, 1, 32, 21),
    "16-128-128-16 B=32": ((16, 128, 128, 16), 32, 1, 32, 21),
    "16-128-128-16 B=256": ((16, 128, 128, 16), 256, 1, 32, 21),
    "Lotka-Volterra 9 x 4": ((2, 64, 64, 64, 2), 9, 4, 2, 20),
}
WAYS = {
    "grouped_conv direct": {"path": "grouped_conv"},
    "vmap direct": {"path": "vmap"},
    "loop direct": {"path": "loop"},
    "bmm direct": {"path": "bmm"},
    "deferred": {"path": "bmm", "gradient": "deferred"},
    "deferred compiled": {"path": "bmm", "gradient": "deferred", "compile": True},
}
SLOW = 64  # networks that the loop is still asked to do


def step(case: str, way: str) -> Callable[[], tuple[Tensor, ...]]:
    """One training step of a case."""
    sizes, B, N, K, T = CASES[case]
    torch.manual_seed(0)
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.SiLU())]
    main = nn.Sequential(*layers[:-1])
    hyper = fh.with_base(fh.full(fh.param_spec(main), in_features=K, hidden=()))
    phi, cond = hyper.init(), torch.randn(B, K)
    y0, t = torch.rand(B, N, sizes[0]), torch.linspace(0, 1, T)

    def run() -> tuple[Tensor, ...]:
        ys = ode.solve(main, hyper.weights(phi, cond), y0, t, many=True, **WAYS[way])  # type: ignore[arg-type]
        return torch.autograd.grad(ys.square().mean(), list(phi.values()))

    return run


def timed(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; median of {args.rounds} rounds, and how many times the best")
    for case in args.cases:
        slow = CASES[case][1] > SLOW
        ways = [w for w in WAYS if not (slow and "loop" in w or args.no_compile and "compiled" in w)]
        steps = {way: step(case, way) for way in ways}
        warm = {way: timed(f) for way, f in steps.items()}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, f in steps.items():
                times[way].append(timed(f))
        medians = {way: median(found) for way, found in times.items()}
        best = min(medians.values())
        print(case)
        for way, took in medians.items():
            note = f"  first call {warm[way]:.0f} s" if "compiled" in way else ""
            print(f"  {way:20} {1e3 * took:8.1f} ms  {took / best:5.1f}x{note}", flush=True)


if __name__ == "__main__":
    main()
