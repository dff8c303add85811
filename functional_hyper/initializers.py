"""Initialisers: what variance a head must have for the weights it generates to be good initial weights.

An initialiser answers one question for one slot: of what standard deviation are the head's rows, and from which draw
is its constant row? Features of width K and second moment v carry variance ``K v Var(H)`` into a generated weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ._errors import bad
from .slots import Draw, Slot


@runtime_checkable
class Initializer(Protocol):
    def rows(self, slot: Slot, power: float) -> tuple[float, Draw]:
        """The head's standard deviation, and the draw of its constant row.

        Args:
            slot: the generated parameter.
            power: ``K v``, the features' number times their second moment.
        """
        ...


def _around(slot: Slot) -> Draw:
    return Draw("constant", slot.draw.mean)


@dataclass(frozen=True)
class Ordinary:
    """Generated weights have the variance of the main network's own default draw; norm gains are 1."""

    def rows(self, slot: Slot, power: float) -> tuple[float, Draw]:
        return slot.draw.std / math.sqrt(power), _around(slot)


@dataclass(frozen=True)
class HyperfanIn:
    """Hyperfan-in: a layer's outputs have the variance of its inputs.

    ``Var(H_weight) = c / (s j r K v)`` and ``Var(H_bias) = c / (2 K v)``, with s = 2 where a bias is generated too.
    Chang, Flokas, Lipson, "Principled Weight Initialization for Hypernetworks" (ICLR 2020), section 4.

    Args:
        c: 2 where the main network's activations are ReLU-like, else 1.
    """

    c: float = 2.0

    def rows(self, slot: Slot, power: float) -> tuple[float, Draw]:
        if slot.kind not in ("linear", "conv") and not slot.paired:
            return Ordinary().rows(slot, power)
        if slot.kind in ("norm", "embedding"):
            return Ordinary().rows(slot, power)
        if slot.is_bias:
            variance = self.c / (2 * power)
        else:
            variance = self.c / ((2 if slot.paired else 1) * slot.fan_in * slot.receptive * power)
        return math.sqrt(variance), Draw("constant", 0.0)


@dataclass(frozen=True)
class HyperfanOut:
    """Hyperfan-out: a layer's gradients have the variance of those that come to it.

    ``Var(H_weight) = c / (i r K v)`` and ``Var(H_bias) = max(0, c (1 - j/i) / (K v))``.
    Chang, Flokas, Lipson, "Principled Weight Initialization for Hypernetworks" (ICLR 2020), section 4.

    Args:
        c: 2 where the main network's activations are ReLU-like, else 1.
    """

    c: float = 2.0

    def rows(self, slot: Slot, power: float) -> tuple[float, Draw]:
        if slot.kind not in ("linear", "conv") or not slot.fan_out:
            return Ordinary().rows(slot, power)
        if slot.is_bias:
            variance = max(0.0, self.c * (1 - slot.fan_in / slot.fan_out) / power)
        else:
            variance = self.c / (slot.fan_out * slot.receptive * power)
        return math.sqrt(variance), Draw("constant", 0.0)


@dataclass(frozen=True)
class BiasHyperinit:
    """The head's rows are 0 and its constant row is one ordinary draw of the main network.

    Every sample starts with the same, well-tried weights; the trunk's gradient is 0 in the first step only.
    Beck, Jackson, Vuorio, Whiteson, "Hypernetworks in Meta-Reinforcement Learning" (CoRL 2022), section 4.
    """

    def rows(self, slot: Slot, power: float) -> tuple[float, Draw]:
        return 0.0, slot.draw


@dataclass(frozen=True, eq=False)
class Measured:
    """Any rule above, with the features' second moment measured on a batch instead of assumed.

    Args:
        batch: conds ``(B, in_features)`` as the constructor's trunk receives them.
        rule: the rule that takes the measurement.
    """

    batch: Tensor
    rule: Initializer = field(default_factory=HyperfanIn)

    def rows(self, slot: Slot, power: float) -> tuple[float, Draw]:
        return self.rule.rows(slot, power)


INITIALIZERS: dict[str, Initializer] = {
    "ordinary": Ordinary(),
    "hyperfan_in": HyperfanIn(),
    "hyperfan_out": HyperfanOut(),
    "bias_hyperinit": BiasHyperinit(),
}


def resolve(init: str | Initializer) -> Initializer:
    """An initialiser by name, or itself."""
    if not isinstance(init, str):
        return init
    if init not in INITIALIZERS:
        names = ", ".join(INITIALIZERS)
        raise bad("init=", f"one of {names}, or an initialiser", repr(init), "see functional_hyper.initializers")
    return INITIALIZERS[init]


def draw_rows(
    width: int, slot: Slot, std: float, constant: Draw, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """A head ``(width + 1, *shape)``: `width` uniform rows of the given standard deviation, then the constant row."""
    rows = Draw("uniform", std * math.sqrt(3)).sample((width, *slot.shape), generator, dtype)
    return torch.cat([rows, constant.sample((1, *slot.shape), generator, dtype)])


def draw_base(slot: Slot, init: Initializer, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A weight ``(*shape)`` shared by all networks, of the whole variance that the initialiser wants."""
    std, constant = init.rows(slot, 1.0)
    return draw_rows(1, slot, std, constant, generator, dtype).sum(0)


class MIP(nn.Module):
    """Magnitude-invariant input encoding: ``z`` in [0, 1] becomes ``[cos(pi z / 2), sin(pi z / 2)]``, of constant norm.

    Ortiz, Guttag, Dalca, "Magnitude Invariant Parametrizations Improve Hypernetwork Learning" (2023), section 4.
    For `with_encoder`; its `in_features` are twice the cond's.
    """

    def forward(self, z: Tensor) -> Tensor:
        """``(*batch, C)`` to ``(*batch, 2 C)``."""
        angle = z * (math.pi / 2)
        return torch.cat([angle.cos(), angle.sin()], -1)
