"""Many rows of few networks: one product for each network with all its rows, in place of one for each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.compiler import is_compiling

from .._functorch import inside_transform
from ..weights import Grouped

WASTE = 1.5  # padding to more than this multiple of the rows takes longer than sorting them


def grouped(x: Tensor, w: Grouped, b: Tensor | None) -> Tensor:
    """x ``(S, N, I)``, or ``(1, N, I)`` for all rows; w of shape ``(O, I)``; b ``(S, O)`` -> ``(S, N, O)``."""
    x = x.expand(len(w.index), -1, -1)
    wasteful = len(w.weight) * w.most > WASTE * len(w.index)
    y = ragged(x, w) if wasteful and sorts(w.weight, w.shape) and plain(x, w.weight) else padded(x, w)
    return y if b is None else y + b.unsqueeze(1)


def padded(x: Tensor, w: Grouped) -> Tensor:
    """Every network's rows filled up to as many as the largest has: one batched product."""
    C, O, I = w.weight.shape
    N = x.shape[1]
    rows = x.new_zeros(C * w.most, N * I).index_copy(0, w.place, x.flatten(1))
    y = rows.view(C, w.most * N, I) @ w.weight.mT
    return y.view(C * w.most, N, O)[w.place]


def ragged(x: Tensor, w: Grouped) -> Tensor:
    """Rows sorted by network, groups of any size: `torch.nn.functional.grouped_mm`."""
    S, N, I = x.shape
    y = F.grouped_mm(x[w.order].reshape(S * N, I), w.weight.mT, offs=(w.ends * N).int()).view(S, N, -1)
    return torch.empty_like(y).index_copy(0, w.order, y)


def sorts(like: Tensor, shape: Sequence[int]) -> bool:
    """Whether `grouped_mm` takes weights of this dtype, device and shape ``(O, I)``: rows of 16 bytes."""
    dtypes = (torch.bfloat16,) if like.is_cuda else (torch.float32, torch.bfloat16, torch.float16)
    known = like.dtype in dtypes and like.device.type in ("cpu", "cuda")
    return known and all(n % (16 // like.itemsize) == 0 for n in shape)


def plain(*tensors: Tensor) -> bool:
    """Whether only ordinary autograd looks on: `grouped_mm` has no rule for vmap, forward mode or a compiler."""
    return not (is_compiling() or inside_transform() or any(unpack_dual(t).tangent is not None for t in tensors))
