"""`with_base`: a learned theta_0 under what is generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import initializers
from .._types import Cond, Flat, Phi
from ..params import ParamSpec
from ._hypernet import Drawn, Hypernet, base_of, has_base


def with_base(hyper: Hypernet, base: Any = None) -> Hypernet:
    """The hypernetwork with a learned base: ``theta = theta_0 + generated``.

    A `full` head has such a base in its bias row: that row starts at the base, the other rows at zero, and phi gains
    nothing. `chunked` gains ``base.<slot>`` and its head starts at zero. Your own hypernetwork gains ``base.<slot>`` on
    top of what it generates; let that start near zero. Task embeddings and encoders pass the base on.

    Args:
        hyper: a hypernetwork without a base.
        base: where theta_0 starts: None for a draw by the hypernetwork's initialiser, flat ``(P,)``, or a pytree of the
            spec (``dict(main.named_parameters())``).

    Raises:
        HyperError: the hypernetwork has a base (`low_rank` and `scaled` take theirs by argument).
    """
    if hyper.rebase is not None:
        return hyper.rebase(base)
    return Based(hyper, base_of(hyper.spec, base)).hypernet()


@dataclass(frozen=True)
class Based(Drawn):
    """The functions of `with_base` around a hypernetwork that it knows nothing of."""

    inner: Hypernet
    base: dict[str, Tensor] | None
    weights = None  # type: ignore[assignment]  # dense, as `apply` gives them

    @property
    def spec(self) -> ParamSpec:  # type: ignore[override]
        return self.inner.spec

    @property
    def in_features(self) -> int | None:
        return self.inner.in_features

    def draw(self, generator: torch.Generator, dtype: torch.dtype) -> Phi:
        phi = self.inner.init(generator, dtype)
        rule = initializers.Ordinary()
        drawn = {s.name: initializers.draw_base(s, rule, generator, dtype) for s in self.spec.slots}
        start = drawn if self.base is None else {n: self.base[n].to(d) for n, d in drawn.items()}
        return phi | {f"base.{n}": t.clone() for n, t in start.items()}

    def apply(self, phi: Phi, cond: Cond) -> Flat:
        theta_0 = torch.cat([phi[f"base.{slot.name}"].reshape(-1) for slot in self.spec.slots])
        return self.inner.apply(phi, cond) + theta_0

    def rebase(self, base: Any) -> Hypernet:
        raise has_base("with_base")

    def __repr__(self) -> str:
        return f"with_base({self.inner!r})"
