"""Draws how grouped convolution runs B networks at once, and what contraction never forms.

The picture goes to `--out`. The counts in it are those of the first layer of `mnist_parallel.py`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pictures
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

NETWORKS = ["#4477aa", "#ee6677", "#228833"]  # a colour for each
SHARED, PALE = "#ccbb44", "#f2f2f2"
B, K, O, I = 256, 16, 32, 784

Colour = str | tuple[float, ...]


def lighter(colour: str, share: float = 0.55) -> Colour:
    return tuple(1 - (1 - part) * (1 - share) for part in to_rgb(colour))


def cells(axes: Axes, x: float, y: float, colours: Sequence[Sequence[Colour]], size: float = 1.0) -> None:
    """A matrix of squares, its upper left corner at (x, y); a colour for each."""
    for row, line in enumerate(colours):
        for column, colour in enumerate(line):
            at = (x + size * column, y - size * (row + 1))
            axes.add_patch(Rectangle(at, size, size, facecolor=colour, edgecolor="white", linewidth=1.2))  # type: ignore[arg-type]


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], dashed: bool = False, **more: object
) -> None:
    style = {"arrowstyle": "-|>", "color": "0.6" if dashed else "0.2", "linewidth": 1.6, **more}
    axes.annotate("", end, start, arrowprops=style | {"linestyle": "--" if dashed else "-"})


def note(axes: Axes, x: float, y: float, text: str, **how: object) -> None:
    axes.text(x, y, text, **({"ha": "center", "va": "center", "fontsize": 11} | how))  # type: ignore[arg-type]


def draw_grouped(axes: Axes) -> None:
    """Three networks of two outputs and three inputs: one convolution whose kernel holds the blocks on the diagonal."""
    outs, ins = 2, 3
    size = len(NETWORKS)
    weights = [
        [NETWORKS[row // outs] if row // outs == column // ins else PALE for column in range(size * ins)]
        for row in range(size * outs)
    ]
    cells(axes, 3.2, 8, weights)
    cells(axes, 14, 9.5, [[lighter(NETWORKS[row // ins])] for row in range(size * ins)])
    cells(axes, 0, 8, [[lighter(NETWORKS[row // outs], 0.25)] for row in range(size * outs)])
    note(axes, 2.1, 5, "=", fontsize=20)
    note(axes, 13.1, 5, "·", fontsize=26)
    for group, colour in enumerate(NETWORKS):
        note(axes, 3.2 + ins * (group + 0.5), 8 - outs * (group + 0.5), f"$W_{group + 1}$", color="white", fontsize=14)
        note(axes, 15.2, 9.5 - ins * (group + 0.5), f"$x_{group + 1}$", color=colour, fontsize=14, ha="left")
        note(axes, -0.25, 8 - outs * (group + 0.5), f"$y_{group + 1}$", color=colour, fontsize=14, ha="right")
    note(axes, 0.5, 1.3, "output\nB·O channels")
    note(axes, 7.7, 1.3, "kernel (B·O, I, 1)\nonly the coloured blocks exist")
    note(axes, 14.5, -0.2, "input\nB·I channels")
    note(axes, 7.6, -1.6, "F.conv1d(x, w, groups=B)", family="monospace", fontsize=12)
    axes.set(xlim=(-1.6, 16.8), ylim=(-2.3, 10.2))
    axes.set_title("grouped_conv: B networks are the B groups of one convolution", fontsize=13)


def box(axes: Axes, x: float, y: float, size: tuple[float, float], text: str, colour: Colour, layers: int = 1) -> None:
    """A labelled tensor, its lower left corner at (x, y); `layers` sheets behind each other."""
    for sheet in reversed(range(layers)):
        corner = (x + 0.22 * sheet, y + 0.22 * sheet)
        axes.add_patch(Rectangle(corner, *size, facecolor=colour, edgecolor="white", linewidth=1.5))
    note(axes, x + size[0] / 2, y + size[1] / 2, text)


def draw_contracted(axes: Axes) -> None:
    """Solid: what is computed. Dashed: the weights of all networks, which the definition goes through."""
    box(axes, 0, 7.6, (2.6, 1.8), "features h\n(B, K)", lighter(NETWORKS[0]))
    box(axes, 0, 4.1, (2.6, 1.8), "shared head H\n(K, O, I)", SHARED, layers=4)
    box(axes, 0, 0.6, (2.6, 1.8), "inputs x\n(B, I)", "0.87")
    box(axes, 6.3, 1.9, (3.2, 1.8), "$H_k\\,x_b$\n(B, K, O)", lighter(NETWORKS[1]))
    box(axes, 12.6, 1.9, (2.6, 1.8), "outputs y\n(B, O)", "0.87")
    axes.add_patch(Rectangle((6.3, 5.4), 3.2, 2.2, fill=False, edgecolor="0.5", linewidth=1.8, linestyle="--"))
    note(axes, 7.9, 6.5, "weights $W_b$\n(B, O, I)\nnever formed", color="0.35")
    arrow(axes, (2.7, 7.9), (6.2, 6.9), dashed=True)
    arrow(axes, (3.4, 5.6), (6.2, 6.3), dashed=True)
    arrow(axes, (9.6, 6.3), (13.4, 3.8), dashed=True)
    arrow(axes, (3.4, 4.7), (6.2, 3.2))
    arrow(axes, (2.7, 1.5), (6.2, 2.4))
    arrow(axes, (9.6, 2.8), (12.5, 2.8))
    arrow(axes, (2.7, 8.9), (11, 2.9), connectionstyle="angle,angleA=0,angleB=90,rad=6")
    note(axes, 11.05, 2.3, "$\\sum_k h_{bk}$", fontsize=12)
    note(axes, 4.9, 1.2, "one GEMM\nfor all networks", fontsize=10)
    equation = "$y_b = (\\sum_k h_{bk} H_k)\\, x_b = \\sum_k h_{bk}\\, (H_k\\, x_b)$"
    note(axes, 7.6, -0.4, equation, fontsize=14)
    saved = f"{B} networks, {I} to {O}, K={K} and a bias: {B * (K + 1) * O:,} numbers in place of {B * O * I:,}"
    note(axes, 7.6, -1.5, saved, color="0.35")
    axes.set(xlim=(-0.4, 15.6), ylim=(-2, 9.8))
    axes.set_title("contracted: the same layer from its factors", fontsize=13)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures", help="folder for the picture")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, draw in ((left, draw_grouped), (right, draw_contracted)):
        draw(axes)
        axes.set_axis_off()
    left.set_aspect("equal")
    pictures.save(figure, args.out / "schematic.png")


if __name__ == "__main__":
    main()
