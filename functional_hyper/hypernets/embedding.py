"""`with_embedding`: the cond is a task id, its vector is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._errors import bad
from .._functorch import is_concrete
from .._types import Cond, Phi
from ..slots import Draw
from ._hypernet import Hypernet, Wrapped
from .base import with_base


def with_embedding(hyper: Hypernet, num_tasks: int, embedding_dim: int | None = None) -> Hypernet:
    """The hypernetwork with int64 task ids for conds, each with a learned embedding.

    Args:
        hyper: a hypernetwork whose cond is a vector.
        num_tasks: the number of ids; 1 makes an unconditional hypernetwork.
        embedding_dim: the width of the embedding; None is the hypernetwork's `in_features`.

    Returns:
        A `Hypernet` with ``embedding.weight`` ``(num_tasks, in_features)``, standard normal, added to phi.

    Raises:
        HyperError: a hypernetwork without `in_features` and no width given; later, ids that are not integers or not in
            ``[0, num_tasks)``.
    """
    width = hyper.in_features if embedding_dim is None else embedding_dim
    if num_tasks < 1 or width is None:
        mend = "name embedding_dim=" if width is None else "num_tasks=1 is the unconditional hypernetwork"
        raise bad("with_embedding(...)", "num_tasks >= 1 and a known width", f"{num_tasks}, {width}", mend)
    return Embedded(hyper, num_tasks, width).hypernet()


@dataclass(frozen=True)
class Embedded(Wrapped):
    """The functions of `with_embedding` as plain data."""

    inner: Hypernet
    num_tasks: int
    width: int

    def draw(self, generator: torch.Generator, dtype: torch.dtype) -> Phi:
        phi = self.inner.init(generator, dtype)
        table = Draw("normal", 1.0).sample((self.num_tasks, self.width), generator, dtype)
        return phi | {"embedding.weight": table}

    def read(self, phi: Phi, ids: Cond, /) -> Tensor:
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise bad("hyper(phi, cond=...)", "int64 task ids", got, "convert with .long()")
        if is_concrete(ids) and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_tasks:
            got = f"ids from {int(ids.min())} to {int(ids.max())}"
            raise bad("hyper(phi, cond=...)", f"task ids in [0, {self.num_tasks})", got, "raise num_tasks")
        return F.embedding(ids.long(), phi["embedding.weight"])

    def rebase(self, base: Any) -> Hypernet:
        return with_embedding(with_base(self.inner, base), self.num_tasks, self.width)

    def __repr__(self) -> str:
        return f"with_embedding({self.inner!r}, {self.num_tasks})"
