"""`grouped_conv`: B networks are the B groups of one kernel-1 convolution.

Channels hold network after network, so that group b multiplies network b's inputs with network b's weights:
https://github.com/qu-gg/torch-hypernetwork-tutorials made the idea known.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..weights import Leaf, materialize
from ._path import Choice, Load, Path, linear


def grouped_conv(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x ``(B, N, I)``, w ``(B, O, I)``, b ``(B, O)`` -> ``(B, N, O)``."""
    channels = rearrange(x, "B N I -> N (B I) 1")
    kernel = rearrange(w, "B O I -> (B O) I 1")
    bias = None if b is None else rearrange(b, "B O -> (B O)")
    y = F.conv1d(channels, kernel, bias, groups=w.shape[0])
    return rearrange(y, "N (B O) 1 -> B N O", B=w.shape[0]).contiguous()  # a main network may `view` it


def contiguous(leaf: Leaf, load: Load) -> Choice:
    """A slice of a flat vector is not contiguous: copied once here, or else in every evaluation."""
    return Choice(materialize(leaf).contiguous(), "dense", "reshaped once into a kernel's layout")


PATH = Path("grouped_conv", {F.linear: linear(grouped_conv)}, contiguous)
