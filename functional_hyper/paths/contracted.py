"""`contracted`: weights that are never written down.

A linear layer whose weight is given by factors is computed from the factors: no ``(B, O, I)`` tensor exists in the
forward or the backward pass. With ``W_b = sum_k h_bk H_k`` the layer ``y = W_b x`` is two products, in either order:

- the head first: ``x H_k^T`` for all k, one dense GEMM with the shared head, then the sum over k with h; ``B N K O``
  numbers in between;
- the outer product first: ``h (x) x``, then one dense GEMM with the head; ``B N K I`` numbers in between.

Both cost ``2 B N K O I`` operations; the smaller intermediate decides. A generated convolution is not contracted: every
pixel counts as an input, and K times the work took 2 to 12 times as long as vmap's grouped convolution with the kernels
written down, on images of 16 pixels and more; on 4 pixels it gained nothing sure. What a shared base
allows is in `_kernels`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import STRUCTURED, Generated, Grouped, Leaf, LowRank, Scaled, Structured, data_of, materialize, shape_of
from . import bmm
from ._kernels import KERNELS, keeps
from ._path import Choice, Load, Path, with_rows
from ._rows import grouped


def generated(x: Tensor, w: Generated, b: Tensor | None) -> Tensor:
    """x ``(B, N, I)``, or ``(1, N, I)`` for all networks; w of shape ``(O, I)``; b ``(B, O)`` -> ``(B, N, O)``."""
    h, (K, O, I) = w.features, w.head.shape
    B, N = h.shape[0], x.shape[1]
    if x.shape[0] != B:  # the head's product once for all networks
        per_k = torch.einsum("ni,koi->kno", x.squeeze(0), w.head)
        y = (h @ per_k.flatten(1)).unflatten(1, (N, O))
        return y if b is None else y + b.unsqueeze(1)
    rows = x.reshape(B * N, I)
    each = h if N == 1 else h.repeat_interleave(N, 0)  # the features of each row's network
    if O <= I:
        per_k = F.linear(rows, w.head.reshape(K * O, I)).view(B * N, K, O)
        if N == 1 and b is not None:
            return torch.baddbmm(b.unsqueeze(1), each.unsqueeze(1), per_k)
        y = torch.bmm(each.unsqueeze(1), per_k).view(B, N, O)
    else:
        outer = (each.unsqueeze(2) * rows.unsqueeze(1)).view(B * N, K * I)
        y = (outer @ w.head.mT.reshape(K * I, O)).view(B, N, O)
    return y if b is None else y + b.unsqueeze(1)


def low_rank(x: Tensor, w: LowRank, b: Tensor | None) -> Tensor:
    """``base x + scale U (V^T x)``; shapes as for `generated`."""
    update = w.scale * (x @ w.v) @ w.u.mT
    y = F.linear(x, w.base) + update
    return y if b is None else y + b.unsqueeze(1)


def scaled(x: Tensor, w: Scaled, b: Tensor | None) -> Tensor:
    """``row * (base (column * x))``; shapes as for `generated`."""
    y = F.linear(x if w.column is None else x * w.column.unsqueeze(1), w.base)
    if w.row is not None:
        y = y * w.row.unsqueeze(1)
    return y if b is None else y + b.unsqueeze(1)


CONTRACT: dict[type, Any] = {Generated: generated, LowRank: low_rank, Scaled: scaled, Grouped: grouped}


def contract(input: Any, weight: Any, bias: Any = None) -> Any:
    """`F.linear` with a structured weight; a dense one takes bmm."""
    if not isinstance(weight, STRUCTURED):
        return bmm.RULE(input, weight, bias)
    O, I = shape_of(weight)
    if not isinstance(input, Tensor) or input.dim() < 2 or input.shape[-1] != I:
        return NotImplemented
    if input.dtype != data_of(weight).dtype:
        return NotImplemented
    if bias is not None and (not isinstance(bias, Tensor) or bias.dim() != 2 or bias.shape[-1] != O):
        return NotImplemented
    return with_rows(CONTRACT[type(weight)], input, weight, bias)


contract.dense = bmm.RULE.__name__  # type: ignore[attr-defined]  # what answers where no weight has factors


def transpose(input: Any, dim0: Any = 0, dim1: Any = 1) -> Any:
    """`w.t()`, `w.T`, `w.mT` and `w.transpose(0, 1)` of a structured weight keep its structure."""
    swaps = isinstance(dim0, int) and isinstance(dim1, int) and {dim0 % 2, dim1 % 2} == {0, 1}
    return input.transposed() if isinstance(input, STRUCTURED) and swaps else NotImplemented


def matmul(input: Any, other: Any) -> Any:
    """`x @ w` and `w @ x` with a structured w."""
    if isinstance(other, STRUCTURED) and isinstance(input, Tensor):
        return contract(input, other.transposed())
    if isinstance(input, STRUCTURED) and isinstance(other, Tensor):
        if other.dim() == 2:
            return contract(other, input)
        y = contract(other.mT, input)
        return y if y is NotImplemented else y.mT
    return NotImplemented


def mm(input: Any, mat2: Any) -> Any:
    """`torch.mm`, as `matmul`."""
    return matmul(input, mat2)


def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """`addmm(b, x, w)` with a structured w; b is one row for all, or a matrix."""
    product = matmul(mat1, mat2)
    if product is NotImplemented or not isinstance(input, Tensor) or input.dim() not in (2, 3):
        return NotImplemented
    return beta * (input.unsqueeze(1) if input.dim() == 2 else input) + alpha * product


def einsum(equation: Any, *operands: Any) -> Any:
    """A product of one tensor and one structured weight over one of the weight's letters."""
    if len(operands) != 2 or not isinstance(equation, str) or "..." in equation or "->" not in equation:
        return NotImplemented
    terms, out = equation.replace(" ", "").split("->")
    letters = terms.split(",")
    if isinstance(operands[0], STRUCTURED):
        letters, operands = letters[::-1], operands[::-1]
    (xs, ws), (x, w) = letters, operands
    if not isinstance(w, STRUCTURED) or not isinstance(x, Tensor) or len(set(xs)) != len(xs) or len(set(ws)) != 2:
        return NotImplemented
    summed = [c for c in ws if c in xs]
    if len(summed) != 1 or summed[0] in out or set(out) != set(xs + ws) - set(summed):
        return NotImplemented
    (i,), (o,) = summed, [c for c in ws if c != summed[0]]
    moved = x.movedim(1 + xs.index(i), -1)
    y = contract(moved, w if ws == o + i else w.transposed())
    have = xs.replace(i, "") + o
    return y if y is NotImplemented else y.permute(0, *(1 + have.index(c) for c in out))


