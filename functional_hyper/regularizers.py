"""`output_regularizer`: what a hypernetwork generated for earlier tasks, held in place while it learns another one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._errors import bad
from ._types import Cond, Flat, Phi
from .hypernets import Hypernet


def output_regularizer(hyper: Hypernet, phi: Phi, targets: tuple[Cond, Flat]) -> Tensor:
    """How far the weights of earlier conds have moved: ``mean_b |hyper.apply(phi, conds)_b - thetas_b|^2``.

    Added to the loss of the present task, ``task_loss + beta * output_regularizer(hyper, phi, targets)``, it keeps the
    earlier tasks' networks without any of their data. Before a task, keep what phi generates for the earlier ones:
    ``with torch.no_grad(): targets = (conds, hyper.apply(phi, conds))``.

    Args:
        hyper: any hypernetwork.
        phi: its parameters as they are now, which the gradient reaches.
        targets: ``(conds, thetas)``: conds with batch dims, such as the ids ``(T,)`` of earlier tasks, and the flat
            vectors ``(*batch, P)`` that they gave. thetas get no gradient; conds that require one do.

    Returns:
        A scalar: the squared distances, summed over the P weights, averaged over the conds; 0 if there are no conds.

    Raises:
        HyperError: not such a pair, or thetas of another shape than the conds give.

    Example:
        >>> from functional_hyper import full, param_spec, with_embedding
        >>> hyper = with_embedding(full(param_spec(torch.nn.Linear(3, 2)), in_features=4), num_tasks=3)
        >>> phi, earlier = hyper.init(), torch.arange(2)
        >>> with torch.no_grad():
        ...     targets = earlier, hyper.apply(phi, earlier)
        >>> phi = {name: value.detach() + 0.1 for name, value in phi.items()}
        >>> bool(output_regularizer(hyper, phi, targets) > 0)
        True

    Von Oswald, Henning, Grewe, Sacramento, "Continual learning with hypernetworks" (ICLR 2020): equation 2 without the
    lookahead, and without its beta.
    """
    conds, thetas = _pair(targets)
    now = hyper.apply(phi, conds)
    if now.shape != thetas.shape:
        got = f"{tuple(thetas.shape)}, where the conds give {tuple(now.shape)}"
        mend = "keep targets = (conds, hyper.apply(phi, conds)) before the task"
        raise bad("output_regularizer(targets=...)", f"thetas (*batch, P), P={hyper.spec.size}", got, mend)
    squares = (now - thetas.detach()).square().sum(-1)
    return squares.mean() if squares.numel() else squares.sum()


def _pair(targets: Any) -> tuple[Cond, Tensor]:
    """The conds and thetas that the caller kept, checked."""
    call, want = "output_regularizer(targets=...)", "a pair (conds, thetas) with flat thetas (*batch, P)"
    if not isinstance(targets, tuple | list) or len(targets) != 2:
        got = f"{len(targets)} items" if isinstance(targets, tuple | list) else type(targets).__name__
        raise bad(call, want, got, "pass both; without earlier tasks, both of no rows")
    conds, thetas = targets
    if not isinstance(thetas, Tensor):
        got = f"thetas of type {type(thetas).__name__}"
        raise bad(call, want, got, "ravel(spec, weights) makes flat vectors of a pytree")
    return conds, thetas
