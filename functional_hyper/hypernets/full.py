"""`full`: every weight has its own column of the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .. import initializers
from .._types import Cond, Flat, Phi, PyTree
from ..initializers import Initializer
from ..params import ParamSpec
from ..weights import Generated, map_leaves
from ._hypernet import Drawn, Hypernet
from ._trunk import Trunk, power_of, trunk_of


def full(
    spec: ParamSpec,
    in_features: int,
    hidden: Sequence[int] = (64,),
    *,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    layer_norm: bool = False,
    init: str | Initializer = "ordinary",
) -> Hypernet:
    """A hypernetwork with a trunk and one linear head per parameter: ``theta = head(trunk(cond))``.

    Args:
        spec: the main network's parameters, P numbers.
        in_features: the width of the cond.
        hidden: widths of the trunk; the last is K. Empty: the features are the cond itself.
        activation: after every trunk layer, a name in `torch.nn.functional` or a function.
        layer_norm: a LayerNorm before every activation.
        init: an initialiser or its name: "ordinary", "hyperfan_in", "hyperfan_out", "bias_hyperinit".

    Returns:
        A `Hypernet` with phi ``trunk.*`` and ``head.<slot>`` of shape ``(K + 1, *shape)``, the last row the bias; its
        `weights` are `Generated` leaves.

    Example:
        >>> from functional_hyper import full, param_spec
        >>> hyper = full(param_spec(torch.nn.Linear(3, 2)), in_features=5)
        >>> hyper.apply(hyper.init(), torch.zeros(7, 5)).shape
        torch.Size([7, 8])

    Ha, Dai, Le, "HyperNetworks" (ICLR 2017).
    """
    trunk = trunk_of("full(...)", spec, in_features, hidden, activation, layer_norm)
    return Full(spec, trunk, initializers.resolve(init)).hypernet()


@dataclass(frozen=True)
class Full(Drawn):
    """The functions of `full` as plain data; `base` is where the heads' bias rows start, "draw" for a fresh draw."""

    spec: ParamSpec
    trunk: Trunk
    initializer: Initializer
    base: dict[str, Tensor] | Literal["draw"] | None = None

    @property
    def in_features(self) -> int:
        return self.trunk.in_features

    def draw(self, generator: torch.Generator, dtype: torch.dtype) -> Phi:
        phi = self.trunk.init(generator, dtype)
        power = power_of(self.trunk, self.initializer, phi, self.trunk)
        for slot in self.spec.slots:
            std, constant = self.initializer.rows(slot, power)
            head = initializers.draw_rows(self.trunk.width, slot, std, constant, generator, dtype)
            if self.base is not None:
                start = self.base[slot.name] if self.base != "draw" else None
                head.zero_()
                head[-1] = initializers.draw_base(slot, self.initializer, generator, dtype) if start is None else start
            phi[f"head.{slot.name}"] = head
        return phi

    def weights(self, phi: Phi, cond: Cond) -> PyTree:
        features = self.trunk.with_one(phi, cond)
        slots = self.spec.slots
        return map_leaves(lambda i: Generated(features, phi[f"head.{slots[i].name}"]), self.spec.template)

    def apply(self, phi: Phi, cond: Cond) -> Flat:
        features = self.trunk.with_one(phi, cond)
        width = features.shape[-1]
        heads = [phi[f"head.{s.name}"].reshape(width, s.size) for s in self.spec.slots]
        if not heads:
            return features[..., :0]
        # Either the heads are joined or what they emit: copy the smaller, which are the heads where B > K.
        if features[..., 0].numel() > width:
            return features @ torch.cat(heads, 1)
        return torch.cat([features @ head for head in heads], -1)

    def __repr__(self) -> str:
        based = ", with base" if self.base is not None else ""
        return f"full(in_features={self.trunk.in_features}, hidden={self.trunk.hidden}{based})"
