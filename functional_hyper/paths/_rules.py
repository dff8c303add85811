"""The evaluator: vmap is the meaning, a path is a table of rules inside it.

The main network runs once, under vmap over the B networks. Inside, `Rules` sees every torch call. Where the path's
table has a rule, the call is taken out of vmap, answered on physical tensors with the network axis in front, and put
back; everything else is ordinary vmap. A rule is a question of speed, never of correctness.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, partial
from inspect import signature
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode

from .._errors import Hidden, bad
from .._functorch import batched, level_of, outside, physical, unwrapped
from .._types import Table
from ..weights import STRUCTURED, Leaf, Structured, data_of, shape_of
from ._autocast import LOWERED, lowered
from ._guards import MENDS, call_name, changed, may_write, updated, writes
from ._layers import PARTS
from ._main import Caller

# What a placeholder can answer itself: it has the parameter's shape, dtype and device.
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_cpu", "is_meta", "is_nested", "is_sparse")
METADATA: frozenset[Any] = frozenset(
    [
        *[getattr(Tensor, name).__get__ for name in ATTRIBUTES],
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.is_floating_point,
        Tensor.__len__,
    ]
)

REQUIRES_GRAD: Any = Tensor.requires_grad.__get__  # type: ignore[attr-defined]

Known: TypeAlias = dict[int, tuple[Tensor, Leaf]]


class Log(list[tuple[str, str, str]]):
    """What `explain` collects: (call, shapes, what answered it), and the leaves that were written down in the call."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Leaf] = []
        self.sources: dict[int, tuple[Leaf, Leaf]] = {}

    def derive(self, leaf: Leaf, source: Leaf) -> None:
        """A rule made one leaf from another, such as its transpose."""
        self.sources[id(leaf)] = leaf, self.source(source)

    def source(self, leaf: Leaf) -> Leaf:
        return self.sources.get(id(leaf), (leaf, leaf))[1]


