"""What a path is: a name, a table of rules, and the form in which it wants each weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from .._errors import Refused
from .._functorch import batched, new_level, unbatched
from .._types import Table
from ..weights import STRUCTURED, Leaf, batch_of, gather, map_tensors, materialize
from ._common import COMMON
from ._guards import changed, judge, kept, row, versions
from ._main import Caller
from ._rules import Known, Log, Rules, placeholder


@dataclass(frozen=True)
class Load:
    """What a weight set is expected to serve: `inputs` N for each of B networks, in each of `evaluations` calls."""

    networks: int
    inputs: int = 1
    evaluations: int = 1


@dataclass(frozen=True)
class Choice:
    """The form a path gives one weight, and why."""

    leaf: Leaf
    form: str
    why: str


def dense(leaf: Leaf, load: Load) -> Choice:
    """Every weight as a dense ``(B, *shape)`` tensor."""
    return Choice(materialize(leaf), "dense", "this path takes dense weights")


@dataclass(frozen=True)
class Path:
    """One way to evaluate B main networks with B sets of weights.

    Args:
        name: what `path=` calls it.
        table: torch function -> rule, see `paths/_rules.py`; `linear` makes one for `F.linear` from a product.
        prepare: the form of each weight, chosen once when the weights are bound.
        gather: a leaf's networks by an index ``(S,)``, one for each row of x.
    """

    name: str
    table: Table = field(repr=False)
    prepare: Callable[[Leaf, Load], Choice] = field(default=dense, repr=False)
    gather: Callable[[Leaf, Tensor], Leaf] = field(default=gather, repr=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle a path of this library by its name: tables hold functions that pickle cannot find."""
        from . import EVERY, resolve

        return (resolve, (self.name,)) if EVERY.get(self.name) is self else super().__reduce_ex__(protocol)

    def bind(self, caller: Caller, leaves: Sequence[Leaf], randomness: str, shared: bool) -> Evaluation:
        """A function of physical inputs ``(B, N, ...)`` for leaves that `prepare` has formed."""
        return Evaluation(self.table, caller, tuple(leaves), randomness, shared)


class Evaluation:
    """The main network under vmap, with a path's rules inside, for one set of weights."""

    def __init__(self, table: Table, caller: Caller, leaves: tuple[Leaf, ...], randomness: str, shared: bool) -> None:
        self.table, self.caller, self.leaves, self.shared = {**COMMON, **table}, caller, leaves, shared
        self.randomness, self.size = randomness, batch_of(leaves[0])[0]
        self.dense = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.stand_ins = [placeholder(w) if isinstance(w, STRUCTURED) else w for w in leaves]
        self._seen: dict[int, tuple[list[Tensor], Known]] = {}

    def _weights(self, level: int) -> tuple[list[Tensor], Known]:
        """What the main network sees of its weights: dense ones wrapped for this level, placeholders of the others."""
        if not is_compiling() and level in self._seen:  # Dynamo must not find wrappers of another call
            return self._seen[level]
        pairs = zip(self.leaves, self.stand_ins, strict=True)
        seen = [batched(w, level) if isinstance(w, Tensor) else stand_in for w, stand_in in pairs]
        known = {id(s): (s, w) for s, w in zip(seen, self.leaves, strict=True)}
        if not is_compiling():
            self._seen[level] = seen, known
        return seen, known

    def __call__(self, args: tuple[Any, ...], log: Log | None = None) -> Any:
        if is_compiling():
            return self._evaluate(args, log, [])
        self.caller.refuse_packing()
        calls: list[Rules] = []
        before = versions(self.dense)
        try:
            with kept(self.caller.buffers()) if self.caller.holders else nullcontext():
                y = self._evaluate(args, log, calls)
        except Refused:
            raise
        except Exception as error:
            call = calls[0].call if calls else None
            rows = (args if self.shared else row(args, b) for b in range(self.size))
            raise judge(self.caller, self.leaves, rows, call, error) from error
        if before != versions(self.dense) or any(v > 0 for v in versions(calls[0].written)):
            raise changed()
        return y

    def _evaluate(self, args: tuple[Any, ...], log: Log | None, calls: list[Rules]) -> Any:
        """The result; the rules that were in force are added to `calls`, where an exception leaves them to be read."""
        with new_level(self.size, self.randomness) as level:
            weights, known = self._weights(level)
            rules = Rules(self.table, level, known, log, self.caller)
            calls.append(rules)
            if not self.shared:
                args = tuple([map_tensors("net(x=...)", lambda a: batched(a, level), a) for a in args])
            with rules:
                y = self.caller(weights, args)
            return map_tensors("main", lambda t: unbatched(rules.dense_of(t), level, self.size), y)


def linear(product: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Callable[..., Any]:
    """A rule for `F.linear` from a batched product ``(x (B, N, I), w (B, O, I), b (B, O) or None) -> (B, N, O)``.

    Inputs of any number of dims become three, inputs or biases that all networks share are expanded; a call whose
    sizes do not fit is left to vmap, which raises what torch raises.
    """

    @wraps(product)
    def rule(input: Any, weight: Any, bias: Any = None) -> Any:
        if not isinstance(input, Tensor) or not isinstance(weight, Tensor) or weight.dim() != 3 or input.dim() < 2:
            return NotImplemented
        B, O, I = weight.shape
        if input.shape[-1] != I or input.shape[0] not in (1, B) or input.dtype != weight.dtype:
            return NotImplemented
        if bias is not None and bias.shape not in ((B, O), (1, O)):
            return NotImplemented
        if input.shape[0] != B:
            input = input.expand(B, *input.shape[1:])
        if bias is not None and bias.shape[0] != B:
            bias = bias.expand(B, O)
        return with_rows(product, input, weight, bias)

    return rule


def with_rows(product: Callable[[Tensor, Any, Any], Tensor], x: Tensor, w: Any, b: Any) -> Tensor:
    """A product of three-dimensional inputs ``(B, N, I)``, for inputs ``(B, *dims, I)`` of any number of dims."""
    if x.dim() == 3:
        return product(x, w, b)
    if x.dim() == 2:
        return product(x.unsqueeze(1), w, b).squeeze(1)
    return product(x.flatten(1, -2), w, b).unflatten(1, x.shape[1:-1])
