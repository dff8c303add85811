"""What `low_rank` and `scaled` share: a base for every parameter, and small heads that start with no effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import initializers
from .._types import Cond, Phi, PyTree
from ..initializers import Initializer
from ..params import ParamSpec
from ..slots import Draw, Slot
from ..weights import Leaf, map_leaves
from ._hypernet import Drawn, Hypernet, has_base
from ._trunk import Trunk, power_of


@dataclass(frozen=True)
class Part:
    """One factor of a slot: its name, its shape per network, and the standard deviation it starts with around 0."""

    name: str
    shape: tuple[int, ...]
    std: float = 0.0


@dataclass(frozen=True)
class Adapter(Drawn):
    """A shared base, learned or the caller's, and per-network factors from small heads ``(K + 1, *shape)``.

    `parts` lists a matrix slot's factors, `leaf` builds its leaf from base and factors; a slot of fewer than two dims
    is base plus one dense factor.
    """

    spec: ParamSpec
    trunk: Trunk
    initializer: Initializer
    base: dict[str, Tensor] | None
    parts: Callable[[Slot], list[Part]]
    leaf: Callable[[Tensor, dict[str, Tensor]], Leaf]
    title: str

    @property
    def in_features(self) -> int:
        return self.trunk.in_features

    def _parts(self, slot: Slot) -> list[Part]:
        return self.parts(slot) if len(slot.shape) > 1 else [Part("delta", slot.shape)]

    def draw(self, generator: torch.Generator, dtype: torch.dtype) -> Phi:
        phi = self.trunk.init(generator, dtype)
        power = power_of(self.trunk, self.initializer, phi, self.trunk)
        for slot in self.spec.slots:
            for part in self._parts(slot):
                like = Slot(part.name, part.shape, slot.kind, slot.is_bias, 0, 0, 1, slot.draw)
                rows = (part.std / power**0.5, Draw("constant", 0.0))
                head = initializers.draw_rows(self.trunk.width, like, *rows, generator, dtype)
                phi[f"head.{slot.name}.{part.name}"] = head
            if self.base is None:
                phi[f"base.{slot.name}"] = initializers.draw_base(slot, self.initializer, generator, dtype)
        return phi

    def weights(self, phi: Phi, cond: Cond) -> PyTree:
        features = self.trunk.with_one(phi, cond)

        def leaf(i: int) -> Leaf:
            slot = self.spec.slots[i]
            base = phi[f"base.{slot.name}"] if self.base is None else self.base[slot.name].to(features)
            factors = {}
            for part in self._parts(slot):
                flat = features @ phi[f"head.{slot.name}.{part.name}"].reshape(features.shape[-1], -1)
                factors[part.name] = flat.unflatten(-1, part.shape) if part.shape else flat.squeeze(-1)
            return self.leaf(base, factors) if len(slot.shape) > 1 else base + factors["delta"]

        return map_leaves(leaf, self.spec.template)

    def rebase(self, base: Any) -> Hypernet:
        raise has_base(self.title.partition("(")[0])

    def __repr__(self) -> str:
        return self.title
