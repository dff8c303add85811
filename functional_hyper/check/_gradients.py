"""Checks by derivatives: what the loss says to phi, and what the cond says to the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import optree
import torch
from torch import Tensor
from torch.func import jvp

from .._errors import bad
from .._types import Cond, Inputs, Phi
from ..compose import Model
from ..hypernets import Hypernet
from ._table import Table, dense

Loss = Callable[[Any], Tensor]


def mean_square(y: Any) -> Tensor:
    """The mean square of every floating output: the loss of `gradient_flow` where none is given."""
    tensors = [t for t in optree.tree_leaves(y) if isinstance(t, Tensor) and t.is_floating_point()]
    if not tensors:
        raise bad("check.gradient_flow(loss=...)", "floating outputs", "none", "give loss=, a function of the output")
    return torch.stack([t.square().mean() for t in tensors]).mean()


def _slopes(value: Tensor, phi: Phi, keep: bool = False) -> dict[str, Tensor | None]:
    if not value.requires_grad:
        return dict.fromkeys(phi)
    grads = torch.autograd.grad(value, list(phi.values()), allow_unused=True, retain_graph=keep)
    return dict(zip(phi, grads, strict=True))


def _norms(slopes: Mapping[str, Tensor | None]) -> dict[str, float | None]:
    return {k: None if g is None else g.norm().item() for k, g in slopes.items()}


def _alive(phi: Phi, noise: torch.Generator | None = None) -> Phi:
    """phi as tensors of their own that require grad; with `noise`, small numbers in place of its zeros."""

    def leaf(v: Tensor) -> Tensor:
        v = v.detach()
        if noise is not None and v.is_floating_point():
            v = torch.where(v == 0, 0.1 * torch.randn(v.shape, generator=noise).to(v), v)
        return v.requires_grad_() if v.is_floating_point() else v

    return {k: leaf(v) for k, v in phi.items()}


def gradient_flow(
    model: Model, phi: Phi, cond: Cond, x: Inputs, index: Tensor | None = None, *, loss: Loss | None = None
) -> Table:
    """Does the loss's gradient reach every tensor of phi, and does every generated weight depend on phi?

    A gradient of zero is suspicious where it stays zero when every zero in phi is replaced by a small random number.
    Where it does not, as in the first step of `with_base` and `low_rank`, whose heads start at zero, it is only noted.

    Args:
        model: what `compose` returned.
        phi: the hypernetwork's parameters, neither changed nor given a ``.grad``.
        cond, x, index: what the model is called with: B conds, and x ``(B, ...)``.
        loss: from the model's output to a scalar; None is the mean square.

    Returns:
        A row ``phi[<name>]`` for each tensor: the `norm` of the loss's gradient, None where no graph leads to it; and a
        row ``theta[<slot>]`` for each slot: the norm of the gradient, over all of phi, of a random projection of its
        weights ``(B, *shape)``, which is zero or None where a ``.detach()`` or ``torch.no_grad()`` in the hypernetwork
        cuts them off. `note` says what is known of a zero.

    Raises:
        HyperError: a loss that is no scalar, or no floating output for the default one.

    Example:
        >>> import functional_hyper as fh
        >>> main = torch.nn.Linear(3, 2)
        >>> model = fh.compose(fh.full(fh.param_spec(main), in_features=4), main)
        >>> fh.check.gradient_flow(model, model.hyper.init(), torch.randn(5, 4), torch.randn(5, 3)).ok
        True
    """

    def slopes(phi: Phi) -> dict[str, Tensor | None]:
        value = (loss or mean_square)(model(phi, cond, x, index))
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise bad("check.gradient_flow(loss=...)", "a function to a scalar tensor", got, "take a mean")
        return _slopes(value.sum(), {k: v for k, v in phi.items() if v.requires_grad})

    rows, reasons = [], []
    with torch.enable_grad():
        live = _alive(phi)
        norms = _norms(slopes(live))
        moved = _norms(slopes(_alive(phi, torch.Generator().manual_seed(0))))
        weights = _projections(model.hyper, live, cond)
    reached = {k for norms_of in weights.values() for k, v in norms_of.items() if v}
    for name, norm in norms.items():
        note = why = ""
        if norm is None or norm == 0:
            if moved[name]:
                note = "zero because of a zero in phi, such as a head that starts there"
            elif name in reached:
                why = "the weights depend on it, the loss does not"
            elif norm is None:
                why = "no weight depends on it: unused, or cut off by .detach() or no_grad()"
            else:
                why = "zero: dead units, conds of zeros, or cut off by .detach() or no_grad()"
        elif not math.isfinite(norm):
            why = "not finite"
        rows.append((f"phi[{name}]", norm, note))
        reasons.append(why)
    for slot, each in weights.items():
        found = [v for v in each.values() if v is not None]
        norm = math.hypot(*found) if found else None
        rows.append((f"theta[{slot}]", norm, ""))
        reasons.append("" if norm else "these weights do not depend on phi: the graph breaks before them")
    return Table("gradient flow", ("name", "norm", "note"), tuple(rows), tuple(reasons))


def _projections(hyper: Hypernet, phi: Phi, cond: Cond) -> dict[str, dict[str, float | None]]:
    """By slot and name, the norm of the gradient of a random projection of the slot's weights."""
    noise = torch.Generator().manual_seed(1)
    live = {k: v for k, v in phi.items() if v.requires_grad}
    out = {}
    for name, w in dense("check.gradient_flow(cond=...)", hyper, phi, cond).items():
        direction = torch.randn(w.shape, generator=noise).to(w)
        out[name] = _norms(_slopes((w * direction).sum(), live, keep=True))
    return out


