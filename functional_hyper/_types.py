# pyright: reportUndefinedVariable=false
# ruff: noqa: F821, F722
"""Every named shape and protocol, once. Axis letters: B networks, N inputs for each, P weights, K features,
I/O a layer's in/out features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

Flat: TypeAlias = Float[Tensor, "*batch P"]
"""Flat parameter vectors, as a hypernetwork emits them."""

Features: TypeAlias = Float[Tensor, "*batch K"]
"""The last hidden layer of a hypernetwork."""

Cond: TypeAlias = Any
"""What the weights depend on: ``(*batch, in_features)``, task ids ``(*batch,)``, or a pytree for an encoder."""

Phi: TypeAlias = dict[str, Tensor]
"""A hypernetwork's own parameters under dotted names: a state dict."""

PyTree: TypeAlias = Any
"""Nested dicts, lists, tuples and namedtuples."""

Head: TypeAlias = Float[Tensor, "K *shape"]
"""A linear head for one parameter, one row for each feature."""

Base: TypeAlias = Float[Tensor, "O *I"]
"""A matrix, or a kernel of more dims, that all networks share."""

OutFactor: TypeAlias = Float[Tensor, "*batch O r"]
InFactor: TypeAlias = Float[Tensor, "*batch flatI r"]
"""Each network's factors of low rank; flatI is I, for a kernel times its taps."""

OutScales: TypeAlias = Float[Tensor, "*batch O"]
InScales: TypeAlias = Float[Tensor, "*batch flatI"]
"""Each network's scales of outputs and inputs."""

Inputs: TypeAlias = Shaped[Tensor, "B *rest"] | tuple[Any, ...]
"""What the main network reads: one tensor, or a tuple of positional arguments."""

Main: TypeAlias = nn.Module | Callable[..., Any]
"""The main network: a module, or a pure function ``f(params, *x)``. It sees a batch."""

Table: TypeAlias = "dict[Callable[..., Any], Callable[..., Any]]"
"""A path's rules: torch function -> physical rule."""


@runtime_checkable
class Init(Protocol):
    def __call__(
        self,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Phi: ...


@runtime_checkable
class Apply(Protocol):
    def __call__(self, phi: Phi, cond: Cond, /) -> Flat: ...


@runtime_checkable
class Weights(Protocol):
    def __call__(self, phi: Phi, cond: Cond, /) -> PyTree: ...
