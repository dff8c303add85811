"""torchdiffeq's methods by kind, and how often each evaluates the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._errors import Refused, bad
from .._functorch import is_concrete

STAGES = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
SCIPY = "scipy_solver"
GRADIENTS = ("direct", "deferred", "adjoint")
OPTIONS = ("rtol", "atol", "options")
ADJOINT_OPTIONS = ("adjoint_rtol", "adjoint_atol", "adjoint_method", "adjoint_options")
MANY = 1000  # evaluations that "auto" should expect where the solver decides


def check_options(method: str, gradient: str, given: Mapping[str, Any], per_sample: bool) -> None:
    """An error at the door for what torchdiffeq would misunderstand, ignore or get wrong."""
    if gradient not in GRADIENTS:
        raise bad("solve(gradient=...)", f"one of {', '.join(GRADIENTS)}", repr(gradient), "name one")
    known = (*STAGES, *ADAMS, *ADAPTIVE, SCIPY)
    if method not in known:
        raise bad("solve(method=...)", f"one of {', '.join(known)}", repr(method), "name one of torchdiffeq's")
    allowed = OPTIONS + (ADJOINT_OPTIONS if gradient == "adjoint" else ())
    extra = [name for name in given if name not in allowed]
    if extra:
        mend = 'adjoint_* belong to gradient="adjoint"; an event ends a solve of torchdiffeq\'s own odeint'
        raise bad("solve(...)", f"options among {', '.join(allowed)}", ", ".join(extra), mend)
    if per_sample and method not in STAGES:
        why = "keep a history that a change of step spoils" if method in ADAMS else "choose one step for all samples"
        mend = f"such methods {why}: take one of {', '.join(STAGES)}, or solve at the union of times"
        raise bad("solve(t=(T, B))", "a one-step method with fixed steps", repr(method), mend, Refused)


def count_evaluations(method: str, t: Tensor, options: Mapping[str, Any] | None) -> int:
    """How often a solve evaluates the field, as far as one can know before."""
    if method not in STAGES or not is_concrete(t):
        return MANY
    options, intervals = options or {}, max(t.shape[0] - 1, 1)
    if options.get("grid_constructor") is not None:
        return MANY
    step = options.get("step_size")
    if step is None:
        return STAGES[method] * intervals
    steps = (
        intervals * math.ceil(1 / step)
        if t.dim() == 2
        else math.ceil(abs(float(t.detach()[-1] - t.detach()[0])) / step)
    )
    return STAGES[method] * max(steps, 1)
