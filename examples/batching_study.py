"""The figures of the study, from the records that `python -m functional_hyper.study --json FILE` saved.

Time and memory against the number of networks, for each path; where contraction gives way to materialised weights; and
what the ways of a neural ODE's gradient cost. Without records the quick grid is run first.
"""

import argparse
import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pictures
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from functional_hyper import study
from functional_hyper.study import Record, Records

FOLDER = Path(__file__).parent / "figures"
COLOURS = {
    "loop": "black",
    "vmap": "tab:purple",
    "grouped_conv": "tab:red",
    "bmm": "tab:orange",
    "broadcast": "tab:brown",
    "contracted": "tab:green",
    "auto": "tab:blue",
}


def of(records: Records, kind: str) -> list[Record]:
    """The measured records of one part of the grid."""
    return [r for r in records if r.settings.get("kind") == kind and r.ms is not None]


def against_b(axes: Axes, rows: list[Record], value: str) -> None:
    """One line for each path: `value` of a record, "ms" or "peak_mb", against B."""
    for path, colour in COLOURS.items():
        own = [r for r in rows if r.path == path and not r.compiled]
        dashed = "--" if path == "auto" else "-"
        axes.plot([r.settings["B"] for r in own], [getattr(r, value) for r in own], dashed, color=colour, label=path)
    widths = "-".join(map(str, rows[0].settings["widths"]))
    axes.set(
        xscale="log", yscale="log", xlabel="networks B", title=f"a training step of {widths}, K={rows[0].settings['K']}"
    )


def time_against_b(records: Records) -> Figure:
    """Measured, and as the cost model has it: operations and bytes at the peaks, and calls priced at the smallest B."""
    figure, (left, right) = panels(records, 2)
    rows = of(records, "B")
    peak = next(p for name, p in records.machine["peaks"].items() if name.startswith("cpu float32"))
    for axes in (left, right):
        against_b(axes, rows, "ms")
    left.set(ylabel="ms")
    right.set(title="dotted: operations and bytes at the peaks, and calls")
    for path in ("loop", "grouped_conv", "bmm", "broadcast", "contracted"):
        own = [r for r in rows if r.path == path]
        networks, took = ([r.settings["B"] for r in own], [r.ms or 0.0 for r in own])
        layers = [(o, i) for i, o in pairwise(own[0].settings["widths"])]
        model = [study.predicted(path, layers, r.settings["K"] + 1, r.settings["B"], 1, 1, peak) for r in own]
        # what one network costs beyond the model is the price of calls; only the loop pays it for each network
        calls = took[0] - model[0]
        more = (took[1] - took[0] - model[1] + model[0]) / (networks[1] - networks[0]) if path == "loop" else 0.0
        times = [m + calls + more * (n - networks[0]) for n, m in zip(networks, model, strict=True)]
        right.plot(networks, times, ":", color=COLOURS[path], linewidth=3)
    left.legend()
    return figure


def memory_against_b(records: Records) -> Figure:
    figure, (axes,) = panels(records, 1)
    against_b(axes, of(records, "B"), "peak_mb")
    axes.set(ylabel="peak memory, MB")
    axes.legend()
    return figure


