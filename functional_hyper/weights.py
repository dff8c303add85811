"""Leaf types: one generated parameter for all B networks, dense or as the factors that the hypernetwork gives it.

A leaf has a `shape` per network, `batch` dims in front, `data` (a tensor of its dtype and device), and `materialize()`,
its dense meaning. What a path computes with the factors is the path's business (`paths/contracted.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeAlias, TypeVar

import optree
import torch
from torch import Tensor

from ._errors import bad
from ._types import Base, Features, Head, InFactor, InScales, OutFactor, OutScales, PyTree

F = TypeVar("F", bound="Factored")


@dataclass(frozen=True)
class Factored:
    """A leaf kept as its factors: the fields that are tensors, the `shared` ones common to all networks."""

    shared: ClassVar[tuple[str, ...]] = ()

    @property
    def factors(self) -> dict[str, Tensor]:
        return {f.name: t for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor)}

    def map(self: F, f: Callable[[Tensor], Tensor]) -> F:
        """The leaf with `f` of each of its factors."""
        return replace(self, **{name: f(t) for name, t in self.factors.items()})

    def gather(self: F, index: Tensor) -> F:
        return replace(self, **{name: t[index] for name, t in self.factors.items() if name not in self.shared})


@dataclass(frozen=True)
class Generated(Factored):
    """``theta_b = sum_k features[b, k] head[k]``: a linear head, kept apart from its features.

    A head's bias is a row of `head` whose feature is the constant 1.
    """

    features: Features
    head: Head
    shared = ("head",)

    @property
    def shape(self) -> torch.Size:
        return self.head.shape[1:]

    @property
    def data(self) -> Tensor:
        return self.features

    @property
    def batch(self) -> torch.Size:
        return self.features.shape[:-1]

    def materialize(self) -> Tensor:
        """``(*batch, *shape)``, as one GEMM."""
        if self.head.dim() <= 2:  # biases, of which a step has many: two views less
            return self.features @ self.head
        return (self.features @ self.head.flatten(1)).unflatten(-1, self.shape)

    def transposed(self) -> Generated:
        return replace(self, head=self.head.mT)


@dataclass(frozen=True)
class OnBase(Factored):
    """A shared base, and factors of each network's own."""

    base: Base
    shared = ("base",)

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    @property
    def data(self) -> Tensor:
        return self.base


@dataclass(frozen=True)
class LowRank(OnBase):
    """``W_b = base + scale U_b V_b^T``: a shared base and a per-network update of low rank.

    Hu et al., "LoRA" (ICLR 2022). A kernel of more than two dims is the matrix ``(O, I kh kw)``.
    """

    u: OutFactor
    v: InFactor
    scale: float = 1.0
    shared = ("base", "scale")

    @property
    def batch(self) -> torch.Size:
        return self.u.shape[:-2]

    def materialize(self) -> Tensor:
        """``(*batch, *shape)``."""
        update = (self.scale * self.u @ self.v.mT).unflatten(-1, self.shape[1:])
        return self.base + update

    def transposed(self) -> LowRank:
        return replace(self, base=self.base.mT, u=self.v, v=self.u)


@dataclass(frozen=True)
class Scaled(OnBase):
    """``W_b = row_b * base * column_b``: a shared base with per-network scales of its outputs and inputs.

    Ha, Dai, Le, "HyperNetworks" (ICLR 2017), section 3.2, scales the rows; Wen et al., "BatchEnsemble" (ICLR 2020),
    both sides. A kernel of more than two dims is the matrix ``(O, I kh kw)``.
    """

    row: OutScales | None
    column: InScales | None

    @property
    def batch(self) -> torch.Size:
        scales = self.row if self.row is not None else self.column
        assert scales is not None  # the constructor makes one of them
        return scales.shape[:-1]

    def materialize(self) -> Tensor:
        """``(*batch, *shape)``."""
        weight = self.base.flatten(1)
        if self.row is not None:
            weight = self.row.unsqueeze(-1) * weight
        if self.column is not None:
            weight = weight * self.column.unsqueeze(-2)
        return weight.unflatten(-1, self.shape[1:])

    def transposed(self) -> Scaled:
        return replace(self, base=self.base.mT, row=self.column, column=self.row)


