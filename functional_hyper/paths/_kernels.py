"""Kernels and tables that stay in their factors where less is formed than the weights of all networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import STRUCTURED, Generated, Grouped, Leaf, LowRank, Scaled, data_of
from ._common import over


def keeps(leaf: Leaf) -> bool:
    """Whether a kernel ``(O, I, *taps)`` can stay in its factors: a base with scaled or added output channels."""
    rows_only = isinstance(leaf, LowRank) or (isinstance(leaf, Scaled) and leaf.column is None)
    return rows_only and 3 <= len(leaf.shape) <= 5


def convolution(conv: Callable[..., Tensor]) -> Callable[..., Any]:
    """A rule for `F.conv1d` and its like: the base's convolution is one dense convolution for all networks.

    It gains where a network has more weights than pixels of channels, several times more where the update is of low
    rank; elsewhere the weights are written down for vmap's grouped convolution.
    """

    def contract_kernel(
        input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
    ) -> Any:
        if not isinstance(weight, (LowRank, Scaled)) or not keeps(weight) or not isinstance(input, Tensor):
            return NotImplemented
        low, (O, I, *_) = isinstance(weight, LowRank), weight.shape
        if input.dim() != len(weight.shape) + 1 or input.shape[2] != I * groups or (low and groups != 1):
            return NotImplemented
        if input.dtype != data_of(weight).dtype or not input.numel():
            return NotImplemented
        pixels = input[0].numel() // input.shape[2] * (input.shape[2] + O)
        if weight.base.numel() < (WORTH if low else 1) * pixels:
            return NotImplemented
        how = {"stride": stride, "padding": padding, "dilation": dilation}
        y = conv(input.flatten(0, 1), weight.base, None, groups=groups, **how).unflatten(0, input.shape[:2])
        y = y + update(conv, input, weight, how) if isinstance(weight, LowRank) else y * over(weight.row, y)
        return y if bias is None else y + over(bias, y)

    return contract_kernel


def update(conv: Callable[..., Tensor], x: Tensor, w: LowRank, how: dict[str, Any]) -> Tensor:
    """Each network's ``U V^T`` of x ``(B or 1, N, I, ...)``: r channels by a grouped convolution, O from them."""
    B, r = w.v.shape[0], w.v.shape[-1]
    taps = w.v.mT.unflatten(-1, w.shape[1:]).flatten(0, 1)
    inputs = x.expand(B, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    few = conv(inputs, taps, None, groups=B, **how).unflatten(1, (B, r)).transpose(0, 1)
    return ((w.scale * w.u).unsqueeze(1) @ few.flatten(3)).unflatten(-1, few.shape[3:])


WORTH = 3  # times more weights than pixels, where an update of low rank is a convolution of its own


def embedding(
    input: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: Any = False,
    sparse: Any = False,
) -> Any:
    """The rows of a table that are looked up, without the table: input ``(B, ...)``, for all networks ``(1, ...)``."""
    if not isinstance(weight, STRUCTURED) or len(weight.shape) != 2 or isinstance(weight, Grouped):
        return NotImplemented
    if max_norm is not None or scale_grad_by_freq or sparse or not isinstance(input, Tensor) or input.dim() < 2:
        return NotImplemented
    if padding_idx is not None and not -weight.shape[0] <= padding_idx < weight.shape[0]:
        return NotImplemented
    if isinstance(weight, Generated) and weight.head.shape[0] * input[0].numel() > weight.head.shape[1]:
        return NotImplemented  # the rows of all features would be more than the table
    y = looked_up(input.flatten(1), weight).unflatten(1, input.shape[1:])
    if padding_idx is None:
        return y
    padded = (input == padding_idx % weight.shape[0]).unsqueeze(-1)
    return torch.where(padded, y.detach(), y)


def looked_up(ids: Tensor, weight: Any) -> Tensor:
    """ids ``(B or 1, T)`` -> ``(B, T, E)``."""
    if isinstance(weight, Generated):
        K, V, E = weight.head.shape
        rows = F.embedding(ids, weight.head.transpose(0, 1).reshape(V, K * E)).unflatten(-1, (K, E))
        return (weight.features.unsqueeze(1).unsqueeze(1) @ rows).squeeze(2)
    base = F.embedding(ids, weight.base)
    if isinstance(weight, LowRank):
        return base + weight.scale * own(weight.u, ids) @ weight.v.mT
    y = base if weight.column is None else base * weight.column.unsqueeze(1)
    return y if weight.row is None else y * own(weight.row.unsqueeze(-1), ids)


def own(rows: Tensor, ids: Tensor) -> Tensor:
    """Each network's own rows ``(B, V, r)`` by ids."""
    B, _, r = rows.shape
    return rows.gather(1, ids.expand(B, -1).unsqueeze(-1).expand(-1, -1, r))


KERNELS: dict[Any, Callable[..., Any]] = {
    F.embedding: embedding,
    **{conv: convolution(conv) for conv in (F.conv1d, F.conv2d, F.conv3d)},
}
"""For the table of a path that keeps factors."""
