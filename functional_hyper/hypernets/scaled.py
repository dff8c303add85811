"""`scaled`: a shared base with generated scales of its rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from .. import initializers
from .._errors import bad
from ..initializers import Initializer
from ..params import ParamSpec
from ..slots import Slot
from ..weights import Scaled
from ._adapters import Adapter, Part
from ._hypernet import Hypernet, base_of
from ._trunk import trunk_of


def scaled(
    spec: ParamSpec,
    in_features: int,
    hidden: Sequence[int] = (64,),
    *,
    scale: Literal["row", "column", "both"] = "row",
    base: Any = None,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    layer_norm: bool = False,
    init: str | Initializer = "ordinary",
) -> Hypernet:
    """A hypernetwork of scales: ``W_b = row_b * base * column_b``, the scales 1 plus a part linear in the features.

    The generated part starts at zero, so that the first weights are the base. Parameters of fewer than two dims are
    base plus a dense generated part (with it, row scales are FiLM); a kernel is the matrix ``(O, I kh kw)``.

    Args:
        spec: the main network's parameters, P numbers.
        in_features: the width of the cond.
        hidden: widths of the trunk; the last is K.
        scale: which sides of the matrix: outputs ("row"), inputs ("column") or "both".
        base: None for a learned base, drawn by `init`; or flat ``(P,)`` or a pytree of the spec, frozen.
        activation, layer_norm, init: as for `full`; `init` draws the base.

    Returns:
        A `Hypernet` with phi ``trunk.*``, ``head.<slot>.row`` ``(K + 1, O)``, ``head.<slot>.column`` ``(K + 1, I)``,
        and ``base.<slot>`` where it is learned; its `weights` are `Scaled` leaves.

    Ha, Dai, Le, "HyperNetworks" (ICLR 2017), section 3.2; Wen et al., "BatchEnsemble" (ICLR 2020); Perez et al.,
    "FiLM" (AAAI 2018).
    """
    if scale not in ("row", "column", "both"):
        raise bad("scaled(scale=...)", "'row', 'column' or 'both'", repr(scale), "name the side to scale")
    trunk = trunk_of("scaled(...)", spec, in_features, hidden, activation, layer_norm)
    title = f"scaled(in_features={in_features}, hidden={trunk.hidden}, scale={scale!r})"
    rule = initializers.resolve(init)
    return Adapter(spec, trunk, rule, base_of(spec, base), partial(_parts, scale), _leaf, title).hypernet()


def _parts(scale: str, slot: Slot) -> list[Part]:
    sides = {"row": slot.shape[0], "column": math.prod(slot.shape[1:])}
    return [Part(name, (size,)) for name, size in sides.items() if scale in (name, "both")]


def _leaf(base: Tensor, factors: dict[str, Tensor]) -> Scaled:
    one = {name: 1 + part for name, part in factors.items()}
    return Scaled(base, one.get("row"), one.get("column"))
