"""`deferred`: the weight gradient of a solve, formed once per few evaluations instead of at each.

The same weights serve every evaluation. Plain autograd writes and adds a ``(B, P)`` weight gradient at each of them.
Here the solve runs isolated (`_isolated.py`); each `F.linear` reads its weight detached and keeps its input x. In the
backward pass a hook on its result y receives ``dL/dy``, and every few evaluations one batched product adds
``sum dL/dy x^T``. A weight that any other call reads gets that call's share from ordinary autograd. The solver is
arbitrary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._errors import Refused, bad
from .._types import Table
from ..paths import bmm

# One product serves this many evaluations, or as many as give it this many inputs per network: more would save little
# time and cost memory.
EVALUATIONS, ROWS = 8, 16


class Recorder:
    """The `F.linear` calls of one solve, and the weight gradients that come of them."""

    def __init__(self) -> None:
        self.watched: dict[int, tuple[Tensor, Tensor]] = {}
        self.anchors: list[Tensor] = []
        self.sums: dict[int, Tensor] = {}
        self.waiting: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def watch(self, weights: Sequence[Tensor], like: Tensor) -> None:
        """Form these weights' gradients here."""
        self.watched = {id(w): (w, w.detach()) for w in weights}
        self.anchors = [like.detach().new_zeros(()).requires_grad_()]

    def table(self, table: Table) -> Table:
        """A path's rules, of which that for `F.linear` records."""
        return {**table, F.linear: self._recording(table.get(F.linear, bmm.RULE))}

    def _recording(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(rule)
        def recorded(input: Any, weight: Any, bias: Any = None) -> Any:
            (w, plain_w), (b, plain_b) = self._plain(weight), self._plain(bias)
            if not (w or b) or not torch.is_grad_enabled():
                return rule(input, weight, bias)
            y = rule(input, plain_w, plain_b)
            if not isinstance(y, Tensor):
                return y if y is NotImplemented else rule(input, weight, bias)
            if not y.requires_grad:  # nothing before it has a graph: give it one
                y = y + self.anchors[0]
            self.listen(y, (w, b), input.detach())
            return y

        return recorded

    def _plain(self, weight: Any) -> tuple[int, Any]:
        """Its key, or 0 where it is not watched, and what the product reads."""
        found = self.watched.get(id(weight))
        return (id(weight), found[1]) if found is not None else (0, weight)

    def listen(self, y: Tensor, key: tuple[int, int], x: Tensor) -> None:
        """Take note of y's gradient when the backward pass has it; `key` names the weight and the bias, 0 for none.

        The hook sits on y's node, at a third of the cost of one on y.
        """
        assert y.grad_fn is not None
        y.grad_fn.register_prehook(partial(self._receive, key, x, x._version, y.output_nr))

    def _receive(
        self, key: tuple[int, int], x: Tensor, version: int, place: int, grads: Sequence[Tensor | None]
    ) -> None:
        if (g := grads[place]) is None:
            return
        if x._version != version:
            got = "an in-place operation on the input of a linear layer"
            want, mend = "a main network that keeps its activations", "use the out-of-place one"
            raise bad("solve(gradient='deferred')", want, got, mend, Refused)
        waiting = self.waiting[key]
        waiting.append((x, g))
        if len(waiting) == EVALUATIONS or len(waiting) * g[0].numel() >= ROWS * g.shape[-1]:
            self._add(key, self.waiting.pop(key))

    def _add(self, key: tuple[int, int], pairs: list[tuple[Tensor, Tensor]]) -> None:
        w, b = key
        gs = _rows([g for _, g in pairs])
        if w:
            xs = _rows([x.expand(g.shape[0], *x.shape[1:]) for x, g in pairs])
            total = self.sums.get(w)
            self.sums[w] = torch.bmm(gs.mT, xs) if total is None else total.baddbmm_(gs.mT, xs)
        if b:
            total = self.sums.get(b)
            self.sums[b] = gs.sum(1) if total is None else total.add_(gs.sum(1))

    def collect(self) -> dict[int, Tensor]:
        """The sums by the weights' identity; starts afresh."""
        for key in list(self.waiting):
            self._add(key, self.waiting.pop(key))
        sums, self.sums = self.sums, {}
        return sums


def _rows(ts: list[Tensor]) -> Tensor:
    """``(B, rows, F)`` of ``(B, ..., F)`` from several evaluations."""
    flat = [three(t) for t in ts]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)


def three(t: Tensor) -> Tensor:
    """``(B, rows, F)`` of ``(B, ..., F)``."""
    return t.unsqueeze(1) if t.dim() == 2 else t if t.dim() == 3 else t.flatten(1, -2)
