"""The trunk: from a cond to the features that a head reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._errors import bad
from .._types import Phi
from ..initializers import Initializer, Measured
from ..params import ParamSpec
from ..slots import Draw


def activation_of(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of `torch.nn.functional` by name, or the callable itself."""
    if callable(activation):
        return activation
    f: Any = getattr(F, activation, None)
    if not callable(f):
        mend = "such as 'relu', 'silu', 'tanh', 'gelu'"
        raise bad("activation=", "a function or a name in torch.nn.functional", repr(activation), mend)
    return f  # type: ignore[no-any-return]


def second_moment(activation: str | Callable[[Tensor], Tensor]) -> float:
    """``E[f(z)^2]`` for a standard normal z, by the trapezoid rule."""
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.trapezoid(activation_of(activation)(z).square() * density, z).item()


@dataclass(frozen=True)
class Trunk:
    """A multilayer perceptron on phi's ``trunk.*``, every layer followed by the activation.

    Initialised so that conds of second moment 1 give standard normal pre-activations in every layer; the features'
    second moment `power` / K is then known, which the initialisers rely on. `layer_norm` makes it so for any cond.
    """

    in_features: int
    hidden: tuple[int, ...] = ()
    activation: str | Callable[[Tensor], Tensor] = "relu"
    layer_norm: bool = False

    @property
    def width(self) -> int:
        """K, the number of features."""
        return self.hidden[-1] if self.hidden else self.in_features

    @property
    def power(self) -> float:
        """``K v``: the features' number times their second moment."""
        return self.width * (second_moment(self.activation) if self.hidden else 1.0)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Phi:
        phi: Phi = {}
        moment, width = 1.0, self.in_features
        after = second_moment(self.activation) if self.hidden else 1.0
        for i, out in enumerate(self.hidden):
            bound = math.sqrt(3 / (max(width, 1) * moment))
            phi[f"trunk.{i}.weight"] = Draw("uniform", bound).sample((out, width), generator, dtype)
            phi[f"trunk.{i}.bias"] = Draw("constant", 0.0).sample((out,), generator, dtype)
            if self.layer_norm:
                phi[f"trunk.{i}.norm.weight"] = Draw("constant", 1.0).sample((out,), generator, dtype)
                phi[f"trunk.{i}.norm.bias"] = Draw("constant", 0.0).sample((out,), generator, dtype)
            moment, width = after, out
        return phi

    def __call__(self, phi: Phi, cond: Tensor) -> Tensor:
        """Features ``(*batch, K)`` of conds ``(*batch, in_features)``."""
        check_cond(cond, self.in_features)
        f = activation_of(self.activation)
        for i, out in enumerate(self.hidden):
            cond = F.linear(cond, phi[f"trunk.{i}.weight"], phi[f"trunk.{i}.bias"])
            if self.layer_norm:
                cond = F.layer_norm(cond, (out,), phi[f"trunk.{i}.norm.weight"], phi[f"trunk.{i}.norm.bias"])
            cond = f(cond)
        return cond

    def with_one(self, phi: Phi, cond: Tensor) -> Tensor:
        """Features ``(*batch, K + 1)``, the last the constant 1 that a head's bias row multiplies."""
        return F.pad(self(phi, cond), (0, 1), value=1.0)


def check_cond(cond: Any, in_features: int) -> None:
    """An error for a cond that is no ``(*batch, in_features)`` of floating numbers."""
    if not isinstance(cond, Tensor) or cond.dim() == 0 or cond.shape[-1] != in_features:
        got = tuple(cond.shape) if isinstance(cond, Tensor) else type(cond).__name__
        want = f"(*batch, in_features) with in_features={in_features}"
        raise bad("hyper(phi, cond=...)", want, got, "with_embedding takes task ids, with_encoder anything else")
    if not cond.is_floating_point():
        raise bad("hyper(phi, cond=...)", "floating numbers", cond.dtype, "with_embedding takes task ids")


def power_of(trunk: Trunk, initializer: Initializer, phi: Phi, features: Callable[[Phi, Tensor], Tensor]) -> float:
    """``K v``: known from the trunk's own initialisation, or measured on what `features` gives where that is asked."""
    if not isinstance(initializer, Measured):
        return trunk.power
    with torch.no_grad():
        batch = initializer.batch.to(next(iter(phi.values()), initializer.batch))
        return features(phi, batch).square().sum(-1).mean().item()


def trunk_of(
    call: str, spec: ParamSpec, in_features: int, hidden: Sequence[int], activation: Any, layer_norm: bool
) -> Trunk:
    """A checked trunk, for a checked spec."""
    if not isinstance(spec, ParamSpec):
        raise bad(call, "the spec of a main network first", type(spec).__name__, "param_spec(main) makes it")
    if not isinstance(hidden, Sequence):
        raise bad(call, "hidden as a sequence of widths", hidden, f"hidden=({hidden},) is one layer")
    if in_features < 1 or any(h < 1 for h in hidden):
        raise bad(call, "positive in_features and hidden widths", f"{in_features}, {tuple(hidden)}", "give widths >= 1")
    activation_of(activation)
    return Trunk(in_features, tuple(hidden), activation, layer_norm)
