"""`Record` and `Records`: what every measurement of the study comes as. They print, save, load and plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from .._errors import bad


@dataclass(frozen=True)
class Record:
    """One path on one workload. What could not be measured is None, and `note` says why.

    Args:
        workload, path, compiled: what ran.
        ms, iqr: the median time of a run and its interquartile range, milliseconds, of `runs` samples. Runs of less
            than a few milliseconds are timed several at a time, see `torch.utils.benchmark.Timer.blocked_autorange`.
        peak_mb: the most that was allocated at once, beyond what was there before.
        gflop, gbyte: operations, and bytes that torch's operators read and write, uncompiled.
        of_gemm, of_bandwidth: the share of the machine's measured peaks that these come to.
        error: the largest relative difference from the loop, in value and gradients.
        note: a refusal, a failure to compile, a disagreement: a row with a note competes with no other.
        settings: the workload in numbers: B, N, E, K, dtype, threads, device, ...
    """

    workload: str
    path: str
    compiled: bool = False
    ms: float | None = None
    iqr: float | None = None
    runs: int = 0
    peak_mb: float | None = None
    gflop: float | None = None
    gbyte: float | None = None
    of_gemm: float | None = None
    of_bandwidth: float | None = None
    error: float | None = None
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


COLUMNS = ("ms", "iqr", "x best", "peak_mb", "gflop", "of_gemm", "of_bandwidth", "error")


@dataclass(frozen=True)
class Records:
    """Records, and the machine that they were made on: print it, iterate, `save`, `plot`."""

    records: tuple[Record, ...]
    machine: dict[str, Any]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __str__(self) -> str:
        groups = [list(g) for _, g in groupby(self.records, lambda r: r.workload)]
        return "\n".join([describe(self.machine), *map(table, groups)])

    def save(self, path: str | Path) -> None:
        """Writes ``.json`` (with the machine) or ``.csv`` (a row for each record).

        Raises:
            HyperError: another suffix.
        """
        path = Path(path)
        rows = [asdict(r) for r in self.records]
        if path.suffix == ".json":
            lines = ",\n".join(json.dumps(row) for row in rows)  # a line for each record
            path.write_text(f'{{"machine": {json.dumps(self.machine, indent=1)},\n"records": [\n{lines}\n]}}\n')
        elif path.suffix == ".csv":
            names = dict.fromkeys(k for row in rows for k in row.pop("settings"))
            with path.open("w", newline="") as file:
                own = [f.name for f in fields(Record) if f.name != "settings"]
                writer = csv.DictWriter(file, [*own, *names])
                writer.writeheader()
                writer.writerows(row | r.settings for row, r in zip(rows, self.records, strict=True))
        else:
            raise bad("records.save(path=...)", "a name ending in .json or .csv", repr(path.name), "choose one")

    @staticmethod
    def load(path: str | Path) -> Records:
        """What `save` wrote as JSON."""
        saved = json.loads(Path(path).read_text())
        return Records(tuple(Record(**row) for row in saved["records"]), saved["machine"])

    def plot(self, path: str | Path | None = None) -> Any:
        """Times and memory as bars, a row for each workload; saved to `path` if given. Needs matplotlib.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        from matplotlib.figure import Figure

        groups = [(name, list(g)) for name, g in groupby(self.records, lambda r: r.workload)]
        figure = Figure(figsize=(9, 3 * len(groups)), layout="constrained")
        grid = figure.subplots(len(groups), 2, squeeze=False)
        for axes, (name, rows) in zip(grid, groups, strict=True):
            labels = [label(r) for r in rows]
            axes[0].barh(labels, [r.ms or 0 for r in rows], xerr=[(r.iqr or 0) / 2 for r in rows])
            axes[0].set(title=name, xlabel="ms, median and IQR", xscale="log")
            axes[1].barh(labels, [r.peak_mb or 0 for r in rows])
            axes[1].set(title="peak memory", xlabel="MB", yticklabels=[])
            for a in axes:
                a.invert_yaxis()
        figure.suptitle(describe(self.machine).splitlines()[0], fontsize=8)
        if path is not None:
            figure.savefig(path, dpi=100)
        return figure


def label(record: Record) -> str:
    return record.path + (" compiled" if record.compiled else "")


def describe(machine: dict[str, Any]) -> str:
    """The machine in two lines, and a third where it is busy."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads on {machine['cores']} cores, {versions}",
        f"{machine['date']}, seed {machine['seed']}; peaks: "
        + "; ".join(
            f"{k}: GEMM {v['gemm']:.0f} GFLOP/s, {v['bandwidth']:.0f} GB/s" for k, v in machine["peaks"].items()
        ),
    ]
    if machine["busy"]:
        lines.append(f"BUSY, do not cite these figures: {'; '.join(machine['busy'])}")
    return "\n".join(lines)


def best_of(rows: list[Record]) -> float | None:
    """The shortest time among rows without a note."""
    return min((r.ms for r in rows if r.ms is not None and not r.note), default=None)


def table(rows: list[Record]) -> str:
    """The records of one workload; each time also as a multiple of the best."""
    best = best_of(rows)
    width = max(len(label(r)) for r in rows)
    lines = [rows[0].workload, "  " + "path".ljust(width) + "".join(c.rjust(13) for c in COLUMNS)]
    for r in rows:
        cells = {**asdict(r), "x best": r.ms / best if r.ms is not None and best else None}
        shown = "".join(_cell(c, cells[c]).rjust(13) for c in COLUMNS)
        lines.append(f"{'!' if r.note else ' '} {label(r).ljust(width)}{shown}  {r.note}".rstrip())
    return "\n".join(lines)


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if column.startswith("of_") else f"{value:.1e}" if column == "error" else f"{value:.3g}"
