"""Physical rules for every path, where vmap's own form is far slower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._attention import attention


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """In eval mode one multiplication and one addition, for every network its own.

    input ``(B, N, C, ...)``, the others ``(B, C)``.
    """
    if training or running_mean is None or running_var is None or input.dim() < 3:
        return NotImplemented
    rows = [t for t in (running_mean, running_var, weight, bias) if t is not None]
    if any(t.dim() != 2 or t.shape[1] != input.shape[2] or t.dtype != input.dtype for t in rows):
        return NotImplemented
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return torch.addcmul(over(shift, input), input, over(scale, input))


def over(rows: Any, y: Tensor) -> Tensor:
    """``(B, C)`` as channels of y ``(B, N, C, ...)``."""
    return rows.unflatten(1, (1, -1, *[1] * (y.dim() - 3)))


COMMON: dict[Any, Callable[..., Any]] = {F.scaled_dot_product_attention: attention, F.batch_norm: batch_norm}
"""torch function -> rule; a path's own rule comes first."""
