"""How the examples draw: figures without a display, small files, and panels of digits and their weights."""

import io
from pathlib import Path

import torch
from data import CLASSES, SIDE
from einops import rearrange
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from training import History


def panels(title: str, count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side. Made without pyplot, it needs no display and no global state."""
    figure = Figure(figsize=(5 * count, 5), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def save(figure: Figure, path: Path) -> None:
    """A PNG of few colours, which makes a fraction of the file; the rarest, which are those of lines, stay."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    image = Image.open(buffer).convert("RGB")
    image.quantize(200, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    print(f"picture: {path}")


def draw_history(axes: Axes, history: History, held_out: str) -> None:
    """Error rates against epochs; `held_out` says which digits were tested on."""
    epochs = range(1, len(history) + 1)
    for key, label in (("train accuracy", "train (shifted)"), ("test accuracy", held_out)):
        axes.plot(epochs, [100 * (1 - entry[key]) for entry in history], label=label)
    axes.set(title="error (%)", xlabel="epoch", yscale="log")
    axes.legend()


def draw_predictions(axes: Axes, images: Tensor, labels: Tensor, predictions: Tensor, columns: int = 8) -> None:
    """Digits `(n, 784)` with their predictions `(n,)`: mistakes first, in red, in the order of the digits."""
    count = min(columns * columns, len(images) // columns * columns)
    order = (predictions == labels).int().argsort(stable=True)[:count].cpu()
    draw_tiles(axes, images[order], columns, "gray")
    for place, one in enumerate(order.tolist()):
        right = bool(predictions[one] == labels[one])
        row, column = divmod(place, columns)
        label = str(int(predictions[one]))
        axes.text(SIDE * column + 1, SIDE * row + 1, label, color="lime" if right else "red", va="top", weight="bold")
    axes.set_title("predictions: mistakes first, in red")


def draw_tiles(axes: Axes, images: Tensor, columns: int, cmap: str) -> None:
    """Images `(n, 784)` side by side, `columns` in a row; n is a multiple of it."""
    tiles = rearrange(images.detach().cpu(), "(r c) (h w) -> (r h) (c w)", c=columns, h=SIDE)
    axes.imshow(tiles.numpy(), cmap=cmap)
    axes.set_axis_off()


def draw_hidden_units(axes: Axes, weight: Tensor, columns: int = 8) -> None:
    """What each hidden unit looks for: a first layer's weight `(O, 784)` as O pictures."""
    limit = weight.abs().amax(1, keepdim=True)
    draw_tiles(axes, weight / limit, columns, "RdBu")
    axes.set_title("generated weights of the hidden units")


def draw_weight_space(axes: Axes, theta: Tensor, labels: Tensor) -> None:
    """Generated weights `(B, P)` on their first two principal axes, a colour for each of the labels `(B,)`."""
    centred = theta.detach() - theta.detach().mean(0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    first, second = (left * singular)[:, :2].cpu().unbind(1)
    share = singular[:2].square().sum() / singular.square().sum()
    for digit in range(CLASSES):
        one = (labels == digit).cpu()
        axes.scatter(first[one].numpy(), second[one].numpy(), s=8, color=colormaps["tab10"](digit), label=str(digit))
    axes.set_title(f"generated weights of each image\n(two principal axes, {100 * share:.0f} % of the variance)")
    axes.legend(ncols=2, title="digit")