def crossover(records: Records) -> Figure:
    """Contracted over materialised time, over N and K and over E and K; the line is where auto changes its mind."""
    figure, both = panels(records, 2)
    rows = of(records, "crossover")
    O, I = reversed(rows[0].settings["widths"])
    B = rows[0].settings["B"]
    for axes, letter, other in zip(both, "NE", "EN", strict=True):
        times = {(r.settings["K"], r.settings[letter], r.path): r.ms for r in rows if r.settings[other] == 1}
        ks, ns = (sorted({key[i] for key in times}) for i in (0, 1))
        ratios = [[math.log2((times[k, n, "contracted"] or 1) / (times[k, n, "bmm"] or 1)) for n in ns] for k in ks]
        at = range(len(ns)), range(len(ks))
        image = axes.pcolormesh(*at, ratios, cmap="RdBu_r", norm=TwoSlopeNorm(0, -3, 3))
        for y, line in enumerate(ratios):
            for x, ratio in enumerate(line):
                ink = "white" if abs(ratio) > 2 else "black"
                axes.text(x, y, f"{2**ratio:.2g}", ha="center", va="center", color=ink)
        fine = torch.linspace(-0.5, len(ns) - 0.5, 60), torch.linspace(-0.5, len(ks) - 0.5, 60)
        value = lambda t, marks: marks[0] * (marks[-1] / marks[0]) ** max(0.0, float(t) / max(1, len(marks) - 1))
        load = (lambda n: (n, 1)) if letter == "N" else (lambda n: (1, n))
        rule = [[math.log(study.rule(O, I, value(k, ks), B, *load(value(n, ns)))) for n in fine[0]] for k in fine[1]]
        axes.contour(*(f.tolist() for f in fine), rule, levels=[0.0], colors="black", linewidths=2)
        name = "inputs N, one evaluation" if letter == "N" else "evaluations E, one input"
        axes.set(xlabel=name, ylabel="features K", xticks=at[0], xticklabels=ns, yticks=at[1], yticklabels=ks)
        figure.colorbar(image, ax=axes, label="log2 of contracted / bmm time")
    both[0].set_title(f"one layer {I} to {O}, B={B}: time contracted / dense")
    both[1].set_title("line: auto contracts to its left")
    return figure


def ode_gradients(records: Records) -> Figure:
    """A training step of a neural ODE by each gradient and path."""
    rows = of(records, "odes")
    names = list(dict.fromkeys(r.workload for r in rows))
    figure, both = panels(records, 2)
    ways = list(dict.fromkeys((r.path, r.compiled) for r in rows))
    for axes, value, label in zip(both, ("ms", "peak_mb"), ("ms", "peak memory, MB"), strict=True):
        for place, way in enumerate(ways):
            own = {r.workload: getattr(r, value) for r in rows if (r.path, r.compiled) == way}
            heights = [own.get(name) or math.nan for name in names]
            at = [n + 0.9 * place / len(ways) for n in range(len(names))]
            text = way[0] + (" compiled" if way[1] else "")
            axes.bar(at, heights, 0.9 / len(ways), align="edge", label=text, color=f"C{place}")
        short = [n.removeprefix("ode ").replace(" B=", "\nB=") for n in names]
        axes.set(yscale="log", ylabel=label, xticks=[n + 0.45 for n in range(len(names))], xticklabels=short)
        axes.tick_params(axis="x", labelsize=7)
    both[0].set_title("training step of a neural ODE, rk4")
    both[1].legend(fontsize=7)
    return figure


def panels(records: Records, count: int) -> tuple[Figure, list[Axes]]:
    """Axes side by side under a title that says on what machine."""
    figure = Figure(figsize=(6 * count, 4.5), layout="constrained")
    lines = study.describe(records.machine).splitlines()
    figure.suptitle("\n".join(textwrap.fill(line, 80 * count) for line in (lines[0], *lines[2:])), fontsize=8)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


FIGURES = {
    "time_against_b": (time_against_b, "B"),
    "memory_against_b": (memory_against_b, "B"),
    "crossover": (crossover, "crossover"),
    "ode_gradients": (ode_gradients, "odes"),
}


def main(argv: Sequence[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", type=Path, default=FOLDER / "study.json", help="the study's records")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the figures")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.json.exists():
        records = Records.load(args.json)
    else:
        print(f"{args.json} does not exist: running the quick grid, whose figures are coarse")
        records = study.main(["--quick", "--json", str(args.out / "quick.json")])
    saved = []
    for name, (draw, kind) in FIGURES.items():
        if not of(records, kind):
            print(f"{name}: the records have no {kind}")
            continue
        saved.append(args.out / f"{name}.png")
        pictures.save(draw(records), saved[-1])
    print(study.describe(records.machine))
    return saved


if __name__ == "__main__":
    main()
