"""What each path costs on workloads that anyone can run again.

    python -m functional_hyper.study --workloads steps calls odes

steps: one training step of an MLP, hypernetwork's head included; calls: one forward call of bound networks; odes: one
training step of a neural ODE (torchdiffeq); layers: what path="auto" chooses for single layers, scored.
Times are medians with their quartiles, everything in one process, in turn.
Peak memory is in allocated bytes, from the profiler's memory events. A busy machine is said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..params import param_spec
from ._layers import scores, summary
from ._measure import Functions, Record, gemm_peak, measure, table
from ._workloads import CALLS, ODES, STEPS, call_functions, mlp, solve_functions, step_functions

KINDS = ("steps", "calls", "odes", "layers")


def workloads(kinds: Sequence[str], seed: int, compile: bool) -> Iterator[tuple[str, Functions, float]]:
    """Name, functions and useful operations of each workload."""
    if "steps" in kinds:
        for widths, B, K in STEPS:
            flops = 6.0 * B * K * param_spec(mlp(widths)).size
            functions = step_functions(widths, B, K, seed, compile)
            _warm(functions)
            yield f"step {'-'.join(map(str, widths))} B={B} K={K}", functions, flops
    if "calls" in kinds:
        for widths, B in CALLS:
            yield f"call {'-'.join(map(str, widths))} B={B}", call_functions(widths, B, seed), 0.0
    if "odes" in kinds:
        for name, (widths, B, N, K, T) in ODES.items():
            functions = solve_functions(widths, B, N, K, T, seed, compile)
            _warm(functions)
            yield f"ode {name}", functions, 0.0


def _warm(functions: Functions) -> None:
    if "compiled" in functions:
        start = time.perf_counter()
        functions["compiled"]()
        print(f"compiled: {time.perf_counter() - start:.0f} s for the first call")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=KINDS, default=["steps", "calls"])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each path of each workload")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="the compiled step as well (a minute to compile)")
    parser.add_argument("--points", type=int, default=100, help="layers: how many of the grid")
    parser.add_argument("--json", type=Path, help="where to save the records")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    best, usual = gemm_peak()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, load {load:.1f}")
    print(f"GEMM peak {best:.0f} GFLOP/s")
    if usual < 0.8 * best or load > (os.cpu_count() or 1):
        print(f"BUSY: a GEMM usually gets {usual:.0f} of {best:.0f} GFLOP/s. Do not cite these figures.")
    records: list[Record] = []
    for name, functions, flops in workloads(args.workloads, args.seed, args.compile):
        found = measure(name, functions, args.seconds, flops)
        records += found
        print(table(found, best), flush=True)
    if "layers" in args.workloads:
        ratios = []
        for line, ratio in scores(args.points, args.seconds, args.seed):
            ratios.append(ratio)
            if ratio > 1.15:
                print(f"{line:72} {ratio:.2f}x", flush=True)
        print(summary(ratios))
    if args.json:
        machine = {"machine": platform.machine(), "threads": args.threads, "torch": torch.__version__, "gemm": best}
        text = json.dumps({**machine, "seed": args.seed, "records": [asdict(r) for r in records]}, indent=1)
        args.json.write_text(text)
