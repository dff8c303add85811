"""The README's measured figures are those of the records in examples/figures/, which `make study` measures anew.

`FH_WRITE_TABLES=1 pytest tests/test_readme_figures.py` writes them, as `make figures` and `make study` do.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from readme_tables import check, table

from functional_hyper import study
from functional_hyper.study import Record, Records

FOLDER = Path(__file__).parents[1] / "examples/figures"
COLUMNS = {  # of a table -> path, compiled
    "by hand": ("by hand", False),
    "`auto`": ("auto", False),
    "compiled": ("auto", True),
    "head alone": ("head alone", False),
    **{f"`{path}`": (path, False) for path in ("bmm", "vmap", "grouped_conv", "loop")},
}
SOLVES = {
    "compiled, deferred": ("deferred", True),
    "deferred": ("deferred", False),
    **{f"`{path}`": (path, False) for path in ("bmm", "vmap", "grouped_conv", "loop")},
    "grouped convolution by hand": ("grouped_conv by hand", False),
}


@cache
def records() -> Records:
    return Records.load(FOLDER / "study.json")


@cache
def beside() -> dict[str, Any]:
    return json.loads((FOLDER / "side_by_side.json").read_text())


def by_workload(kind: str) -> dict[str, dict[tuple[str, bool], Record]]:
    found: dict[str, dict[tuple[str, bool], Record]] = {}
    for r in records():
        if r.settings["kind"] == kind:
            found.setdefault(r.workload.split(" ", 1)[1], {})[r.path, r.compiled] = r
    return found


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def peaks() -> str:
    machine = records().machine
    peak, cores = next(p for name, p in machine["peaks"].items() if name.startswith("cpu float32")), machine["cores"]
    gemm = f"GEMM peak {peak['gemm']:.0f} GFLOP/s, {peak['bandwidth']:.0f} GB/s"
    return f"They are of {cores} cores of a virtual machine ({gemm}), as they say themselves."


def steps() -> str:
    found = by_workload("steps")
    rows = [["", *COLUMNS]]
    rows += [[name, *(number(of[way].ms) for way in COLUMNS.values())] for name, of in found.items()]
    for name, of in list(found.items())[:2]:
        rows.append([f"MB of {name}", *(number(of[way].peak_mb) for way in COLUMNS.values())])
    return table(rows)


def odes() -> str:
    rows = [["", *SOLVES]]
    rows += [[name, *(number(of[way].ms) for way in SOLVES.values())] for name, of in by_workload("odes").items()]
    return table(rows)


def claims() -> str:
    storage = [of["grouped_conv", False].peak_mb / of["loop", False].peak_mb for of in by_workload("steps").values()]  # type: ignore[operator]
    solves = by_workload("odes").values()
    faster = [of["loop", False].ms / of["grouped_conv by hand", False].ms for of in solves]  # type: ignore[operator]
    return (
        f"Here it allocates {min(storage):.2f} to {max(storage):.2f} times as much as the loop, and written by hand,\n"
        f"as published, it is {', '.join(f'{f:.1f}' for f in faster)} times as fast as the loop on the four ODEs."
    )


def auto() -> str:
    lines = []
    for found in map(Records.load, sorted(FOLDER.glob("study*.json"))):
        told = study.summary([ratio for _, ratio in study.scores(found)])
        lines.append(f"- {found.machine['cpu']}: {told}")
    return "\n".join(lines)


def side_by_side() -> str:
    rows: dict[str, dict[str, float]] = beside()["milliseconds"]
    own = ("this library", "compiled")
    others = [name for name in next(iter(rows.values())) if name not in own]
    lines = [["", "this library", *others]]
    for name, times in rows.items():
        best = min(times[n] for n in own if n in times)
        lines.append([name, number(best), *(f"{times[n] / best:.1f}x" for n in others)])
    return table(lines)


PARTS: list[Callable[[], str]] = [peaks, steps, odes, claims, auto, side_by_side]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_readme_has_the_figures_of_the_records(part: Callable[[], str]) -> None:
    check(part.__name__, part())


def test_the_records_are_of_a_quiet_machine_and_whole() -> None:
    assert records().machine["busy"] == []
    assert {r.settings["kind"] for r in records()} >= set(study.KINDS) - {"cuda"}
    assert len(beside()["milliseconds"]) == len(study.STEPS)
