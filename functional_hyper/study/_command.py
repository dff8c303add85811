"""What each path costs on workloads that anyone can run again: times, memory, agreement, and `auto` scored.

    python -m functional_hyper.study --json study.json

steps: one training step of an MLP, hypernetwork's head included; calls: one forward call of bound networks; odes: one
training step of a neural ODE (torchdiffeq); layers: single layers, drawn from many shapes and loads; the others are
sweeps of one number. Times are medians with their interquartile ranges, everything in one process, in turn. Peak memory
is in allocated bytes. A busy machine is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..paths import PATHS
from ._grid import KINDS, Case, cases
from ._machine import busy, machine, peaks
from ._measure import measure
from ._records import Record, Records, best_of, describe, table
from ._workloads import BY_HAND


def run(todo: Sequence[Case], seconds: float, seed: int, facts: dict[str, Any] | None = None) -> Iterator[list[Record]]:
    """The records of each case in turn; the peaks that they needed, and what was busy, go into `facts`."""
    facts = machine(seed) if facts is None else facts
    for case in todo:
        with threads(case.threads):
            name = f"{case.device.type} {str(case.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
            if name not in facts["peaks"]:
                facts["peaks"][name] = peaks(case.device, case.dtype)
                facts["busy"] = busy(facts)
            functions, reference = case.build()
            settings = {"kind": case.kind, **case.settings}
            peak = facts["peaks"][name]
            yield measure(case.name, functions, seconds, reference, peak, case.dtype, case.device, **settings)
    again = peaks(torch.device("cpu"), torch.float32)
    first = next(
        (p for name, p in facts["peaks"].items() if name.endswith(f"float32, {torch.get_num_threads()} threads")), again
    )
    if not 0.8 < again["gemm"] / first["gemm"] < 1.25:
        facts["busy"] = [
            *facts["busy"],
            f"a GEMM got {first['gemm']:.0f} GFLOP/s at first, {again['gemm']:.0f} at the end",
        ]


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """That many threads, and as many as before afterwards; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if number:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def scores(records: Iterable[Record]) -> list[tuple[str, float]]:
    """For each workload that `auto` ran on beside other paths: its time over that of the best, uncompiled."""
    found = []
    for name, group in groupby(records, lambda r: r.workload):
        rows = [r for r in group if not r.compiled and r.path in (*PATHS, "auto")]
        best, own = best_of(rows), next((r.ms for r in rows if r.path == "auto"), None)
        if best is not None and own is not None and len(rows) > 1:
            found.append((name, own / best))
    return found


def summary(ratios: Sequence[float]) -> str:
    """How often `auto` is near the best, and how far it strays."""
    near = [sum(r <= 1 + share for r in ratios) / len(ratios) for share in (0.10, 0.15)]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return (
        f"auto on {len(ratios)} workloads: within 10 % of the best on {near[0]:.0%}, within 15 % on {near[1]:.0%}; "
        f"worst {max(ratios):.2f}x, geometric mean {mean:.3f}x"
    )


def claims(records: Iterable[Record]) -> list[str]:
    """The claims of torch-hypernetwork-tutorials, each with what was measured of it."""
    lines = []
    for name, group in groupby(records, lambda r: r.workload):
        rows = {r.path: r for r in group if not r.compiled}
        loop, conv = rows.get("loop"), rows.get(BY_HAND) or rows.get("grouped_conv")
        if loop is None or conv is None:
            continue
        kind = loop.settings.get("kind")
        if kind == "steps" and loop.peak_mb and conv.peak_mb:
            lines.append(
                f'"equivalent storage": {name}: grouped convolution allocates {conv.peak_mb:.1f} MB, the loop '
                f"{loop.peak_mb:.1f} MB, {conv.peak_mb / loop.peak_mb:.2f} times as much"
            )
        if kind == "odes" and loop.ms and conv.ms:
            lines.append(
                f'"1.5 h to 12 min" (7.5x): {name}: {conv.path} takes {conv.ms:.0f} ms, the loop {loop.ms:.0f} ms, '
                f"{loop.ms / conv.ms:.1f}x"
            )
    return lines


def progress(todo: list[Case]) -> Iterable[Case]:
    """The cases, with a progress bar where tqdm is installed."""
    if importlib.util.find_spec("tqdm") is None:
        return todo
    from tqdm import tqdm

    return tqdm(todo, unit="workload")


def main(argv: Sequence[str] | None = None) -> Records:
    parser = argparse.ArgumentParser(
        "python -m functional_hyper.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=KINDS, default=list(KINDS), help="which; all by default")
    add("--quick", action="store_true", help="a small part of the grid, in less than two minutes")
    add("--seconds", type=float, help="of timing for each path of each workload; by default 0.5, quick 0.1")
    add("--threads", type=int, default=torch.get_num_threads(), help="torch's; as many as it takes by default")
    add("--seed", type=int, default=0, help="draws the values; 0 by default")
    add("--compile", action="store_true", help="compiled steps and solves as well, a minute to compile each")
    add("--points", type=int, default=100, help="layers: how many of all combinations")
    add("--json", type=Path, help="where to save the records; what was measured is there even if the run is cut short")
    add("--csv", type=Path, help="the same as a table")
    args = parser.parse_args(argv)
    seconds = args.seconds if args.seconds is not None else 0.1 if args.quick else 0.5
    with threads(args.threads):
        facts = machine(args.seed)
        todo = list(cases(args.workloads, args.seed, args.compile, args.points, args.quick))
        found: list[Record] = []
        for rows in run(progress(todo), seconds, args.seed, facts):  # type: ignore[arg-type]
            found += rows
            print(table(rows), flush=True)
            if args.json:
                Records(tuple(found), facts).save(args.json)
    result = Records(tuple(found), facts)
    for path in (args.json, args.csv):
        if path:
            result.save(path)
    rated = scores(found)
    lines = [f"{ratio:.2f}x of the best: auto on {name}" for name, ratio in rated if ratio > 1.15]
    print("\n".join([describe(facts), *claims(found), *lines, *([summary([r for _, r in rated])] if rated else [])]))
    return result
