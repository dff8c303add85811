"""A solve as one differentiable operation: it runs on detached inputs, with a graph of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._errors import Refused, bad
from .._functorch import inside_transform
from ._deferred import Recorder
from ._graph import refuse_captured

DIRECT = 'use gradient="direct"'


def isolated(
    gradient: str,
    solve: Callable[[Sequence[Tensor]], Tensor],
    own: Sequence[Tensor],
    given: Sequence[Tensor],
    recorder: Recorder,
) -> Tensor:
    """``solve(given)``, where no input's gradient passes through another input.

    Args:
        gradient: what the errors call it.
        solve: gets detached stand-ins of `given`, which require grad where those do.
        own: parameters that `solve` reads by itself: those that modules hold.
        given: everything else that its result depends on.
        recorder: forms the gradients of those stand-ins that it watches.

    Raises:
        Refused: `solve` depends on another tensor that requires grad; a torch.func transform is active, which cannot
            follow an autograd function with a graph of its own; on backward, ``create_graph=True``.
    """
    if inside_transform():
        call = f'solve(gradient="{gradient}")'
        raise bad(call, "a call outside torch.func transforms", "one inside", DIRECT, Refused)
    return Isolated.apply(gradient, solve, recorder, len(own), *own, *given)  # type: ignore[return-value]


class Isolated(torch.autograd.Function):
    """See `isolated`."""

    @staticmethod
    def forward(ctx: Any, gradient: str, solve: Any, recorder: Recorder, own: int, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        with torch.enable_grad():
            inner = [p.detach().requires_grad_(p.requires_grad) for p in tensors[own:]]
            out = solve(inner)
        ctx.gradient, ctx.recorder, ctx.inputs = gradient, recorder, [*tensors[:own], *inner]
        if out.requires_grad:
            refuse_captured(gradient, out, [*[p for p in ctx.inputs if p.requires_grad], *recorder.anchors])
        # The inner graph hangs on `out` alone: autograd frees it when it frees what functions saved.
        ctx.save_for_backward(out)
        return out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled():
            call = f'solve(gradient="{ctx.gradient}")'
            raise bad(call, "a first derivative", "create_graph=True", DIRECT, Refused)
        (out,) = ctx.saved_tensors
        found: dict[int, Tensor] = {}
        if out.requires_grad:
            wanted = [*[p for p in ctx.inputs if p.requires_grad], *ctx.recorder.anchors]
            # retained, for a second backward: the graph dies with `out`
            grads = torch.autograd.grad(out, wanted, grad, retain_graph=True, allow_unused=True)
            found = {id(p): g for p, g in zip(wanted, grads, strict=True) if g is not None}
        for key, total in ctx.recorder.collect().items():
            found[key] = total.add_(found[key]) if key in found else total
        need = ctx.needs_input_grad[4:]
        return None, None, None, None, *[found.get(id(p)) if n else None for p, n in zip(ctx.inputs, need, strict=True)]
