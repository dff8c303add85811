"""What each path costs: one training step and one call, on workloads that anyone can run again.

    python -m functional_hyper.study --workloads steps calls

Everything that is compared runs in one process, in turn, so that drift hits all alike; times are medians with their
quartiles. Peak memory is in allocated bytes, from the profiler's memory events. A busy machine is said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.profiler import ProfilerActivity, profile

from .compose import compose
from .evaluate import bind
from .hypernets import full
from .params import param_spec
from .paths import PATHS

STEPS = [  # layer widths, B, K: one input for each of B networks
    ((784, 32, 10), 256, 16),
    ((784, 32, 10), 1024, 16),
    ((784, 256, 256, 10), 128, 32),
    ((16, 128, 128, 16), 256, 32),
    ((2, 64, 64, 2), 256, 32),
]
CALLS = [((2, 64, 2), 64), ((2, 64, 2), 256)]  # layer widths, B: one call of bound networks, forward


@dataclass(frozen=True)
class Record:
    """One path on one workload: microseconds (median, quartiles), peak allocated bytes, useful GFLOP/s."""

    workload: str
    path: str
    median: float
    quartiles: tuple[float, float]
    peak: int
    gflops: float


def interleaved(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Microseconds of each function, the functions called in turn for about `seconds` each."""
    once: dict[str, float] = {}
    for name, f in functions.items():
        f()
        start = time.perf_counter()
        f()
        once[name] = time.perf_counter() - start
    rounds = max(7, min(2000, int(seconds * len(once) / sum(once.values()))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, f in functions.items():
            start = time.perf_counter()
            f()
            times[name].append((time.perf_counter() - start) * 1e6)
    return times


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return low.item(), middle.item(), high.item()


def peak_bytes(f: Callable[[], Any]) -> int:
    """The most bytes that are allocated at once while f runs, beyond those allocated before."""
    f()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        f()
    assert p.profiler is not None
    assert p.profiler.kineto_results is not None
    events = [e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, held)
    return peak


def gemm_peak(size: int = 2048, repeats: int = 9) -> tuple[float, float]:
    """GFLOP/s of a dense product, the best and the median of some: far apart on a busy machine."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    times = interleaved({"gemm": lambda: a @ a}, 0)["gemm"] + interleaved({"gemm": lambda: a @ a}, 0)["gemm"][:repeats]
    return 2e-3 * size**3 / min(times), 2e-3 * size**3 / quartiles(times)[1]


def mlp(widths: Sequence[int]) -> nn.Module:
    """Linear layers with SiLU between."""
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


def by_hand(features: Tensor, heads: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """The contraction of an MLP written out, without a library: what the machinery is held to."""
    h = F.pad(features, (0, 1), value=1.0)
    for n, (w, b) in enumerate(heads):
        o, i = w.shape[1:]
        if o <= i:
            y = torch.bmm(h.unsqueeze(1), F.linear(x, w.flatten(0, 1)).unflatten(1, (-1, o))).squeeze(1)
        else:
            y = (h.unsqueeze(2) * x.unsqueeze(1)).flatten(1) @ w.transpose(1, 2).reshape(-1, o)
        x = y + h @ b
        x = F.silu(x) if n < len(heads) - 1 else x
    return x


def step_functions(widths: Sequence[int], B: int, K: int, seed: int) -> dict[str, Callable[[], Any]]:
    """One training step, forward and backward, head included, for each path; and what a step is compared with."""
    generator = torch.Generator().manual_seed(seed)
    main = mlp(widths)
    spec = param_spec(main)
    hyper = full(spec, K, hidden=())
    phi = hyper.init(generator)
    cond = torch.randn(B, K, generator=generator).requires_grad_()
    x = torch.randn(B, widths[0], generator=generator).requires_grad_()
    heads = [(phi[f"head.{n}.weight"], phi[f"head.{n}.bias"]) for n in range(0, 2 * len(widths) - 2, 2)]
    W = torch.randn(spec.size, K, generator=generator).requires_grad_()
    c = torch.randn(spec.size, generator=generator).requires_grad_()

    def step(y: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(y().sum(), leaves)

    leaves = (*phi.values(), cond)
    functions = {
        "by hand": step(lambda: by_hand(cond, heads, x), *leaves, x),
        "head alone": step(lambda: F.linear(cond, W, c), W, c, cond),
        "apply": step(lambda: hyper.apply(phi, cond), *leaves),
    }
    for path in (*PATHS, "auto"):
        model = compose(hyper, main, path)
        functions[path] = step(lambda model=model: model(phi, cond, x), *leaves, x)
    return functions


def call_functions(widths: Sequence[int], B: int, seed: int) -> dict[str, Callable[[], Any]]:
    """One forward call of bound networks, and the same by hand."""
    generator = torch.Generator().manual_seed(seed)
    main = mlp(widths)
    params = {n: torch.randn(B, *p.shape, generator=generator) for n, p in main.named_parameters()}
    x = torch.randn(B, widths[0], generator=generator)
    w1, b1, w2, b2 = params.values()
    each = vmap(lambda p, x: functional_call(main, p, (x,)))

    def bmm_by_hand() -> Tensor:
        h = F.silu(torch.baddbmm(b1.unsqueeze(1), x.unsqueeze(1), w1.mT))
        return torch.baddbmm(b2.unsqueeze(1), h, w2.mT).squeeze(1)

    functions: dict[str, Callable[[], Any]] = {
        "bmm by hand": bmm_by_hand,
        "vmap by hand": lambda: each(params, x.unsqueeze(1)),
    }
    for path in PATHS:
        net = bind(main, params, path)
        functions[path] = lambda net=net: net(x)
    return functions


def measure(workload: str, functions: dict[str, Callable[[], Any]], seconds: float, flops: float = 0) -> list[Record]:
    """A record for each function."""
    times = interleaved(functions, seconds)
    records = []
    for name, f in functions.items():
        low, middle, high = quartiles(times[name])
        records.append(Record(workload, name, middle, (low, high), peak_bytes(f), flops / middle / 1e3))
    return records


def table(records: list[Record], peak: float) -> str:
    """The records of one workload; every time also as a multiple of the fastest path's of this library."""
    best = min(r.median for r in records if r.path in (*PATHS, "auto"))
    lines = [
        records[0].workload,
        f"  {'path':13} {'us':>9} {'quartiles':>19} {'x best':>7} {'peak MB':>8} {'GEMM peak':>10}",
    ]
    for r in records:
        low, high = r.quartiles
        share = f"{r.gflops / peak:10.0%}" if r.gflops else ""
        spread = f"{low:9.0f}-{high:<9.0f}"
        lines.append(f"  {r.path:13} {r.median:9.0f} {spread:>19} {r.median / best:7.2f} {r.peak / 2**20:8.1f} {share}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=("steps", "calls"), default=["steps", "calls"])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each path of each workload")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to save the records")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    best, usual = gemm_peak()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, load {load:.1f}")
    print(f"GEMM peak {best:.0f} GFLOP/s")
    if usual < 0.8 * best or load > (os.cpu_count() or 1):
        print(
            f"BUSY: a GEMM usually gets {usual:.0f} of {best:.0f} GFLOP/s, load {load:.1f}. Do not cite these figures."
        )
    records: list[Record] = []
    if "steps" in args.workloads:
        for widths, B, K in STEPS:
            name = f"step {'-'.join(map(str, widths))} B={B} K={K}"
            flops = 6.0 * B * K * param_spec(mlp(widths)).size
            found = measure(name, step_functions(widths, B, K, args.seed), args.seconds, flops)
            records += found
            print(table(found, best), flush=True)
    if "calls" in args.workloads:
        for widths, B in CALLS:
            name = f"call {'-'.join(map(str, widths))} B={B}"
            found = measure(name, call_functions(widths, B, args.seed), args.seconds)
            records += found
            print(table(found, best), flush=True)
    if args.json:
        machine = {"machine": platform.machine(), "threads": args.threads, "torch": torch.__version__, "gemm": best}
        args.json.write_text(
            json.dumps({**machine, "seed": args.seed, "records": [asdict(r) for r in records]}, indent=1)
        )


if __name__ == "__main__":
    main()
