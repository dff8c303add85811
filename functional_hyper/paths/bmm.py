"""`bmm`: a linear layer of B networks is one batched matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._path import Path, linear


def bmm(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x ``(B, N, I)``, w ``(B, O, I)``, b ``(B, O)`` -> ``(B, N, O)``."""
    return torch.bmm(x, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), x, w.mT)


RULE = linear(bmm)
"""What every path falls back to for dense weights."""

PATH = Path("bmm", {F.linear: RULE})
