"""Autocast lowers some calls before they run: what answers one here must see what torch would have made of it.

vmap takes a call apart first, and autocast then lowers its product alone: a bias that is added stays as it was, and so
does the sum.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import STRUCTURED

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PRODUCTS = ("matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm")
LOWERED: frozenset[Any] = frozenset(
    [
        F.linear,
        F.scaled_dot_product_attention,
        torch.einsum,
        Tensor.__matmul__,
        *[getattr(F, name) for name in CONVOLUTIONS],
        *[getattr(where, name) for where in (torch, Tensor) for name in PRODUCTS],
    ]
)
"""Calls that autocast computes in its own dtype on every device."""


def lowered(arg: Any) -> Any:
    """A tensor, or a leaf's factors, in autocast's dtype; double and integers stay, as everything does without it."""
    if isinstance(arg, STRUCTURED):
        return arg.map(lowered)
    if not isinstance(arg, Tensor) or not arg.is_floating_point() or arg.dtype == torch.float64:
        return arg
    kind = arg.device.type
    return arg.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else arg
