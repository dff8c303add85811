"""Times, memory and peaks: everything that is compared runs in one process, in turn, so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Functions = dict[str, Callable[[], Any]]
TURN = 0.05  # seconds of one function before the next has its turn


@dataclass(frozen=True)
class Record:
    """One path on one workload: microseconds (median, quartiles), peak allocated bytes, useful GFLOP/s."""

    workload: str
    path: str
    median: float
    quartiles: tuple[float, float]
    peak: int
    gflops: float


def interleaved(functions: Functions, seconds: float) -> dict[str, list[float]]:
    """Microseconds of each function: short runs of each, in turn, timed for about `seconds` in all.

    The first call of a run is not counted: what another path left in the caches and with the allocator is no part
    of a training step, which follows a step of its own kind.
    """
    once: dict[str, float] = {}
    for name, f in functions.items():
        f()
        start = time.perf_counter()
        f()
        once[name] = time.perf_counter() - start
    calls = {name: max(1, min(100, int(TURN / took))) for name, took in once.items()}
    turn = sum(once[name] * (1 + calls[name]) for name in functions)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(max(5, int(seconds * len(functions) / turn))):
        for name, f in functions.items():
            f()
            for _ in range(calls[name]):
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


def measure(workload: str, functions: Functions, seconds: float, flops: float = 0) -> list[Record]:
    """A record for each function."""
    times = interleaved(functions, seconds)
    records = []
    for name, f in functions.items():
        low, middle, high = quartiles(times[name])
        records.append(Record(workload, name, middle, (low, high), peak_bytes(f), flops / middle / 1e3))
    return records


def table(records: list[Record], peak: float) -> str:
    """The records of one workload; every time also as a multiple of the first's."""
    first = records[0].median
    lines = [
        records[0].workload,
        f"  {'path':13} {'us':>9} {'quartiles':>19} {'x first':>7} {'peak MB':>8} {'GEMM peak':>10}",
    ]
    for r in records:
        low, high = r.quartiles
        share = f"{r.gflops / peak:10.0%}" if r.gflops else ""
        spread = f"{low:9.0f}-{high:<9.0f}"
        lines.append(
            f"  {r.path:13} {r.median:9.0f} {spread:>19} {r.median / first:7.2f} {r.peak / 2**20:8.1f} {share}"
        )
    return "\n".join(lines)
