"""Time grids: one for all samples, one for each sample, the union of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._errors import bad

Rhs: TypeAlias = Callable[[Any, Tensor], Tensor]
"""dy/dt as a function of t and y."""

Odeint: TypeAlias = Callable[[Rhs, Tensor, Tensor, Sequence[Tensor]], Tensor]
"""A solver: (rhs, y0, shared times (T,), further tensors that rhs depends on) -> (T, *y0.shape)."""


def integrate(odeint: Odeint, rhs: Rhs, y0: Tensor, t: Tensor) -> Tensor:
    """``(T, B, ...)`` for times ``(T,)`` or, each sample its own, ``(T, B)``.

    With per-sample times the shared parameter s runs from 0 to 1 in each interval and ``dy/ds = dt/ds f(t(s), y)``.
    Interval by interval: were s one line, the last stage of a step would look up the next interval's ``dt/ds``.
    """
    if t.dim() == 1:
        return odeint(rhs, y0, t, ())
    unit = torch.tensor([0.0, 1.0], dtype=t.dtype, device=y0.device)
    ys = [y0]
    for start, end in pairwise(t.unbind(0)):
        start, length = columns(start, y0), columns(end - start, y0)
        ys.append(odeint(_stretched(rhs, start, length), ys[-1], unit, (start, length))[-1])
    return torch.stack(ys)


def columns(values: Tensor, y: Tensor) -> Tensor:
    """``(B,)`` as ``(B, 1, ...)``, which broadcasts against y."""
    return values.view(-1, *[1] * (y.dim() - 1)).to(y)


def _stretched(rhs: Rhs, start: Tensor, length: Tensor) -> Rhs:
    return lambda s, y: length * rhs(start + s * length, y)


def union(times: Tensor) -> tuple[Tensor, Tensor]:
    """All samples' observation times as one grid, for irregular observations and for adaptive methods.

    Args:
        times: ``(T, B)``, the times at which each sample was observed, in any order.

    Returns:
        ``t (U,)``, the sorted distinct times, and ``index (T, B)`` with ``t[index] == times``. Times are data here: no
        gradient reaches `times` through them.

    Raises:
        HyperError: times of other than two dims.

    Example:
        >>> t, index = union(torch.tensor([[0.0, 0.0], [1.0, 0.5]]))
        >>> ys = torch.randn(len(t), 2, 3)  # what solve(..., t) returns
        >>> ys[index, torch.arange(2)].shape
        torch.Size([2, 2, 3])
    """
    if times.dim() != 2:
        raise bad("union(times=...)", "(T, B)", tuple(times.shape), "give each sample's times as a column")
    return torch.unique(times.detach(), sorted=True, return_inverse=True)
