"""The files of MNIST, as torchvision reads them, of few and random digits."""

import struct
from pathlib import Path

import torch
from data import SIDE
from torch import Tensor

TRAIN, TEST = 48, 16


def write_idx(path: Path, values: Tensor) -> None:
    """The IDX format of the original MNIST files: a magic number, the sizes, the bytes."""
    header = struct.pack(f">{1 + values.dim()}I", 0x800 + values.dim(), *values.shape)
    path.write_bytes(header + values.to(torch.uint8).numpy().tobytes())


def write_digits(folder: Path) -> Path:
    """Makes the folder hold the four MNIST files, of few and random digits."""
    (folder / "MNIST" / "raw").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        images = torch.randint(256, (count, SIDE, SIDE), generator=generator)
        write_idx(folder / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", torch.arange(count) % 10)
    return folder
