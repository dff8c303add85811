"""`solve`: an initial value problem whose vector field is B main networks with B sets of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor

from .._errors import Refused, bad
from .._functorch import is_concrete
from .._types import Main, PyTree
from ..evaluate import Bound, bind
from ..paths import Path
from ..weights import materialize
from ._compiled import compiled_step, plan, solve_steps
from ._deferred import Recorder
from ._graph import distinct, refuse_captured
from ._grids import Odeint, Rhs, columns, integrate
from ._isolated import isolated
from ._methods import SCIPY, STAGES, check_options, count_evaluations
from ._problem import Field, Problem


def autonomous(net: Bound, t: Tensor, y: Tensor, *args: Any) -> Tensor:
    """The default field: dy/dt is the main network of y."""
    return net((y, *args)) if args else net(y)


def solve(
    main: Main,
    weights: PyTree,
    y0: Tensor,
    t: Tensor,
    *,
    method: str = "rk4",
    path: str | Path = "auto",
    gradient: str = "direct",
    many: bool = False,
    field: Field | None = None,
    args: tuple[Any, ...] = (),
    compile: bool | str | Callable[..., Any] = False,
    **odeint_options: Any,
) -> Tensor:
    """B initial value problems ``dy/dt = field(net, t, y)``, each with its own generated weights, by torchdiffeq.

    The weights are prepared once for the whole solve.

    Args:
        main: an `nn.Module`, or a pure function ``f(params, *x)``; it sees an ordinary batch.
        weights: of B networks, as `bind` takes them: leaves ``(B, *shape)`` or structured ones.
        y0: the states at the first time, ``(B, ...)``, with `many` ``(B, N, ...)``: N states for each network.
        t: the times, ``(T,)``, rising or falling; or ``(T, B)``, each sample its own, for fixed-step methods. There a
            step covers one sample's interval, whatever its length (0 is allowed: padding), and ``step_size`` counts in
            intervals: ``options={"step_size": 0.25}`` makes four steps of each.
        method: a method of torchdiffeq. Its "rk4" is the 3/8 rule. An adaptive method takes one step size for all B
            samples, controlled by the root mean square of all their errors: a stiff sample makes all wait, and results
            agree with solving each sample alone only within the tolerance.
        path: a name in `PATHS`, "auto", or a `Path`. "auto" knows how often the field will be evaluated; with
            "deferred" it is "bmm", since what made contraction pay, a weight gradient at each evaluation, is gone.
        gradient: how weights, y0, t and args get theirs.

            - "direct": autograd through the solver. Exact for the discrete solve, differentiable any number of times.
            - "deferred": the same numbers; the weight gradient is formed once per few evaluations, which is faster and
              needs no more memory. Once differentiable, not inside torch.func transforms. What the field captures
              must not require grad: pass it through `args`. `F.linear` (and `nn.Linear`) is deferred, other uses of a
              weight are differentiated as ever.
            - "adjoint": the adjoint ODE backwards in time. Its memory does not grow with the number of steps, but its
              state grows by all the weights, B x P numbers, at every stage: it costs several times the time of
              "direct" with fixed steps, tens of times with adaptive ones, and saves only where a solve takes more
              evaluations than its memory holds. ``adjoint_options={"norm": "seminorm"}`` leaves the weights out of the
              error norm. Agrees with "direct" only as the step goes to zero.
        many: N states for each network.
        field: ``field(net, t, y, *args)`` -> dy/dt, shaped as y; None is ``net(y)``, or ``net((y, *args))`` with args.
            `t` is 0-d, or ``(B, 1, ...)`` with per-sample times: either broadcasts against y.
        args: further inputs of the field: controls, physics, anything that may require grad. Pytrees, too.
        compile: run each step of a fixed-step method, forward and backward, as code that `torch.compile` made; other
            than True it is torch.compile's backend. For gradient="deferred" without `options`, one step from each time
            to the next, weights dense. Compiling takes some seconds, once for each combination of `main`, `field`
            (the same function object at each call), method, path and shapes; worth it for training small networks,
            where the overhead of single calls dominates.
        odeint_options: `rtol`, `atol`, `options` of torchdiffeq, with "adjoint" also `adjoint_rtol`, `adjoint_atol`,
            `adjoint_method`, `adjoint_options`.

    Returns:
        The states at the times, ``(T, B, ...)``, with `many` ``(T, B, N, ...)``.

    Raises:
        HyperError: shapes that do not fit, unknown methods, gradients or options, anything that `bind` raises.
        Refused: per-sample times with an adaptive or multistep method; with "deferred" and "adjoint" a captured tensor
            that requires grad, a torch.func transform around the call; with "deferred" ``create_graph=True`` and
            in-place changes of a linear layer's input.
        ImportError: torchdiffeq is not installed.

    Example:
        >>> main = torch.nn.Linear(2, 2)
        >>> w = {"weight": torch.randn(5, 2, 2), "bias": torch.zeros(5, 2)}
        >>> solve(main, w, torch.ones(5, 2), torch.linspace(0, 1, 11)).shape
        torch.Size([11, 5, 2])

    Sources: Chen et al., "Neural Ordinary Differential Equations" (NeurIPS 2018), the adjoint; Kidger, Chen, Lyons,
    "Hey, that's not an ODE" (ICML 2021), the seminorm.
    """
    check_options(method, gradient, odeint_options, isinstance(t, Tensor) and t.dim() == 2)
    if not isinstance(args, tuple):
        raise bad("solve(args=...)", "a tuple", type(args).__name__, "args=(u,) is one argument")
    _check_states(y0, t, many)
    if path == "auto" and gradient == "deferred":
        path = "bmm"
    evaluations = count_evaluations(method, t, odeint_options.get("options"))
    inputs = y0.shape[1] if many else 1
    net = bind(main, weights, path, many=many, inputs=max(inputs, 1), evaluations=evaluations)
    if y0.shape[0] != net.networks:
        mend = "one row for each network; many=True takes N states for each, (B, N, ...)"
        raise bad("solve(y0=...)", f"({net.networks}, ...)", tuple(y0.shape), mend)
    if t.dim() == 2 and t.shape[1] != net.networks:
        raise bad("solve(t=...)", f"(T,) or (T, {net.networks})", tuple(t.shape), "a column for each network")
    if not y0.numel():  # no error to control, nothing to record
        method, gradient, odeint_options = "euler", "direct", {}
    problem = Problem(net, field or autonomous, args)
    if compile and y0.numel():
        if gradient != "deferred" or method not in STAGES or odeint_options:
            got = ", ".join([repr(gradient), repr(method), *odeint_options])
            want = f'gradient="deferred", a method of {", ".join(STAGES)}, no further options'
            raise bad("solve(compile=...)", want, got, "give the steps as times t")
        return _deferred_steps(problem, y0, t, method, "inductor" if compile is True else compile)
    return RUN[gradient](problem, y0, t, method, odeint_options)


def _check_states(y0: Any, t: Any, many: bool) -> None:
    if not isinstance(y0, Tensor) or y0.dim() < (2 if many else 1) or not y0.is_floating_point():
        got = f"{y0.dtype} {tuple(y0.shape)}" if isinstance(y0, Tensor) else type(y0).__name__
        want = f"a floating tensor ({'B, N' if many else 'B'}, ...)"
        raise bad("solve(y0=...)", want, got, "a system of several states is one tensor: concatenate them")
    if not isinstance(t, Tensor) or t.dim() not in (1, 2) or not t.is_floating_point() or not t.shape[0]:
        got = f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        raise bad("solve(t=...)", "floating times (T,) or (T, B), T >= 1", got, "torch.linspace(start, end, T)")
    steps = t.detach().diff(dim=0)
    if t.dim() == 1 and is_concrete(t) and not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise bad("solve(t=...)", "times that rise, or fall, at every step", "others", "sort them, each once")


def _direct(problem: Problem, y0: Tensor, t: Tensor, method: str, options: dict[str, Any]) -> Tensor:
    needs = torch.is_grad_enabled() and any(p.requires_grad for p in (y0, t, *problem.own(), *problem.given()))
    if method == SCIPY and needs:
        mend = 'use gradient="adjoint", or torch.no_grad()'
        raise bad(f'solve(method="{SCIPY}")', 'gradient="adjoint"', "a solve to differentiate", mend, Refused)
    return integrate(_plain(method, options), problem.rhs, y0, t)


def _plain(method: str, options: dict[str, Any]) -> Odeint:
    odeint = _torchdiffeq().odeint
    return lambda rhs, y0, t, more: odeint(rhs, y0, t, method=method, **options)


def _deferred(problem: Problem, y0: Tensor, t: Tensor, method: str, options: dict[str, Any]) -> Tensor:
    recorder = Recorder()

    def run(problem: Problem, y0: Tensor, t: Tensor) -> Tensor:
        recorder.watch([w for w in problem.leaves if isinstance(w, Tensor) and w.requires_grad], y0)
        path = problem.net.path
        recording = replace(path, table=recorder.table(path.table))
        return integrate(_plain(method, options), problem.rebound(problem.leaves, problem.args, recording).rhs, y0, t)

    if method == SCIPY:
        return _direct(problem, y0, t, method, options)
    return _isolated("deferred", run, problem, y0, t, recorder)


def _deferred_steps(problem: Problem, y0: Tensor, t: Tensor, method: str, backend: Any) -> Tensor:
    recorder, net = Recorder(), problem.net
    problem = problem.rebound([materialize(leaf) for leaf in problem.leaves], problem.args, net.path)

    def run(problem: Problem, y0: Tensor, t: Tensor) -> Tensor:
        leaves: list[Any] = problem.leaves
        recorder.watch([w for w in leaves if w.requires_grad], y0)
        t = t.to(y0) if t.dim() == 1 else torch.stack([columns(row, y0) for row in t.unbind(0)])
        calls = plan(net.path, leaves, lambda path: problem.rebound(leaves, problem.args, path).rhs(t[0], y0))
        functions = (net.caller.main, net.caller.template, net.path, net.many, problem.field, method)
        step = compiled_step(functions, calls, backend)
        return solve_steps(step, recorder, leaves, calls, STAGES[method], problem.args, y0, t)

    return _isolated("deferred", run, problem, y0, t, recorder)


def _adjoint(problem: Problem, y0: Tensor, t: Tensor, method: str, options: dict[str, Any]) -> Tensor:
    odeint_adjoint = _torchdiffeq().odeint_adjoint

    def run(problem: Problem, y0: Tensor, t: Tensor) -> Tensor:
        params = [p for p in (*problem.own(), *problem.given()) if p.requires_grad]

        def odeint(rhs: Rhs, y0: Tensor, t: Tensor, more: Sequence[Tensor]) -> Tensor:
            given = [*params, *[p for p in more if p.requires_grad]]

            def guarded(t: Any, y: Tensor) -> Tensor:  # the adjoint gives what it does not know a zero gradient
                dy = rhs(t, y)
                if dy.requires_grad:
                    refuse_captured("adjoint", dy, [*given, *[p for p in (t, y) if p.requires_grad]])
                return dy

            guarded(t[0].detach(), y0.detach())
            return odeint_adjoint(guarded, y0, t, method=method, adjoint_params=tuple(given), **options)

        return integrate(odeint, problem.rhs, y0, t)

    return _isolated("adjoint", run, problem, y0, t, Recorder())


def _isolated(gradient: str, run: Any, problem: Problem, y0: Tensor, t: Tensor, recorder: Recorder) -> Tensor:
    """``run(problem, y0, t)`` with a stand-in for every tensor of the problem, where one needs a gradient."""
    own = problem.own()
    given = distinct([y0, t, *problem.given()])
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in (*own, *given)):
        return run(problem, y0, t)

    def solve(inner: Sequence[Tensor]) -> Tensor:
        stand_in = {id(p): q for p, q in zip(given, inner, strict=True)}

        def swap(p: Any) -> Any:
            return stand_in.get(id(p), p)

        leaves = [swap(leaf) if isinstance(leaf, Tensor) else leaf.map(swap) for leaf in problem.leaves]
        args: Any = optree.tree_map(swap, problem.args, none_is_leaf=True)  # type: ignore[arg-type]
        return run(problem.rebound(leaves, args, problem.net.path), swap(y0), swap(t))

    return isolated(gradient, solve, own, given, recorder)


def _torchdiffeq() -> Any:
    """Imported when used: the rest of the library does without it."""
    try:
        import torchdiffeq
    except ImportError as error:
        raise ImportError("`solve` needs torchdiffeq; pip install 'functional_hyper[ode]'") from error
    return torchdiffeq


Run: TypeAlias = Callable[[Problem, Tensor, Tensor, str, dict[str, Any]], Tensor]
RUN: dict[str, Run] = {"direct": _direct, "deferred": _deferred, "adjoint": _adjoint}
