"""Checks of the generated weights as numbers: their scale, their differences, and what a step changes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._errors import bad, listed
from .._types import Cond, Phi
from ..hypernets import Hypernet
from ..params import leaves_of
from ..weights import Generated
from ._table import Table, measured


def _rms(t: Tensor) -> float:
    return t.square().mean().sqrt().item() if t.numel() else 0.0


def _several(call: str, theta: dict[str, Tensor]) -> None:
    if any(len(w) < 2 for w in theta.values()):
        raise bad(call, "at least two samples to compare", "one", "give conds (B, ...) with B >= 2")


def weight_scale(hyper: Hypernet, phi: Phi, cond: Cond, *, low: float = 0.5, high: float = 2.0) -> Table:
    """Are generated weights as large as the main network's own initial ones?

    Args:
        hyper, phi: the hypernetwork.
        cond: B conds, ``(B, in_features)`` or what the hypernetwork reads.
        low, high: a ratio outside is suspicious; `low` is for slots of at least eight numbers.

    Returns:
        A row for each slot: `std`, the root mean square of the weights ``(B, *shape)`` around the mean of the slot's
        ordinary draw; `ordinary`, that draw's standard deviation; `ratio` of the two. Where the draw is a constant
        (gains of a norm) there is no ratio, and a `std` above `high` is suspicious. The hyperfan initialisers give
        biases more than this on purpose.

    Raises:
        HyperError: a cond without exactly one batch dim.

    Example:
        >>> import functional_hyper as fh
        >>> hyper = fh.full(fh.param_spec(torch.nn.Linear(30, 20)), in_features=4)
        >>> large = {name: 10 * tensor for name, tensor in hyper.init().items()}
        >>> list(fh.check.weight_scale(hyper, large, torch.ones(6, 4)).suspicious)
        ['weight', 'bias']
    """
    theta = measured("check.weight_scale(cond=...)", hyper, phi, cond)
    rows, reasons = [], []
    for slot in hyper.spec.slots:
        std, own = _rms(theta[slot.name] - slot.draw.mean), slot.draw.std
        ratio = std / own if own else None
        rows.append((slot.name, std, own, ratio))
        why = ""
        if not math.isfinite(std):
            why = "not finite"
        elif (std if ratio is None else ratio) > high:
            why = "too large"
        elif ratio is not None and (ratio == 0 or (ratio < low and slot.size >= 8)):
            why = "too small"
        reasons.append(why)
    return Table("weight scale", ("slot", "std", "ordinary", "ratio"), tuple(rows), tuple(reasons))


def diversity(hyper: Hypernet, phi: Phi, cond: Cond, *, least: float = 1e-3) -> Table:
    """Do samples get different weights?

    `with_base`, `low_rank`, `scaled`, "bias_hyperinit" and the gains of a norm start with weights that all samples
    share; for them, look again after some steps.

    Args:
        hyper, phi: the hypernetwork.
        cond: B >= 2 conds that differ, ``(B, in_features)`` or what the hypernetwork reads.
        least: a smaller ratio is suspicious.

    Returns:
        A row for each slot: `spread`, the standard deviation over samples ``(B,)``, root mean square over the weights;
        `scale`, the root mean square of the weights themselves; `ratio` of the two.

    Raises:
        HyperError: a cond without exactly one batch dim, or of one sample.

    Example:
        >>> import functional_hyper as fh
        >>> hyper = fh.with_base(fh.full(fh.param_spec(torch.nn.Linear(3, 2)), in_features=4))
        >>> fh.check.diversity(hyper, hyper.init(), torch.randn(6, 4)).suspicious
        {'weight': 'all samples share it', 'bias': 'all samples share it'}
    """
    call = "check.diversity(cond=...)"
    theta = measured(call, hyper, phi, cond)
    _several(call, theta)
    rows, reasons = [], []
    for name, w in theta.items():
        spread, scale = _rms(w.std(0, correction=0)), _rms(w)
        ratio = spread / scale if scale else 0.0
        rows.append((name, spread, scale, ratio))
        reasons.append("" if ratio >= least else "all samples share it" if math.isfinite(ratio) else "not finite")
    return Table("diversity", ("slot", "spread", "scale", "ratio"), tuple(rows), tuple(reasons))


def dead_heads(hyper: Hypernet, phi: Phi, cond: Cond, *, most: float = 0.5) -> Table:
    """Which weights never change, and which features of the trunk are always zero?

    Args:
        hyper, phi: the hypernetwork.
        cond: B >= 2 conds that differ, ``(B, in_features)`` or what the hypernetwork reads.
        most: a larger share of dead features is suspicious; of weights, a single one is.

    Returns:
        A row for each slot: `dead` of `of` weights vary over the samples by no more than rounding. Where the
        hypernetwork gives `Generated` leaves, a row ``features[<slot>]`` for each ``(B, K)`` that a head reads, named
        after its first slot: `dead` of K are zero for all samples, as ReLUs are whose bias is far below zero.

    Raises:
        HyperError: a cond without exactly one batch dim, or of one sample.

    Example:
        >>> import functional_hyper as fh
        >>> hyper = fh.full(fh.param_spec(torch.nn.Linear(3, 2)), in_features=4, hidden=(16,))
        >>> phi = hyper.init()
        >>> below = phi | {"trunk.0.bias": phi["trunk.0.bias"] - 100}
        >>> fh.check.dead_heads(hyper, below, torch.randn(6, 4))["features[weight]"]["dead"]
        16
    """
    call = "check.dead_heads(cond=...)"
    theta = measured(call, hyper, phi, cond)
    _several(call, theta)
    rows: list[tuple[Any, ...]] = []
    reasons = []
    for name, w in theta.items():
        constant = w.amax(0) - w.amin(0) <= 16 * torch.finfo(w.dtype).eps * _rms(w)
        dead = int(constant.sum())
        rows.append((name, dead, constant.numel(), dead / max(constant.numel(), 1)))
        reasons.append("weights that do not depend on the cond" if dead else "")
    seen: list[Tensor] = []
    with torch.no_grad():
        leaves = leaves_of(call, hyper.spec, hyper.weights(phi, cond))
    for name, leaf in zip(hyper.spec.names, leaves, strict=True):
        if not isinstance(leaf, Generated) or any(leaf.features is s for s in seen):
            continue
        seen.append(leaf.features)
        zero = (leaf.features == 0).all(0)
        zero = zero[: zero.numel() - int(bool((leaf.features[..., -1] == 1).all()))]  # the bias's 1 is no feature
        dead = int(zero.sum())
        share = dead / max(zero.numel(), 1)
        rows.append((f"features[{name}]", dead, zero.numel(), share))
        reasons.append("features that are zero for all samples" if share > most else "")
    return Table("dead heads", ("name", "dead", "of", "share"), tuple(rows), tuple(reasons))


def update(hyper: Hypernet, before: Phi, after: Phi, cond: Cond, *, most: float = 0.5) -> Table:
    """What a step of the optimiser changed, in phi and in the weights.

    Args:
        hyper: the hypernetwork.
        before, after: phi before and after the step. An optimiser writes in place: keep
            ``{k: v.detach().clone() for k, v in phi.items()}``.
        cond: B conds, ``(B, in_features)`` or what the hypernetwork reads.
        most: generated weights that change by a larger part of their norm are suspicious.

    Returns:
        A row ``phi[<name>]`` for each tensor and ``theta[<slot>]`` for each slot's weights ``(B, *shape)``: `norm`
        before, the norm of the `change`, and `relative`, their ratio (None from zero). What did not change is
        suspicious too.

    Raises:
        HyperError: different names or shapes in `before` and `after`, or a cond without exactly one batch dim.

    Example:
        >>> import functional_hyper as fh
        >>> hyper = fh.full(fh.param_spec(torch.nn.Linear(3, 2)), in_features=4, hidden=())
        >>> before = hyper.init()
        >>> after = before | {"head.bias": before["head.bias"] * 1.01}
        >>> list(fh.check.update(hyper, before, after, torch.ones(6, 4)).suspicious)
        ['phi[head.weight]', 'theta[weight]']
    """
    shapes = [{k: tuple(v.shape) for k, v in phi.items()} for phi in (before, after)]
    if shapes[0] != shapes[1]:
        wrong = [k for k in {**shapes[0], **shapes[1]} if shapes[0].get(k) != shapes[1].get(k)]
        mend = "give phi of one hypernetwork at two times"
        raise bad("check.update(after=...)", "the names and shapes of `before`", f"other {listed(wrong)}", mend)
    old, new = (measured("check.update(cond=...)", hyper, phi, cond) for phi in (before, after))
    pairs = [(f"phi[{k}]", before[k].detach(), after[k].detach()) for k in before]
    pairs += [(f"theta[{k}]", old[k], new[k]) for k in old]
    rows, reasons = [], []
    for name, was, now in pairs:
        if not was.is_floating_point():
            continue
        norm, change = was.norm().item(), (now - was).norm().item()
        relative = change / norm if norm else None
        rows.append((name, norm, change, relative))
        why = "did not change" if change == 0 else "" if math.isfinite(change) else "not finite"
        if name.startswith("theta") and relative is not None and relative > most and not why:
            why = "a large step"
        reasons.append(why)
    return Table("update", ("name", "norm", "change", "relative"), tuple(rows), tuple(reasons))
