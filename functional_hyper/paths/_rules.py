"""The evaluator: vmap is the meaning, a path is a table of rules inside it.

The main network runs once, under vmap over the B networks. Inside, `Rules` sees every torch call. Where the path's
table has a rule, the call is taken out of vmap, answered on physical tensors with the network axis in front, and put
back; everything else is ordinary vmap. A rule is a question of speed, never of correctness.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from .._errors import Refused, bad
from .._functorch import batched, level_of, physical, unwrapped
from .._types import Table
from ..weights import STRUCTURED, Leaf, Structured, data_of, shape_of

# What a placeholder can answer itself: it has the parameter's shape, dtype and device.
METADATA: frozenset[Any] = frozenset(
    [
        Tensor.shape.__get__,  # type: ignore[attr-defined]
        Tensor.ndim.__get__,  # type: ignore[attr-defined]
        Tensor.dtype.__get__,  # type: ignore[attr-defined]
        Tensor.device.__get__,  # type: ignore[attr-defined]
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.is_floating_point,
        Tensor.__len__,
    ]
)


class Rules(TorchFunctionMode):
    """One evaluation: a table of rules at one vmap level, and the structured leaves behind their placeholders.

    Args:
        table: torch function -> rule. A rule gets the call's arguments with every tensor physical, the network axis in
            front (of size 1 where the tensor is the same for all networks), and structured leaves as they are. It
            returns the physical result, a leaf, or NotImplemented.
        level: functorch's number of our vmap.
        log: where `explain` collects (call, shapes, what answered it).
    """

    def __init__(self, table: Table, level: int, log: list[tuple[str, str, str]] | None = None) -> None:
        super().__init__()
        self.table, self.level, self.log = table, level, log
        self.leaves: dict[int, tuple[Tensor, Structured]] = {}
        self.dense: dict[int, Tensor] = {}
        self.call: Any = None

    def placeholder(self, leaf: Structured) -> Tensor:
        """A tensor of the leaf's shape that takes no memory; NaN, so that nothing can be computed from it unnoticed."""
        data = data_of(leaf)
        stand_in = torch.full((), float("nan"), dtype=data.dtype, device=data.device).expand(shape_of(leaf))
        return self.register(stand_in, leaf)

    def register(self, stand_in: Tensor, leaf: Structured) -> Tensor:
        self.leaves[id(stand_in)] = (stand_in, leaf)  # held, so that no other tensor gets its id
        return stand_in

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.call = func
        rule = self.table.get(func)
        if rule is not None:
            answer = self._answer(rule, args, kwargs)
            if answer is not NotImplemented:
                self._note(func, rule, args)
                return self.wrap(answer)
        if self.leaves and func not in METADATA:
            args, kwargs = optree.tree_map(self.dense_of, (args, kwargs), none_is_leaf=True)  # type: ignore[assignment]
        if self.log is not None and func not in METADATA:
            self._note(func, None, args)
        return func(*args, **kwargs)

    def _answer(self, rule: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What the rule makes of the call; NotImplemented where a tensor is not ours to unwrap."""
        ours = False
        given: list[Any] = []
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, Tensor):
                if id(arg) in self.leaves:
                    arg, ours = self.leaves[id(arg)][1], True
                elif (level := level_of(arg)) == self.level:
                    arg, ours = physical(arg, level), True
                elif level > self.level:  # a transform inside the main network wraps it: vmap must take the call
                    return NotImplemented
                else:
                    arg = arg.unsqueeze(0)
            given.append(arg)
        if not ours:
            return NotImplemented
        return rule(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))

    def wrap(self, answer: Leaf) -> Tensor:
        if isinstance(answer, STRUCTURED):
            return self.placeholder(answer)
        return batched(answer, self.level)

    def dense_of(self, arg: Any) -> Any:
        """The argument; where it stands for a structured leaf, that leaf materialised, once per evaluation."""
        if not isinstance(arg, Tensor):
            return arg
        key = id(arg)
        if key in self.leaves:
            if key not in self.dense:
                self.dense[key] = batched(self.leaves[key][1].materialize(), self.level)
                self._note("materialize", None, (self.dense[key],))
            return self.dense[key]
        inner = arg
        while level_of(inner) > self.level:  # a transform inside the main network wraps it
            inner = unwrapped(inner)
            if id(inner) in self.leaves:
                got = "a structured weight inside another transform"
                raise bad("main", "weights that its own transforms can see", got, 'use path="bmm" or "loop"', Refused)
        return arg

    def _note(self, func: Any, rule: Any, args: Any) -> None:
        if self.log is None:
            return
        name = func if isinstance(func, str) else call_name(func)
        shapes = ", ".join(str(tuple(a.shape)) for a in args if isinstance(a, Tensor))
        self.log.append((name, shapes, getattr(rule, "__name__", "vmap") if rule is not None else "vmap"))


def call_name(func: Any) -> str:
    """A torch function's public name."""
    return (resolve_name(func) or getattr(func, "__name__", str(func))) if func is not None else "the main network"
