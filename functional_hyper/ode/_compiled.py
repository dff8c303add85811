"""`compile=True`: one step of a fixed-step method as compiled code, its weight gradient deferred.

Inside a step nothing may have side effects, so that the recording of `_deferred` becomes inputs and outputs: every
recorded linear call adds a tap, zeros whose gradient is ``dL/dy``, and returns its input x; over the stages of a step
they are one tensor each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._errors import bad
from .._functorch import apart
from ..paths import Path, bmm
from ..paths._main import Caller
from ._deferred import Recorder, three

Call = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""A recorded call of an evaluation: its weight's and bias's numbers (-1: not a generated one), x's and y's shapes."""

_STEPS: dict[Any, Callable[..., tuple[Tensor, list[Tensor]]]] = {}
MOST = 16  # compiled steps that are kept


def plan(path: Path, leaves: Sequence[Tensor], evaluate: Callable[[Path], Any]) -> list[Call]:
    """The linear calls of one evaluation, found by running it."""
    place, calls = {id(w): i for i, w in enumerate(leaves)}, []
    rule = path.table.get(F.linear, bmm.RULE)

    def noted(input: Any, weight: Any, bias: Any = None) -> Any:
        y = rule(input, weight, bias)
        w, b = place.get(id(weight), -1), place.get(id(bias), -1)
        if isinstance(y, Tensor) and (w >= 0 or b >= 0):
            calls.append((w, b, tuple(input.shape), tuple(y.shape)))
        return y

    with torch.no_grad():
        evaluate(_with_rule(path, noted))
    return calls


def _with_rule(path: Path, rule: Callable[..., Any]) -> Path:
    return Path(path.name, {**path.table, F.linear: rule}, path.prepare)


def compiled_step(functions: tuple[Any, ...], calls: list[Call], backend: Any) -> Any:
    """The compiled step of (main, template, path, many, field, method), from the cache where they were seen before."""
    main, template, path, many, field, method = functions
    key = (main, repr(template), path.name, id(path), many, field, method, tuple(calls), backend)
    if key not in _STEPS:
        if len(_STEPS) >= MOST:
            _STEPS.pop(next(iter(_STEPS)))
        step = apart(_make_step(functions, calls))
        _STEPS[key] = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    return _STEPS[key]


def _make_step(functions: tuple[Any, ...], calls: list[Call]) -> Any:
    main, template, path, many, field, method = functions
    from torchdiffeq._impl.odeint import SOLVERS

    solver, stub = SOLVERS[method]._step_func, SimpleNamespace(perturb=False)
    caller, product = Caller(main, template), path.table.get(F.linear, bmm.RULE)
    rows = [_rows(y) for _, _, _, y in calls]

    def step(leaves: list[Tensor], taps: list[Tensor], args: Any, t0: Tensor, t1: Tensor, y: Tensor) -> Any:
        seen: list[Tensor] = []

        def rule(input: Any, weight: Any, bias: Any = None) -> Any:
            k = len(seen) % len(calls)
            w, b, x_shape, y_shape = calls[k]
            if not isinstance(input, Tensor) or tuple(input.shape) != x_shape:
                return product(input, weight, bias)
            out = product(input, leaves[w].detach() if w >= 0 else weight, leaves[b].detach() if b >= 0 else bias)
            stage = len(seen) // len(calls)
            tap = taps[k].narrow(1, stage * rows[k], rows[k]).view(y_shape)
            seen.append(input.detach())
            return out + tap

        run = _with_rule(path, rule).bind(caller, leaves, "error", False)

        def net(x: Any) -> Any:
            given = x if isinstance(x, tuple) else (x,)
            if many:
                return run(given)
            return run(tuple(g.unsqueeze(1) if isinstance(g, Tensor) else g for g in given)).squeeze(1)

        def rhs(t: Tensor, y: Tensor, perturb: Any = None) -> Tensor:
            return field(net, t, y, *args)

        change, _ = solver(stub, rhs, t0, t1 - t0, t1, y)
        xs = [torch.cat([three(x) for x in seen[k :: len(calls)]], 1) for k in range(len(calls))]
        return y + change, xs

    return step


def _rows(shape: tuple[int, ...]) -> int:
    return torch.Size(shape[1:-1]).numel()


def _run(step: Any, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
    try:
        return step(*inputs)
    except Exception as error:
        if type(error).__name__ != "FailOnRecompileLimitHit":
            raise
        want, mend = "args of a few kinds", "give numbers as tensors, tensors in few shapes, or compile=False"
        raise bad("solve(compile=...)", want, "more kinds than Dynamo compiles for a function", mend) from error


def solve_steps(
    step: Any,
    recorder: Recorder,
    leaves: Sequence[Tensor],
    calls: list[Call],
    stages: int,
    args: Any,
    y0: Tensor,
    t: Tensor,
) -> Tensor:
    """The states at the times, a compiled step from each to the next; t ``(T,)`` or columns ``(T, B, 1, ...)``."""
    anchor = recorder.anchors[0]
    ys = [y0 + anchor]  # the first step has a graph as the others have: one compilation
    key = [*map(id, leaves), 0]  # the last for -1, no generated weight
    for t0, t1 in pairwise(t.unbind(0)):
        taps = [anchor.expand(y[0], stages * _rows(y), y[-1]) for _, _, _, y in calls]
        y, xs = _run(step, leaves, taps, args, t0, t1, ys[-1])
        for (w, b, _, _), tap, x in zip(calls, taps, xs, strict=True):
            if tap.requires_grad:
                recorder.listen(tap, (key[w], key[b]), x.detach())
        ys.append(y)
    return torch.stack(ys)
