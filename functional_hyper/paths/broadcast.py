"""`broadcast`: a linear layer of B networks is multiply and sum; wins where the layers are tiny."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._path import Path, linear


def broadcast(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x ``(B, N, I)``, w ``(B, O, I)``, b ``(B, O)`` -> ``(B, N, O)``."""
    y = (x.unsqueeze(2) * w.unsqueeze(1)).sum(-1)
    return y if b is None else y + b.unsqueeze(1)


PATH = Path("broadcast", {F.linear: linear(broadcast)})
