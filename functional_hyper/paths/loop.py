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
from ..weights import PLAIN, Leaf, materialize
from ._guards import changed, own_error, row, versions
from ._main import Caller
from ._path import Path
from ._rules import Log


@dataclass(frozen=True)
class Loop(Path):
    """One ordinary call of the main network per network."""

    def bind(self, caller: Caller, leaves: Sequence[Leaf], randomness: str, shared: bool) -> Callable[..., Any]:  # type: ignore[override]
        weights = [materialize(leaf) for leaf in leaves]
        every = range(len(weights[0]))

        def evaluate(args: tuple[Any, ...], log: Log | None = None) -> Any:
            # A write into a weight is refused after it happened: into a copy, where autograd does not forbid it.
            kept = is_compiling() or torch.is_grad_enabled()
            dense = [w if kept and w.requires_grad else w.clone() for w in weights]
            # Unbound at once: indexing each network's weights, or inputs, makes the backward pass quadratic in B.
            networks = zip(*[w.unbind(0) for w in dense], strict=True)
            rows = [args for _ in every] if shared else list(zip(*[_rows(a, every) for a in args], strict=True))
            check = randomness == "error" and not is_compiling()
            before = torch.get_rng_state() if check else None
            changes = [] if is_compiling() else versions(dense)
            try:
                ys = [caller(ws, one) for ws, one in zip(networks, rows, strict=True)]
            except RuntimeError as error:
                if (own := own_error(error)) is error:
                    raise
                raise own from error
            if not is_compiling() and changes != versions(dense):
                raise changed()
            if before is not None and not torch.equal(before, torch.get_rng_state()):
                torch.set_rng_state(before)
                mend = 'pass randomness="different", or call main.eval()'
                raise bad("main", "no random numbers", "a draw from torch's generator", mend, Refused)
            if log is not None:
                log.append(("main", f"{len(every)} times", "loop"))
            return optree.tree_map(_stack, ys[0], *ys[1:], none_is_leaf=True)

        return evaluate


def _rows(arg: Any, every: range) -> Sequence[Any]:
    return arg.unbind(0) if isinstance(arg, Tensor) else [row((arg,), b)[0] for b in every]


def _stack(*ys: Any) -> Any:
    """Every network's output; what is not a tensor must be the same for all."""
    if isinstance(ys[0], Tensor):
        if any(y.shape != ys[0].shape for y in ys):
            shapes = [*dict.fromkeys(tuple(y.shape) for y in ys)]
            raise bad("main", "outputs of one shape for all networks", shapes, "pad them, or return a mask")
        return torch.stack(ys)
    if not isinstance(ys[0], PLAIN) or any(y != ys[0] for y in ys):
        got = type(ys[0]).__name__ if not isinstance(ys[0], PLAIN) else "numbers that differ from network to network"
        raise bad("main", "tensors, in dicts, lists and tuples", got, "return tensors")
    return ys[0]


PATH = Loop("loop", {})
