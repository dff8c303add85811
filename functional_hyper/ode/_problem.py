"""An initial value problem: the vector field, and the tensors that it depends on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor

from .._errors import bad
from ..evaluate import Bound
from ..paths import Path
from ..weights import Leaf
from ._graph import distinct, parameters_of, tensors_in, tensors_of

Field: TypeAlias = Callable[..., Tensor]
"""``field(net, t, y, *args) -> dy/dt``."""


class Problem:
    """dy/dt as a function of t and y, and the tensors it was given."""

    def __init__(self, net: Bound, field: Field, args: tuple[Any, ...]) -> None:
        self.net, self.field, self.args = net, field, args
        self.leaves: list[Leaf] = [c.leaf for c in net.choices]

    def rhs(self, t: Any, y: Tensor) -> Tensor:
        dy = self.field(self.net, t, y, *self.args)
        if not isinstance(dy, Tensor) or dy.shape != y.shape:
            got = tuple(dy.shape) if isinstance(dy, Tensor) else type(dy).__name__
            raise bad("solve(field=...)", f"dy/dt of y's shape {tuple(y.shape)}", got, "field(net, t, y, *args)")
        return dy

    def own(self) -> list[Tensor]:
        """The parameters that the modules of the problem hold and train themselves."""
        generated = {id(box[key]) for box, key, _ in self.net.caller.sites}
        found = parameters_of(self.net.caller.main, self.field, self.args)
        return [p for p in found if id(p) not in generated]

    def given(self) -> list[Tensor]:
        """The tensors of the weights and of the arguments."""
        return distinct([*tensors_of(self.leaves), *tensors_in(self.args)])

    def rebound(self, leaves: Sequence[Leaf], args: Any, path: Path) -> Problem:
        """The same problem with other prepared weights, and a path that differs only in its rules."""
        net = copy.copy(self.net)
        net.choices = [replace(c, leaf=leaf) for c, leaf in zip(net.choices, leaves, strict=True)]
        net.run = path.bind(net.caller, leaves, "error", net.shared)
        return Problem(net, self.field, args)
