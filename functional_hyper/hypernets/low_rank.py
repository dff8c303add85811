"""`low_rank`: a shared base and a generated update of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .. import initializers
from .._errors import bad
from ..initializers import Initializer
from ..params import ParamSpec
from ..slots import Slot
from ..weights import LowRank
from ._adapters import Adapter, Part
from ._hypernet import Hypernet, base_of
from ._trunk import trunk_of


def low_rank(
    spec: ParamSpec,
    in_features: int,
    hidden: Sequence[int] = (64,),
    *,
    rank: int = 4,
    alpha: float | None = None,
    base: Any = None,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    layer_norm: bool = False,
    init: str | Initializer = "ordinary",
) -> Hypernet:
    """A hypernetwork of low-rank updates: ``W_b = base + (alpha / rank) U_b V_b^T``, U and V linear in the features.

    U starts at zero and V at random, so that the first weights are the base and the first gradient moves U. Parameters
    of fewer than two dims are base plus a dense generated part; a kernel is the matrix ``(O, I kh kw)``.

    Args:
        spec: the main network's parameters, P numbers.
        in_features: the width of the cond.
        hidden: widths of the trunk; the last is K.
        rank: r, the rank of the update.
        alpha: the update's scale; None is `rank`.
        base: None for a learned base, drawn by `init`; or flat ``(P,)`` or a pytree of the spec, frozen.
        activation, layer_norm, init: as for `full`; `init` draws the base.

    Returns:
        A `Hypernet` with phi ``trunk.*``, ``head.<slot>.u`` ``(K + 1, O, r)``, ``head.<slot>.v`` ``(K + 1, I, r)``,
        and ``base.<slot>`` where it is learned; its `weights` are `LowRank` leaves.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022), one update per network.
    """
    if rank < 1:
        raise bad("low_rank(rank=...)", "a rank >= 1", rank, "give a positive rank")
    trunk = trunk_of("low_rank(...)", spec, in_features, hidden, activation, layer_norm)
    leaf = partial(_leaf, (rank if alpha is None else alpha) / rank)
    title = f"low_rank(in_features={in_features}, hidden={trunk.hidden}, rank={rank})"
    rule = initializers.resolve(init)
    return Adapter(spec, trunk, rule, base_of(spec, base), partial(_parts, rank), leaf, title).hypernet()


def _parts(rank: int, slot: Slot) -> list[Part]:
    O, I = slot.shape[0], math.prod(slot.shape[1:])
    return [Part("u", (O, rank)), Part("v", (I, rank), 1 / math.sqrt(max(I, 1)))]


def _leaf(scale: float, base: Tensor, factors: dict[str, Tensor]) -> LowRank:
    return LowRank(base, factors["u"], factors["v"], scale)
