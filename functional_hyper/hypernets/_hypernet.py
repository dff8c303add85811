"""`Hypernet`: a hypernetwork as plain functions of its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._errors import HyperError, bad
from .._types import Apply, Cond, Flat, Init, Phi, PyTree, Weights
from ..params import ParamSpec, ravel, unravel
from ..weights import map_leaves, materialize


def _dense(spec: ParamSpec, apply: Apply, phi: Phi, cond: Cond) -> PyTree:
    return unravel(spec, apply(phi, cond))


@dataclass(frozen=True, repr=False)
class Hypernet:
    """A hypernetwork: two pure functions and the spec of what they generate.

    Args:
        spec: the main network's parameters.
        init: ``init(generator=None, dtype=None, device=None)`` gives phi, a ``dict[str, Tensor]`` of leaf tensors that
            require grad. Without a generator the draw is that of seed 0; dtype None is the spec's.
        apply: ``apply(phi, cond)`` gives flat vectors ``(*batch, P)``.
        weights: ``weights(phi, cond)`` gives the same as the spec's pytree of leaves ``(*batch, *shape)``, structured
            where the hypernetwork is. The default is dense: ``unravel(spec, apply(phi, cond))``.
        in_features: the width of the cond, where it is a vector.
        rebase: how `with_base` builds on this hypernetwork; None adds a base to what `apply` gives.

    Pickles and deep-copies where its functions do; every constructor's are methods of plain data.
    """

    spec: ParamSpec
    init: Init
    apply: Apply
    weights: Weights = None  # type: ignore[assignment]
    in_features: int | None = None
    rebase: Callable[[Any], Hypernet] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, "weights", partial(_dense, self.spec, self.apply))

    @property
    def structured(self) -> bool:
        """Whether `weights` may give factors, not only dense tensors."""
        return not (isinstance(self.weights, partial) and self.weights.func is _dense)

    def __repr__(self) -> str:
        return f"Hypernet({getattr(self.apply, '__self__', self.apply)!r}, P={self.spec.size})"


class Drawn(ABC):
    """The functions of a hypernetwork as plain data; `draw` gives phi from a generator, `init` is what users call."""

    spec: ParamSpec
    base: Any

    @abstractmethod
    def draw(self, generator: torch.Generator, dtype: torch.dtype) -> Phi: ...

    @abstractmethod
    def weights(self, phi: Phi, cond: Cond) -> PyTree: ...

    @property
    def in_features(self) -> int | None:
        return None

    def init(
        self,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Phi:
        """phi as leaf tensors that require grad; without a generator that of a new one of seed 0, never torch's."""
        if not isinstance(generator, torch.Generator | None):
            got = type(generator).__name__
            raise bad("init(generator=...)", "a torch.Generator", got, "torch.Generator().manual_seed(seed)")
        phi = self.draw(torch.Generator().manual_seed(0) if generator is None else generator, dtype or self.spec.dtype)
        return {k: v.detach().to(device or v.device).requires_grad_() for k, v in phi.items()}

    def apply(self, phi: Phi, cond: Cond) -> Flat:
        return ravel(self.spec, map_leaves(materialize, self.weights(phi, cond)))

    def rebase(self, base: Any) -> Hypernet:
        """The same on a base: the caller's, or "draw" for a fresh draw."""
        if self.base is not None:
            raise has_base(f"{type(self).__name__.lower()} with a base")
        given = base_of(self.spec, base)
        return replace(self, base="draw" if given is None else given).hypernet()  # type: ignore[type-var]

    def hypernet(self) -> Hypernet:
        return Hypernet(self.spec, self.init, self.apply, self.weights, self.in_features, self.rebase)


class Wrapped(Drawn):
    """A hypernetwork around another, structured where that is; `read` makes the cond of the inner one."""

    inner: Hypernet

    @abstractmethod
    def read(self, phi: Phi, cond: Cond, /) -> Any: ...

    @property
    def spec(self) -> ParamSpec:  # type: ignore[override]
        return self.inner.spec

    def hypernet(self) -> Hypernet:
        made = super().hypernet()
        return made if self.inner.structured else replace(made, weights=None)

    def weights(self, phi: Phi, cond: Cond) -> PyTree:
        return self.inner.weights(phi, self.read(phi, cond))

    def apply(self, phi: Phi, cond: Cond) -> Flat:
        return self.inner.apply(phi, self.read(phi, cond))


def base_of(spec: ParamSpec, base: Any) -> dict[str, Tensor] | None:
    """A base that the caller gives, flat ``(P,)`` or as the spec's pytree, by slot name."""
    if base is None:
        return None
    want, mend = f"a flat (P,) with P={spec.size}, or the spec's pytree", "one base serves all networks: no batch dims"
    if isinstance(base, Tensor) and base.shape != (spec.size,):
        raise bad("base=", want, tuple(base.shape), mend)
    try:
        flat = base if isinstance(base, Tensor) else ravel(spec, base)
    except HyperError as error:
        raise bad("base=", want, f"what {error}", mend) from None
    if flat.shape != (spec.size,):
        raise bad("base=", want, tuple(flat.shape), mend)
    pieces = flat.detach().split([s.size for s in spec.slots])
    return {s.name: p.reshape(s.shape) for s, p in zip(spec.slots, pieces, strict=True)}


def has_base(hyper: str) -> HyperError:
    """The error for a second base."""
    mend = "give its base to the constructor" if hyper in ("low_rank", "scaled") else "call with_base once"
    return bad("with_base(hyper=...)", "a hypernetwork without a base", hyper, mend)