def sensitivity(hyper: Hypernet, phi: Phi, cond: Cond, *, probes: int | None = None) -> Table:
    """How far do the weights move with the cond: ``|d theta_b / d cond_b|``, the Jacobian's Frobenius norm per sample.

    The norm is exact, from one forward derivative (`torch.func.jvp`) of all samples at once for each number C of a
    sample's cond. With `probes` it is estimated from that many random directions v, of which ``|J v|^2`` is an unbiased
    estimate of ``|J|^2``. Both take for granted that a sample's weights depend on its own cond alone.

    Args:
        hyper, phi: the hypernetwork.
        cond: B floating conds, ``(B, in_features)`` or a pytree of ``(B, ...)`` for an encoder.
        probes: the number of random directions; None is exact.

    Returns:
        A row for each slot: `mean`, `least` and `largest` of the norms ``(B,)``, and `zeros`, the samples for which it
        is zero. A slot with any is suspicious; `with_base`, `low_rank` and `scaled` start so.

    Raises:
        HyperError: task ids or other conds that are not floating, fewer than one probe, a cond without exactly one
            batch dim.

    Example:
        >>> import functional_hyper as fh
        >>> hyper = fh.full(fh.param_spec(torch.nn.Linear(3, 2)), in_features=4)
        >>> fh.check.sensitivity(hyper, hyper.init(), torch.randn(6, 4)).ok
        True
    """
    call = "check.sensitivity(cond=...)"
    leaves, tree = optree.tree_flatten(cond)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise bad(call, "floating conds to differentiate by", got, "see check.diversity for task ids")
    if not leaves or any(leaf.dim() == 0 or not leaf.numel() for leaf in leaves):
        raise bad(call, "at least one number for each sample", "none", "give conds (B, ...)")
    if probes is not None and probes < 1:
        raise bad("check.sensitivity(probes=...)", "at least one direction", probes, "None is exact")
    flat = torch.cat([leaf.detach().reshape(len(leaf), -1) for leaf in leaves], 1)
    own = {k: v.detach() for k, v in phi.items()}

    def theta(flat: Tensor) -> dict[str, Tensor]:
        pieces = flat.split([leaf[0].numel() for leaf in leaves], 1)
        parts = [p.reshape(leaf.shape).to(leaf.dtype) for p, leaf in zip(pieces, leaves, strict=True)]
        return dense(call, hyper, own, optree.tree_unflatten(tree, parts))

    width = flat.shape[1]
    if probes is None:
        directions = torch.eye(width).to(flat).unsqueeze(1).expand(-1, len(flat), -1)
    else:
        noise = torch.Generator().manual_seed(0)
        directions = torch.randn(probes, *flat.shape, generator=noise).to(flat)
    squares: dict[str, Tensor] = {}
    for v in directions:
        for name, tangent in jvp(theta, (flat,), (v,))[1].items():
            square = tangent.detach().flatten(1).square().sum(1) / (probes or 1)
            squares[name] = squares.get(name, 0) + square
    rows, reasons = [], []
    for name, square in squares.items():
        norm = square.sqrt()
        zeros = int((norm == 0).sum())
        rows.append((name, norm.mean().item(), norm.min().item(), norm.max().item(), zeros))
        why = "does not depend on the cond" if zeros == len(norm) else f"zero for {zeros} of {len(norm)} samples"
        reasons.append("not finite" if not bool(norm.isfinite().all()) else why if zeros else "")
    return Table("sensitivity", ("slot", "mean", "least", "largest", "zeros"), tuple(rows), tuple(reasons))