def keep(leaf: Leaf, load: Load) -> Choice:
    """Matrices and kernels of a shared base keep their factors; of what is left, biases are small, kernels cannot."""
    if isinstance(leaf, Grouped):
        return Choice(leaf, form_of(leaf), "many rows use one network")
    if isinstance(leaf, STRUCTURED) and len(leaf.shape) == 2:
        return Choice(leaf, form_of(leaf), "a matrix stays in its factors")
    if isinstance(leaf, STRUCTURED) and keeps(leaf):
        return Choice(leaf, form_of(leaf), "a convolution that pays stays with the shared base")
    why = "the hypernetwork gives it dense" if isinstance(leaf, Tensor) else "only matrices contract"
    return Choice(materialize(leaf), "dense", why)


def form_of(leaf: Structured) -> str:
    """How a linear layer with this weight is computed."""
    if not isinstance(leaf, Generated):
        return {LowRank: "low rank", Scaled: "scaled", Grouped: "dense, rows grouped by network"}[type(leaf)]
    return contracted(*shape_of(leaf))


def contracted(O: int, I: int) -> str:
    """How `generated` computes a layer of this shape."""
    return "contracted, head first" if O <= I else "contracted, outer product first"


TABLE: dict[Any, Any] = {
    F.linear: contract,
    **dict.fromkeys([torch.matmul, Tensor.matmul, Tensor.__matmul__], matmul),
    **dict.fromkeys([torch.mm, Tensor.mm], mm),
    **dict.fromkeys([torch.addmm, Tensor.addmm], addmm),
    torch.einsum: einsum,
    **dict.fromkeys([torch.t, Tensor.t, torch.transpose, Tensor.transpose], transpose),
    **dict.fromkeys([Tensor.T.__get__, Tensor.mT.__get__], transpose),  # type: ignore[attr-defined]
    **KERNELS,
}

PATH = Path("contracted", TABLE, keep)