class Rules(TorchFunctionMode):
    """One evaluation: a table of rules at one vmap level, and the leaves behind the main network's weights.

    Args:
        table: torch function -> rule. A rule gets the call's arguments with every tensor physical, the network axis in
            front (of size 1 where the tensor is the same for all networks), and structured leaves as they are. It
            returns the physical result, a leaf, or NotImplemented.
        level: functorch's number of our vmap.
        known: by identity, what the main network sees of a weight -> (that tensor, the leaf it stands for).
        log: where `explain` collects (call, shapes, what answered it).
        caller: the main network.
    """

    def __init__(self, table: Table, level: int, known: Known, log: Log | None, caller: Caller) -> None:
        super().__init__()
        self.caller = caller
        self.table, self.level, self.log = table, level, log
        self.known = known
        leaves = [leaf for _, leaf in known.values()]
        self.structured = any(isinstance(leaf, STRUCTURED) for leaf in leaves)
        self.kind = data_of(leaves[0]).device.type
        self.dense: dict[int, Tensor] = {}
        self.written: list[Tensor] = []
        self.call: Any = None

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.call = func
        if not is_compiling() and (kwargs or may_write(func)) and (written := writes(func, args, kwargs)):
            self._refuse_writes(func, written)
        lowers = func in LOWERED and torch.is_autocast_enabled(self.kind)
        rule = self.table.get(func)
        if rule is not None:
            answer = self._answer(rule, args, kwargs, lowers)
            if answer is not NotImplemented:
                if self.log is not None:
                    leaves = [self.known[id(a)][1] for a in args if id(a) in self.known]
                    factors = [leaf for leaf in leaves if isinstance(leaf, STRUCTURED)]
                    self._note(func, args, rule.__name__ if factors else getattr(rule, "dense", rule.__name__))
                    for leaf in factors if isinstance(answer, STRUCTURED) else []:
                        self.log.derive(answer, leaf)
                return self._wrap(answer)
        if func == REQUIRES_GRAD:
            return self._requires_grad(args[0])
        if (parts := PARTS.get(func)) is not None:
            with self:  # what it consists of is for the rules to see
                answer = parts(*args, **(kwargs or {}))
            if answer is not NotImplemented:
                return answer
        if self.structured and func not in METADATA:
            args, kwargs = self._dense_args(args, kwargs)
        if lowers and func is not torch.einsum:  # which is no product where it sums nothing, and lowers its own
            args, kwargs = optree.tree_map(lowered, (args, kwargs or {}), none_is_leaf=True)  # type: ignore[assignment]
        if (mend := MENDS.get(func)) is not None:
            answer = mend(*args, **(kwargs or {}))
            if answer is not NotImplemented:
                return answer
        if self.log is not None and func not in METADATA:
            self._note(func, args, "vmap")
        return func(*args, **kwargs) if kwargs else func(*args)

    def _answer(self, rule: Callable[..., Any], args: Any, kwargs: Any, lowers: bool) -> Any:
        """What the rule makes of the call; NotImplemented where a tensor is not ours to unwrap."""
        ours = False
        given: list[Any] = []
        for arg in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(arg, Tensor):
                if (found := self.known.get(id(arg))) is not None:
                    arg, ours = found[1], True
                elif (inner := physical(arg, self.level)) is not None:
                    arg, ours = inner, True
                elif is_compiling() or level_of(arg) > self.level:
                    return NotImplemented  # wrapped, or maybe, by a transform inside the main network: vmap's to answer
                else:
                    arg = arg.unsqueeze(0)
            given.append(arg)
        if not ours:
            return NotImplemented
        if lowers:
            given = [lowered(arg) for arg in given]
        if not kwargs:
            return outside(self.level, rule, given)
        try:
            bound = signature(rule).bind(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))
        except TypeError:  # an argument that the rule does not know, such as out=
            return NotImplemented
        return outside(self.level, partial(rule, **bound.kwargs), bound.args)

    def _wrap(self, answer: Leaf) -> Tensor:
        if not isinstance(answer, STRUCTURED):
            return batched(answer, self.level)
        stand_in = placeholder(answer)
        self.known = {**self.known, id(stand_in): (stand_in, answer)}
        return stand_in

    def _dense_args(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        kwargs = kwargs or {}
        if any(isinstance(a, (list, tuple, dict)) for a in (*args, *kwargs.values())):
            return optree.tree_map(self.dense_of, (args, kwargs), none_is_leaf=True)  # type: ignore[return-value]
        return [self.dense_of(a) for a in args], {k: self.dense_of(a) for k, a in kwargs.items()}

    def dense_of(self, arg: Any) -> Any:
        """The argument; where it stands for a structured leaf, that leaf materialised, once per evaluation."""
        if not isinstance(arg, Tensor):
            return arg
        key = id(arg)
        leaf = self.known[key][1] if key in self.known else None
        if isinstance(leaf, STRUCTURED):
            if key not in self.dense:
                dense = outside(self.level, leaf.materialize, ())
                # a transform inside the main network wraps what is computed in it
                while not is_compiling() and level_of(dense) > self.level:
                    dense = unwrapped(dense)
                self.written.append(dense)
                self.dense[key] = batched(dense, self.level)
                if self.log is not None:
                    self._note("materialize", (arg,), "no rule for what follows")
                    self.log.written.append(self.log.source(leaf))
            return self.dense[key]
        if not self.structured or is_compiling():  # a compiler cannot ask; NaN would betray a placeholder that escaped
            return arg
        inner = arg
        while level_of(inner) > self.level:  # a transform inside the main network wraps it
            inner = unwrapped(inner)
            if id(inner) in self.known and isinstance(self.known[id(inner)][1], STRUCTURED):
                got = "a structured weight inside another transform"
                raise bad("main", "weights that its own transforms can see", got, 'use path="bmm" or "loop"', Hidden)
        return arg

    def _requires_grad(self, arg: Tensor) -> bool:
        """As the main network would find it in the loop: vmap's wrappers deny it."""
        known = self.known.get(id(arg))
        inner = physical(arg, self.level) if known is None else known[1]
        if isinstance(inner, STRUCTURED):
            return any(t.requires_grad for t in inner.factors.values())
        return (arg if inner is None else inner).requires_grad

    def _refuse_writes(self, func: Any, tensors: list[Tensor]) -> None:
        """A write into a weight or a buffer, or into a view of one, must not reach the caller's tensor."""
        weights = {w.untyped_storage()._cdata for _, w in self.known.values() if isinstance(w, Tensor)}
        for tensor in tensors:
            inner = physical(tensor, self.level)
            if id(tensor) in self.known or (inner is not None and inner.untyped_storage()._cdata in weights):
                raise changed()
            if inner is None and level_of(tensor) < 0 and (name := self.buffers.get(tensor.untyped_storage()._cdata)):
                raise updated(func, name)

    @cached_property
    def buffers(self) -> dict[int, str]:
        """The main network's buffers, storage -> name."""
        return {t.untyped_storage()._cdata: name for *_, name, t in self.caller.buffers() if level_of(t) < 0}

    def _note(self, func: Any, args: Any, answered: str) -> None:
        assert self.log is not None
        shapes = ", ".join(str(tuple(a.shape)) for a in args if isinstance(a, Tensor))
        self.log.append((call_name(func), shapes, answered))


def placeholder(leaf: Structured) -> Tensor:
    """A tensor of the leaf's shape that takes no memory; NaN, so that nothing can be computed from it unnoticed."""
    data = data_of(leaf)
    nan = _traced_nan if is_compiling() else _nan
    return nan(data.dtype, data.device).expand(shape_of(leaf))


def _traced_nan(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), float("nan"), dtype=dtype, device=device)


_nan = cache(_traced_nan)
