"""`compose`: hypernetwork, main network and path as one pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optree
import torch
from torch import Tensor, nn

from . import paths
from ._errors import bad, listed
from ._functorch import is_concrete
from ._text import aligned
from ._types import Cond, Inputs, Main, Phi
from .evaluate import Bound, check_leaves, count_inputs
from .hypernets import Hypernet
from .params import leaf_names, leaves_of
from .paths import Choice, Load, Path
from .paths._main import Caller
from .paths._rules import Log
from .weights import batch_of


def compose(
    hyper: Hypernet,
    main: Main,
    path: str | Path = "auto",
    *,
    many: bool = False,
    shared: bool = False,
    inputs: int | None = None,
    evaluations: int = 1,
    randomness: str = "error",
) -> Model:
    """The whole model as a function of phi: ``model(phi, cond, x) -> y``.

    Args:
        hyper: generates the weights of `main`.
        main, path, many, shared, evaluations, randomness: as for `bind`.
        inputs: the N that "auto" should expect; None is the N of the x that comes. Rows within one input (a sequence, a
            set, pixels) count, too.

    Returns:
        ``model(phi, cond, x, index=None)``: cond has one batch dim, B rows; x is ``(B, ...)``, with `many`
        ``(B, N, ...)``, with `shared` ``(N, ...)``. With `index` ``(S,)``, x is ``(S, ...)`` and row s is evaluated
        with network ``index[s]``: many samples of few networks, the weights generated once per cond.

    Raises:
        HyperError: the spec is not that of `main`; "contracted" for a hypernetwork that gives no factors.

    Example:
        >>> import functional_hyper as fh
        >>> main = torch.nn.Linear(3, 2)
        >>> model = fh.compose(fh.full(fh.param_spec(main), in_features=4), main)
        >>> model(model.hyper.init(), torch.zeros(5, 4), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    resolved = paths.resolve(path)
    if not isinstance(hyper, Hypernet):
        raise bad("compose(hyper=...)", "a Hypernet first", type(hyper).__name__, "then the main network")
    if isinstance(main, nn.Module):
        own = {n: tuple(p.shape) for n, p in main.named_parameters()}
        wrong = [s.name for s in hyper.spec.slots if own.get(s.name) != s.shape]
        if wrong:
            got = listed(f"{n}: {own.get(n, 'absent')}" for n in wrong)
            want = "a main network with " + listed(f"{s.name}: {s.shape}" for s in hyper.spec.slots if s.name in wrong)
            raise bad("compose(main=...)", want, got, "make the hypernetwork from param_spec(main)")
    elif not callable(main):
        raise bad("compose(main=...)", "an nn.Module or a function f(params, x)", type(main).__name__, "pass either")
    if not hyper.spec.slots:
        raise bad("compose(hyper=...)", "at least one generated parameter", "none", "see param_spec(include=...)")
    if resolved.name == "contracted" and not hyper.structured:
        mend = 'use path="auto", or give your Hypernet a `weights` that returns structured leaves'
        raise bad('compose(path="contracted")', "a hypernetwork that gives factors", repr(hyper), mend)
    caller = Caller(main, hyper.spec.template)
    return Model(hyper, main, resolved, many, shared, inputs, evaluations, randomness, caller)


@dataclass(frozen=True)
class Model:
    """``model(phi, cond, x, index=None) -> y``. Made by `compose`."""

    hyper: Hypernet
    main: Main
    path: Path
    many: bool
    shared: bool
    inputs: int | None
    evaluations: int
    randomness: str
    caller: Caller = field(repr=False)

    def __call__(self, phi: Phi, cond: Cond, x: Inputs, index: Tensor | None = None) -> Any:
        return self.bind(phi, cond, x, index)(x)

    def bind(self, phi: Phi, cond: Cond, x: Inputs, index: Tensor | None = None) -> Bound:
        """The networks of these conds, ready for x."""
        spec = self.hyper.spec
        try:
            weights = self.hyper.weights(phi, cond)
        except (KeyError, TypeError) as error:
            key = error.args[0] if error.args else None
            if isinstance(phi, Mapping) and (not isinstance(error, KeyError) or key in phi or key is None):
                raise
            got = f"no {key}" if isinstance(phi, Mapping) else type(phi).__name__
            raise bad("model(phi=...)", "a dict by name as hyper.init() gives it", got, "see hyper.init()") from error
        leaves = leaves_of("compose(hyper=...)", spec, weights)
        check_leaves("model(cond=...)", spec.names, leaves, spec.shapes, "conds have one batch dim: (B, ...), ids (B,)")
        if index is not None:
            self._check_index(index, batch_of(leaves[0])[0])
            leaves = [self.path.gather(leaf, index) for leaf in leaves]
        inputs = self.inputs or count_inputs(x, self.many, self.shared)
        load = Load(batch_of(leaves[0])[0], inputs, self.evaluations)
        return Bound(self.caller, leaves, self.path, self.many, self.shared, load, self.randomness)

    def _check_index(self, index: Tensor, networks: int) -> None:
        if self.many or self.shared:
            raise bad("model(index=...)", "many=False and shared=False", "either", "rows of x are single inputs")
        if index.dtype not in (torch.int64, torch.int32) or index.dim() != 1:
            got = f"{index.dtype} of shape {tuple(index.shape)}"
            raise bad("model(index=...)", "int64 of shape (S,)", got, "one network's number for each row of x")
        if is_concrete(index) and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < networks:
            got = f"{int(index.min())} to {int(index.max())}"
            raise bad("model(index=...)", f"numbers in [0, {networks}), a row of cond each", got, "check the ids")


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; prints as two tables."""

    path: str
    weights: list[tuple[str, str, str]]
    calls: list[tuple[str, str, str]]

    def __str__(self) -> str:
        weights = aligned([("weight", "form", "why"), *self.weights])
        calls = aligned([("call", "shapes, per network", "answered by"), *self.calls])
        return "\n  ".join([f'path "{self.path}"', *weights, *calls])


def explain(model: Model | Bound, *args: Any, **kwargs: Any) -> Explanation:
    """Which weight takes which form and why, and which call of the main network took which rule.

    Args:
        model: what `compose` or `bind` returned; the rest is what it would be called with.

    Returns:
        An `Explanation`: print it, or read its `weights` and `calls`.
    """
    bound = model if isinstance(model, Bound) else model.bind(*args, **kwargs)
    x = args[0] if isinstance(model, Bound) else kwargs.get("x", args[2] if len(args) > 2 else None)
    log = Log()
    bound(x, log)  # type: ignore[arg-type]
    template = bound.caller.template
    positions = dict(zip(leaf_names(template), optree.tree_leaves(template), strict=True))
    names = sorted(positions, key=positions.__getitem__)
    rows = [(name, *_told(c, log)) for name, c in zip(names, bound.choices, strict=True)]
    return Explanation(bound.path.name, rows, [*log])


def _told(choice: Choice, log: Log) -> tuple[str, str]:
    """The form that a weight had in the call, and why."""
    if any(leaf is choice.leaf for leaf in log.written):
        return "dense, in each call", f"no rule answers all that it meets; {choice.form} else"
    return choice.form, choice.why
