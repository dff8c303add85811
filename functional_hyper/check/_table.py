"""`Table`: what every check returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import bad
from .._text import aligned
from .._types import Cond, Phi
from ..hypernets import Hypernet
from ..params import leaves_of
from ..weights import materialize


@dataclass(frozen=True)
class Table:
    """What a check found: print it, or read it.

    Args:
        title: which check, of what.
        columns: the names of a row's cells; the first cell is the row's own name, different for every row.
        rows: the cells: names, numbers, and None where a number has no meaning.
        reasons: for each row why it is suspicious, or "".
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    reasons: tuple[str, ...]

    @property
    def suspicious(self) -> dict[str, str]:
        """The suspicious rows' names, each with the reason."""
        return {row[0]: why for row, why in zip(self.rows, self.reasons, strict=True) if why}

    @property
    def ok(self) -> bool:
        """Whether no row is suspicious."""
        return not any(self.reasons)

    def __getitem__(self, name: str) -> dict[str, Any]:
        """The named row's cells by column."""
        for row in self.rows:
            if row[0] == name:
                return dict(zip(self.columns, row, strict=True))
        raise KeyError(name)

    def __str__(self) -> str:
        rows = [(*map(_cell, row), why) for row, why in zip(self.rows, self.reasons, strict=True)]
        marks = ["", *("!" if why else "" for why in self.reasons)]
        lines = [f"{mark:1} {line}" for mark, line in zip(marks, aligned([(*self.columns, ""), *rows]), strict=True)]
        return "\n".join([f"{self.title}: {len(self.suspicious)} of {len(self.rows)} suspicious", *lines])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def dense(call: str, hyper: Hypernet, phi: Phi, cond: Cond) -> dict[str, Tensor]:
    """Every slot's generated weights ``(B, *shape)``, by name.

    Raises:
        HyperError: a cond without a batch dim, or with several, or of no samples.
    """
    leaves = map(materialize, leaves_of(call, hyper.spec, hyper.weights(phi, cond)))
    theta = dict(zip(hyper.spec.names, leaves, strict=True))
    for slot in hyper.spec.slots:
        batch = tuple(theta[slot.name].shape)[: theta[slot.name].dim() - len(slot.shape)]
        if len(batch) != 1 or not batch[0]:
            raise bad(call, "conds of one batch dim, at least one sample", f"batch dims {batch}", "give (B, ...)")
    return theta


def measured(call: str, hyper: Hypernet, phi: Phi, cond: Cond) -> dict[str, Tensor]:
    """`dense` without a graph, in at least single precision, to take statistics of."""
    with torch.no_grad():
        return {n: w.to(torch.promote_types(w.dtype, torch.float32)) for n, w in dense(call, hyper, phi, cond).items()}
