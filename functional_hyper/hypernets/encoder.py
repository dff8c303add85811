"""`with_encoder`: any module maps the raw cond to the vector that the hypernetwork reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .._errors import bad
from .._types import Cond, Phi
from ._hypernet import Hypernet, Wrapped
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
    return Encoded(hyper, module).hypernet()


@dataclass(frozen=True)
class Encoded(Wrapped):
    """The functions of `with_encoder` as plain data."""

    inner: Hypernet
    module: nn.Module

    def draw(self, generator: torch.Generator, dtype: torch.dtype) -> Phi:
        start = {f"encoder.{n}": p.detach().to(dtype, copy=True) for n, p in self.module.named_parameters()}
        return self.inner.init(generator, dtype) | start

    def read(self, phi: Phi, cond: Cond, /) -> Tensor:
        params = {n: phi[f"encoder.{n}"] for n, _ in self.module.named_parameters()}
        return functional_call(self.module, params, cond if isinstance(cond, tuple) else (cond,))

    def rebase(self, base: Any) -> Hypernet:
        return with_encoder(with_base(self.inner, base), self.module)

    def __repr__(self) -> str:
        return f"with_encoder({self.inner!r}, {type(self.module).__name__})"
