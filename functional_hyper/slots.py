"""What is known of one generated parameter: its layer's kind and fans, and the draw its owner would give it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

Kind = Literal["linear", "conv", "norm", "embedding", "other"]


@dataclass(frozen=True)
class Draw:
    """A law of initial values: uniform in ``[-scale, scale]``, normal of std `scale`, or the constant `scale`."""

    law: Literal["uniform", "normal", "constant"]
    scale: float

    @property
    def mean(self) -> float:
        return self.scale if self.law == "constant" else 0.0

    @property
    def std(self) -> float:
        return {"uniform": self.scale / math.sqrt(3), "normal": self.scale, "constant": 0.0}[self.law]

    def sample(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Values of the given shape, on the generator's device."""
        empty = torch.empty(shape, dtype=dtype, device=generator.device)
        if self.law == "constant":
            return empty.fill_(self.scale)
        if self.law == "normal":
            return empty.normal_(0.0, self.scale, generator=generator)
        return empty.uniform_(-self.scale, self.scale, generator=generator)

    def __str__(self) -> str:
        form = {"uniform": "U(±{:.4g})", "normal": "N(0, {:.4g}²)", "constant": "{:g}"}[self.law]
        return form.format(self.scale)


@dataclass(frozen=True)
class Slot:
    """One generated parameter.

    `fan_in` and `fan_out` count features (channels, for a convolution), `receptive` the kernel's taps; a bias has its
    layer's. `paired` says that the same layer's weight and bias are both generated.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    is_bias: bool
    fan_in: int
    fan_out: int
    receptive: int
    draw: Draw
    paired: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _uniform(fan: float) -> Draw:
    return Draw("uniform", 1 / math.sqrt(fan)) if fan else Draw("constant", 0.0)


def _by_shape(shape: tuple[int, ...]) -> tuple[Kind, bool, int, int, int, Draw]:
    """An owner nobody knows: ``(O, I, ...)``, and fewer dims are a bias."""
    if len(shape) < 2:
        return "other", True, 0, shape[0] if shape else 1, 1, Draw("constant", 0.0)
    receptive = math.prod(shape[2:])
    kind: Kind = "linear" if len(shape) == 2 else "conv"
    return kind, False, shape[1], shape[0], receptive, _uniform(shape[1] * receptive)


def describe(name: str, shape: tuple[int, ...], owner: nn.Module | None = None) -> Slot:
    """The slot of a parameter, as torch's own `reset_parameters` of its owner would draw it.

    Args:
        name: the parameter's full dotted name.
        shape: its shape, per network.
        owner: the module that holds it; None for a leaf of a plain pytree.
    """
    leaf = name.rpartition(".")[2]
    is_bias = "bias" in leaf
    kind, fallback_bias, fan_in, fan_out, receptive, draw = _by_shape(shape)
    one = Draw("constant", 1.0)
    match owner:
        case NonDynamicallyQuantizableLinear() if is_bias:  # attention's output layer, whose bias attention zeroes
            kind, fan_in, fan_out, draw = "linear", owner.in_features, owner.out_features, Draw("constant", 0.0)
        case nn.Linear():
            kind, fan_in, fan_out = "linear", owner.in_features, owner.out_features
            draw = _uniform(fan_in)
        case _ConvNd():
            kind, receptive = "conv", math.prod(owner.kernel_size)
            fan_in, fan_out = owner.in_channels // owner.groups, owner.out_channels // owner.groups
            # torch takes dim 1 of the weight for the fan, which of a transposed convolution is its outputs
            draw = _uniform((fan_out if isinstance(owner, _ConvTransposeNd) else fan_in) * receptive)
        case nn.Bilinear():
            fan_in, fan_out, receptive = owner.in1_features * owner.in2_features, owner.out_features, 1
            kind, draw = "other", _uniform(owner.in1_features)
        case nn.RNNBase() | nn.RNNCellBase():
            kind, fan_out, draw = "linear", owner.hidden_size, _uniform(owner.hidden_size)
            fan_in = owner.hidden_size if is_bias else shape[1]
        case nn.MultiheadAttention():
            kind, fan_out = "linear", owner.embed_dim
            fan_in = shape[-1] if len(shape) == 2 else owner.embed_dim
            xavier = Draw("uniform", math.sqrt(6 / sum(shape))) if len(shape) == 2 else Draw("constant", 0.0)
            draw = xavier if len(shape) < 3 else Draw("normal", math.sqrt(2 / (2 * shape[-1])))
            is_bias = is_bias and len(shape) == 1
        case _NormBase() | nn.GroupNorm() | nn.LayerNorm() | nn.RMSNorm():
            kind, fan_in, fan_out, receptive = "norm", 1, 1, 1
            draw = Draw("constant", 0.0) if is_bias else one
        case nn.Embedding() | nn.EmbeddingBag():
            kind, fan_in, fan_out, draw = "embedding", 1, owner.embedding_dim, Draw("normal", 1.0)
        case nn.PReLU():
            kind, fan_in, fan_out, draw = "other", 1, 1, Draw("constant", 0.25)
        case _:
            is_bias = fallback_bias
    return Slot(name, shape, kind, is_bias, fan_in, fan_out, receptive, draw)
