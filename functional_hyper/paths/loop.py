"""`loop`: the definition, executed. Every other path must agree with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._errors import Refused, bad
from ..weights import Leaf, materialize
from ._main import Caller
from ._path import Path
from ._rules import Log


@dataclass(frozen=True)
class Loop(Path):
    """One ordinary call of the main network per network."""

    def bind(self, caller: Caller, leaves: Sequence[Leaf], randomness: str, shared: bool) -> Callable[..., Any]:  # type: ignore[override]
        # unbind once: indexing each network's weights makes the backward pass quadratic in B
        networks = list(zip(*(materialize(leaf).unbind(0) for leaf in leaves), strict=True))

        def evaluate(args: tuple[Any, ...], log: Log | None = None) -> Any:
            columns = [a.unbind(0) if isinstance(a, Tensor) and not shared else [a] * len(networks) for a in args]
            check = randomness == "error" and not is_compiling()
            before = torch.get_rng_state() if check else None
            ys = [caller(weights, row) for weights, row in zip(networks, zip(*columns, strict=True), strict=True)]
            if before is not None and not torch.equal(before, torch.get_rng_state()):
                torch.set_rng_state(before)
                mend = 'pass randomness="different", or call main.eval()'
                raise bad("main", "no random numbers", "a draw from torch's generator", mend, Refused)
            if log is not None:
                log.append(("main", f"{len(networks)} times", "loop"))
            stack = lambda *ts: torch.stack(ts) if isinstance(ts[0], Tensor) else ts[0]
            return optree.tree_map(stack, ys[0], *ys[1:])

        return evaluate


PATH = Loop("loop", {})