@dataclass(frozen=True)
class Grouped(Factored):
    """``W_s = weight[index[s]]``: S rows that share C networks, each network's rows side by side in a padded group.

    `place` ``(S,)`` is each row's place in C groups of `most` places; `order` ``(S,)`` are the rows sorted by network,
    of whom network c's end before `ends[c]`.
    """

    weight: Tensor  # (C, O, I)
    index: Tensor  # (S,)
    place: Tensor  # (S,)
    order: Tensor  # (S,)
    ends: Tensor  # (C,)
    most: int

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape[1:]

    @property
    def data(self) -> Tensor:
        return self.weight

    @property
    def batch(self) -> torch.Size:
        return self.index.shape

    def materialize(self) -> Tensor:
        """``(S, *shape)``."""
        return self.weight[self.index]

    def transposed(self) -> Grouped:
        return replace(self, weight=self.weight.mT)

    def gather(self, index: Tensor) -> Tensor:  # type: ignore[override]
        return self.weight[self.index[index]]


def group(weight: Tensor, index: Tensor) -> Grouped:
    """Rows of C networks ``(C, O, I)`` by a concrete index ``(S,)``, grouped."""
    order = index.argsort(stable=True)
    counts = index.bincount(minlength=len(weight))
    most = int(counts.max())
    ends = counts.cumsum(0)
    rank = torch.arange(len(index), device=index.device) - (ends - counts)[index[order]]
    place = torch.empty_like(order)
    place[order] = index[order] * most + rank
    return Grouped(weight, index, place, order, ends, most)


Structured: TypeAlias = Generated | LowRank | Scaled | Grouped
Leaf: TypeAlias = Tensor | Structured
STRUCTURED = (Generated, LowRank, Scaled, Grouped)


def materialize(leaf: Leaf) -> Tensor:
    """A leaf's dense tensor ``(*batch, *shape)``; a dense leaf is itself."""
    return leaf if isinstance(leaf, Tensor) else leaf.materialize()


def gather(leaf: Leaf, index: Tensor) -> Leaf:
    """The leaf whose network ``s`` is this one's network ``index[s]``; factors that are shared stay so."""
    return leaf[index] if isinstance(leaf, Tensor) else leaf.gather(index)


PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Generator)


def map_tensors(call: str, f: Callable[[Tensor], Any], tree: PyTree) -> PyTree:
    """`f` of every tensor of inputs or outputs; numbers and names stay, anything else could hide a tensor.

    Raises:
        HyperError: a leaf of another type, such as a dataclass.
    """
    if isinstance(tree, Tensor):
        return f(tree)

    def leaf(t: Any) -> Any:
        if isinstance(t, Tensor):
            return f(t)
        if isinstance(t, PLAIN):
            return t
        raise bad(call, "tensors, in dicts, lists and tuples", type(t).__name__, "return or pass its tensors")

    return optree.tree_map(leaf, tree, none_is_leaf=True)


def map_leaves(f: Callable[..., Any], tree: PyTree, *more: PyTree) -> PyTree:
    """`f` of every leaf of a weight pytree, and of the leaves of more trees of its structure."""
    return optree.tree_map(f, tree, *more)


def shape_of(leaf: Leaf) -> tuple[int, ...]:
    """The parameter's shape, per network."""
    return tuple(leaf.shape[1:] if isinstance(leaf, Tensor) else leaf.shape)


def batch_of(leaf: Leaf) -> tuple[int, ...]:
    """The dims in front: exactly ``(B,)`` where a path evaluates the leaf."""
    return tuple(leaf.shape[:1] if isinstance(leaf, Tensor) else leaf.batch)


def data_of(leaf: Leaf) -> Tensor:
    """A tensor of the leaf's dtype and device."""
    return leaf if isinstance(leaf, Tensor) else leaf.data
