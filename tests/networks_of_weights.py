"""More main networks: those that handle their weights, and those that nest transforms. See `networks`."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
import torch.nn.functional as F
from cases import TOLERANCE
from networks import Collection
from torch import Tensor
from torch.utils.checkpoint import checkpoint

HANDLING = Collection()
"""Weights are tensors; a main network may do with them what it likes."""

Pair = namedtuple("Pair", "first second")

HANDLING.lines(
    t=lambda x, w: x @ w.t(),
    T=lambda x, w: x @ w.T,
    mT=lambda x, w: x @ w.mT,
    transpose=lambda x, w: x @ w.transpose(0, 1),
    transpose_negative=lambda x, w: x @ w.transpose(-1, -2),
    transpose_by_name=lambda x, w: x @ w.transpose(dim0=0, dim1=1),
    transpose_function=lambda x, w: x @ torch.transpose(w, 1, 0),
    transpose_not=lambda x, w: x @ w.transpose(0, 0).T,
    transpose_twice=lambda x, w: F.linear(x, w.T.T),
    permute=lambda x, w: x @ w.permute(1, 0),
    swapaxes=lambda x, w: x @ w.swapaxes(0, 1),
    adjoint=lambda x, w: x @ w.adjoint(),
    matmul=lambda x, w: torch.matmul(x, w.t()),
    matmul_by_name=lambda x, w: torch.matmul(input=x, other=w.T),
    matmul_left=lambda x, w: w @ x.T,
    matmul_left_method=lambda x, w: w.matmul(x.mT),
    matmul_left_batched=lambda x, w: w @ x.T.expand(2, 3, *x.T.shape),
    matmul_right_batched=lambda x, w: x.expand(2, 3, *x.shape) @ w.T,
    mm=lambda x, w: x.mm(w.T),
    mm_by_name=lambda x, w: torch.mm(x, mat2=w.T),
    mv=lambda x, w: torch.mv(w, x[0]),
    matrix_vector=lambda x, w: w @ x[0],
    vector_matrix=lambda x, w: x[0] @ w.T,
    bmm=lambda x, w: torch.bmm(x[None], w.T[None])[0],
    inner=lambda x, w: torch.inner(x, w),
    tensordot=lambda x, w: torch.tensordot(x, w, ([1], [1])),  # type: ignore[arg-type]
    einsum=lambda x, w: torch.einsum("ni,oi->no", x, w),
    einsum_weight_first=lambda x, w: torch.einsum("oi,ni->on", w, x),
    einsum_transposed=lambda x, w: torch.einsum("ni,io->no", x, w.T),
    einsum_implicit=lambda x, w: torch.einsum("ni,oi", x, w),
    einsum_implicit_reordered=lambda x, w: torch.einsum("bi,ai", x, w),
    einsum_list=lambda x, w: torch.einsum("ni,oi->no", [x, w]),
    einsum_dots=lambda x, w: torch.einsum("...i,oi->...o", x, w),
    einsum_sums_all=lambda x, w: torch.einsum("ni,oi->n", x, w),
    einsum_sums_inputs=lambda x, w: torch.einsum("ni,oi->o", x, w),
    einsum_keeps_both=lambda x, w: torch.einsum("ni,oi->noi", x, w),
    einsum_weight_alone=lambda x, w: torch.einsum("oi->io", w),
    einsum_three=lambda x, w: torch.einsum("ni,oi,mi->nom", x, w, x),
    einsum_of_a_vector=lambda x, w: torch.einsum("i,oi->o", x[0], w),
    einsum_with_itself=lambda x, w: torch.einsum("oi,pi->op", w, w),
    row_slice=lambda x, w: F.linear(x, w[:1]),
    column_slice=lambda x, w: x[:, 1:] @ w[:, 1:].T,
    one_row=lambda x, w: x @ w[0],
    cat=lambda x, w: F.linear(x, torch.cat([w, 2 * w])),
    cat_transposed=lambda x, w: x @ torch.cat([w.T, w.T], 1),
    stack=lambda x, w: torch.stack([w, w]).sum(0) @ x.T,
    chunk=lambda x, w: x @ torch.cat(w.chunk(2)[::-1]).T,
    split=lambda x, w: x @ torch.cat(w.split([w.shape[0] - 1, 1])[::-1]).T,
    split_and_multiplied=lambda x, w: torch.cat([F.linear(x, part) for part in torch.split(w, 1)], 1),
    expanded_to_the_batch=lambda x, w: torch.bmm(w.expand(len(x), *w.shape), x[:, :, None])[..., 0],
    expanded_in_einsum=lambda x, w: torch.einsum("ni,noi->no", x, w.expand(len(x), -1, -1)),
    repeated_for_the_batch=lambda x, w: (x[:, None] * w.repeat(len(x), 1, 1)).sum(-1),
    unbind=lambda x, w: sum(x @ row for row in w.unbind()),
    iterate=lambda x, w: sum(x @ row for row in w),
    unpack=lambda x, w: x @ [*w][-1],
    length=lambda x, w: F.linear(x, w) / len(w),
    index_select=lambda x, w: F.linear(x, w.index_select(0, torch.tensor([1, 0]))),
    twice=lambda x, w: F.linear(F.linear(x, w).tanh(), w.T),
    autoencoder=lambda x, w: (x @ w.T).tanh() @ w,
    gram_of_weights=lambda x, w: x @ (w.T @ w),
    gram_of_weights_other=lambda x, w: F.linear(x, w).mean() + w @ w.T,
    normalized=lambda x, w: F.linear(x, w / w.norm()),
    normalized_rows=lambda x, w: F.linear(x, F.normalize(w, dim=1)),
    standardized=lambda x, w: F.linear(x, (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True)),
    positive=lambda x, w: F.linear(x, F.softplus(w)),
    masked=lambda x, w: F.linear(x, torch.where(w > 0, w, 0.0)),
    triangular=lambda x, w: F.linear(x, w.tril()),
    clone=lambda x, w: F.linear(x, w.clone()),
    contiguous=lambda x, w: F.linear(x, w.contiguous()),
    detach=lambda x, w: F.linear(x, w.detach()) + F.linear(x, w),
    requires_grad=lambda x, w: F.linear(x, w) * (2 if w.requires_grad else 1),
    view=lambda x, w: F.linear(x, w.view(-1).view(w.shape)),
    flatten=lambda x, w: x.sum() * w.flatten(),
    like=lambda x, w: F.linear(x, torch.ones_like(w) + w.new_ones(w.shape)) + w.sum(),
    decay=lambda x, w: {"y": F.linear(x, w), "penalty": w.square().sum()},
    returns_its_weight=lambda x, w: w,
    returns_its_weight_beside=lambda x, w: (F.linear(x, w), [w, {"transposed": w.T}]),
    returns_its_input=lambda x, w: x,
    one_dim=lambda x, w: F.linear(x[0], w),
    four_dims=lambda x, w: F.linear(x.expand(2, 3, *x.shape), w),
    weight_of_one_dim=lambda x, w: F.linear(x, w[0]),
    by_name=lambda x, w: F.linear(input=x, weight=w, bias=None),
    constant_input=lambda x, w: F.linear(torch.ones_like(x), w) + F.linear(x.new_ones(x.shape), w),
    constant_input_shared=lambda x, w: F.linear(torch.eye(x.shape[1], dtype=x.dtype), w),
    constant_weight=lambda x, w: F.linear(x, w.new_ones(w.shape)) * w.mean(),
    aten=lambda x, w: torch.ops.aten.linear.default(x, w),
    aten_mm=lambda x, w: torch.ops.aten.mm(x, w.T),
    gradient_of_the_input=lambda x, w: torch.func.grad(lambda x: F.linear(x, w).tanh().sum())(x),
    jacobian_of_the_input=lambda x, w: torch.func.jacrev(lambda r: F.linear(r, w).tanh())(x[0]),
    tangent_of_the_input=lambda x, w: torch.func.jvp(lambda x: F.linear(x, w).tanh(), (x,), (x.cos(),))[1],
    hessian_of_the_input=lambda x, w: torch.func.hessian(lambda r: F.linear(r, w).tanh().sum())(x[0]),
    vmap_over_rows=lambda x, w: torch.func.vmap(lambda r: F.linear(r, w).tanh())(x),
    vmap_of_grad=lambda x, w: torch.func.vmap(torch.func.grad(lambda r: F.linear(r, w).tanh().sum()))(x),
)
HANDLING.lines(
    refusable="by others",
    gradient_of_the_weight=lambda x, w: torch.func.grad(lambda w: F.linear(x, w).tanh().sum())(w),
    tangent_of_the_weight=lambda x, w: torch.func.jvp(lambda w: F.linear(x, w).tanh(), (w,), (w.cos(),))[1],
    jacobian_of_the_weight=lambda x, w: torch.func.jacfwd(lambda w: F.linear(x[0], w).tanh())(w),
    vmap_over_the_weight=lambda x, w: torch.func.vmap(lambda row: x @ row)(w),
    vmap_over_both=lambda x, w: torch.func.vmap(lambda a, b: a * b.sum(), (1, 1))(x, w),
    autograd_inside=lambda x, w: torch.autograd.grad(F.linear(x, w).tanh().sum(), w, create_graph=True)[0],
    data=lambda x, w: F.linear(x, w.data) * w.sum(),
    item_of_the_weight=lambda x, w: F.linear(x, w) * w.sum().item(),
)
HANDLING.lines(
    refusable="by all",
    checkpointed=lambda x, w: checkpoint(lambda x: F.linear(x, w).tanh(), x, use_reentrant=False),
    scaled_in_place=lambda x, w: F.linear(x, w.mul_(2)),
    scaled_in_place_before=lambda x, w: (w.mul_(2), F.linear(x, w))[1],
    cleared_in_place=lambda x, w: (w.select(0, 0).zero_(), F.linear(x, w))[1],
    activated_in_place=lambda x, w: (F.relu(w, inplace=True), F.linear(x, w))[1],
    changed_by_aten=lambda x, w: (torch.ops.aten.mul_(w, 2), F.linear(x, w))[1],
    changed_through_a_view=lambda x, w: (w.detach()[0].mul_(2), F.linear(x, w))[1],
    changed_by_foreach=lambda x, w: (torch._foreach_mul_([w], 2.0), F.linear(x, w))[1],
    embedding_renormalised=lambda x, w: F.embedding(torch.tensor([0, 1]), w, max_norm=0.1) @ x.T,
)


@HANDLING(refusable="by all")
def assigned_in_place(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    b[0] = 0.0
    return F.linear(x, w, b)


@HANDLING(w="OI", b="O", s="")
def addmm(x: Tensor, w: Tensor, b: Tensor, s: Tensor) -> Any:
    return {
        "plain": torch.addmm(b, x, w.t()),
        "method": b.addmm(x, w.T),
        "scaled": torch.addmm(b, x, w.t(), beta=0.5, alpha=2),
        "by name": torch.addmm(b, mat1=x, mat2=w.t()),
        "a number": torch.addmm(s, x, w.t()),
        "a matrix": torch.addmm(x @ w.T, x, w.t(), beta=2),
        "weight first": torch.addmm(x.sum(1), w, x.t()),
        "column": torch.addmm(b.unsqueeze(1), w, x.t()),
    }


@HANDLING(w="OI", b="O", s="O")
def biases_of_every_form(x: Tensor, w: Tensor, b: Tensor, s: Tensor) -> Any:
    return {
        "named": F.linear(x, weight=w, bias=b),
        "scaled": F.linear(x, w, b * s),
        "matrix": F.linear(x, w, b + x[:, :1]),
        "one": F.linear(x, w, s[:1]),
        "constant": F.linear(x, w, torch.ones_like(b)),
        "shared": F.linear(x, w, torch.arange(len(b), dtype=b.dtype)),
        "only bias": F.linear(x, torch.ones(len(b), x.shape[1], dtype=x.dtype), b),
        "outside": x @ w.T + b,
    }


@HANDLING(w="OII", b="O")
def bilinear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.bilinear(x, x.flip(0), w, b)


@HANDLING(w="OI", b="O", v="LO", a="", g="")
def of_zero_dims(x: Tensor, w: Tensor, b: Tensor, v: Tensor, a: Tensor, g: Tensor) -> Tensor:
    return g * F.linear(F.prelu(F.linear(x, w, b), a.unsqueeze(0)), v)


class Squared(torch.autograd.Function):
    """A function of two tensors with a backward of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]
        return (x.unsqueeze(-2) * w).sum(-1).square()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, w = ctx.saved_tensors
        outer = 2 * (grad * (x.unsqueeze(-2) * w).sum(-1)).unsqueeze(-1)
        return (outer * w).sum(-2), (outer * x.unsqueeze(-2)).sum(0)


class Opaque(Squared):
    """The same, without a way through vmap."""

    generate_vmap_rule = False


HANDLING.lines(to=lambda x, w: F.linear(x.float(), w.to(torch.float32)), tolerance=TOLERANCE[torch.float32])
HANDLING.lines(autograd_function=lambda x, w: Squared.apply(x, w))
HANDLING.lines(autograd_function_of_outputs=lambda x, w: Squared.apply(F.linear(x, w), w @ w.T))
HANDLING.lines(refusable="by others", opaque_function=lambda x, w: Opaque.apply(x, w))
