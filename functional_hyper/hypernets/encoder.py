"""`with_encoder`: any module maps the raw cond to the vector that the hypernetwork reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .._errors import bad
from .._types import Cond, Flat, Phi, PyTree
from ._hypernet import Hypernet, ready, seeded
from .base import with_base


def with_encoder(hyper: Hypernet, module: nn.Module) -> Hypernet:
    """The hypernetwork behind an encoder: its cond is `module(cond)`.

    Args:
        hyper: a hypernetwork whose cond is a vector.
        module: maps the raw cond (an image, a support set; a tuple is given as several arguments) to
            ``(*batch, in_features)``. phi's ``encoder.*`` start at the module's present values; its buffers stay
            its own.

    Returns:
        A `Hypernet` with ``encoder.*`` added to phi.
    """
    if not isinstance(module, nn.Module):
        raise bad("with_encoder(module=...)", "an nn.Module", type(module).__name__, "wrap the function in a Module")
    parts = Encoded(hyper, module)
    weights: Any = parts.weights if hyper.structured else None
    return Hypernet(hyper.spec, parts.init, parts.apply, weights, None, parts.rebase)


@dataclass(frozen=True)
class Encoded:
    """The functions of `with_encoder` as plain data."""

    inner: Hypernet
    module: nn.Module

    def init(
        self,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Phi:
        generator, dtype = seeded(generator), dtype or self.inner.spec.dtype
        start = {f"encoder.{n}": p.detach().to(dtype, copy=True) for n, p in self.module.named_parameters()}
        return self.inner.init(generator, dtype, device) | ready(start, device)

    def _encode(self, phi: Phi, cond: Cond) -> Tensor:
        params = {n: phi[f"encoder.{n}"] for n, _ in self.module.named_parameters()}
        return functional_call(self.module, params, cond if isinstance(cond, tuple) else (cond,))

    def weights(self, phi: Phi, cond: Cond) -> PyTree:
        return self.inner.weights(phi, self._encode(phi, cond))

    def apply(self, phi: Phi, cond: Cond) -> Flat:
        return self.inner.apply(phi, self._encode(phi, cond))

    def rebase(self, base: Any) -> Hypernet:
        return with_encoder(with_base(self.inner, base), self.module)

    def __repr__(self) -> str:
        return f"with_encoder({self.inner!r}, {type(self.module).__name__})"
