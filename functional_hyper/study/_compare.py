"""`compare`: every path on your own network and shapes; and the step that it times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor, nn

from .._errors import bad
from .._functorch import apart
from .._types import Cond, Inputs, Main, Phi
from ..compose import Model, compose
from ..hypernets import Hypernet
from ..paths import PATHS, Path, resolve
from ..weights import map_leaves
from ._machine import busy, machine, peaks
from ._measure import COMPILED, Functions, measure
from ._records import Records

UNROLLED = 64  # calls of the main network that a compiled step may hold: each is compiled by itself


def compare(
    main: Main,
    hyper: Hypernet,
    *,
    batch: tuple[Cond, Inputs] | int,
    many: bool = False,
    shared: bool = False,
    evaluations: int = 1,
    paths: Sequence[str | Path] | None = None,
    backward: bool = True,
    compile: bool | Sequence[bool] = (False, True),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    phi: Phi | None = None,
    seconds: float = 1.0,
    seed: int = 0,
) -> Records:
    """What each path costs on your own main network, hypernetwork and batch, in one process and in turn.

    First every path's value and gradients are held to the loop's: the largest difference relative to the norm of the
    loop's tensor must stay below the square root of the dtype's eps. Then come times (medians, interquartile ranges),
    peak memory, operations, and the shares of the machine's peaks, measured at the start.

    Args:
        main, hyper, many, shared: as for `compose`.
        batch: ``(cond, x)`` as the model takes them, x a tuple for several inputs; what requires grad among them is
            differentiated, too. A number B draws both, where the hypernetwork has `in_features` and the main network
            starts with an `nn.Linear`.
        evaluations: calls of the main network for one set of weights. Where an output has its input's shape they are
            the Euler steps of ``dx/dt = main(x)`` over unit time; otherwise inputs of growing scale, results added.
        paths: names in `PATHS`, "auto", or `Path`s; None is all of them.
        backward: a training step (value and gradients); otherwise values under `torch.no_grad`.
        compile: whether to time `torch.compile` of a step; both by default. A step of more than 64 calls of the main
            network, each of which would be compiled by itself, is not.
        device, dtype: where to run, in what; copies are moved. None leaves everything as it is.
        phi: the hypernetwork's parameters; None draws them.
        seconds: of timing for each path.
        seed: of what is drawn.

    Returns:
        `Records`: a row for each path. A path that refuses, fails to compile or disagrees has a row that says so.

    Raises:
        HyperError: a batch that cannot be drawn; what `compose` and the loop raise.

    Example:
        >>> import functional_hyper as fh
        >>> main = torch.nn.Linear(3, 2)
        >>> hyper = fh.full(fh.param_spec(main), in_features=4)
        >>> found = compare(main, hyper, batch=5, compile=False, paths=["bmm", "auto"], seconds=0.01)
        >>> [r.path for r in found]
        ['bmm', 'auto']
    """
    if not isinstance(hyper, Hypernet):
        raise bad("compare(hyper=...)", "a Hypernet second", type(hyper).__name__, "the main network comes first")
    given = hyper.init(torch.Generator().manual_seed(seed)) if phi is None else phi
    cond, x = drawn(main, hyper, batch, many or shared, seed) if isinstance(batch, int) else batch
    if device is not None or dtype is not None:
        main = copy.deepcopy(main).to(device, dtype) if isinstance(main, nn.Module) else main
        given, cond, x = moved((given, cond, x), device, dtype)
    like = next(iter(given.values()))
    facts = machine(seed)
    peak = peaks(like.device, like.dtype)
    facts["peaks"] = {f"{like.device.type} {str(like.dtype).removeprefix('torch.')}": peak}
    facts["busy"] = busy(facts)
    options = {"many": many, "shared": shared, "evaluations": evaluations}
    modes = (compile,) if isinstance(compile, bool) else tuple(compile)
    names = [*PATHS, "auto"] if paths is None else list(paths)
    functions, reference = steps(main, hyper, given, cond, x, names, modes, backward, seed, **options)
    title = f"{type(main).__name__}, {'training step' if backward else 'forward'}"
    records = measure(title, functions, seconds, reference, peak, like.dtype, like.device, E=evaluations)
    return Records(tuple(records), facts)


def steps(
    main: Main,
    hyper: Hypernet,
    phi: Phi,
    cond: Cond,
    x: Inputs,
    paths: Iterable[str | Path],
    compile: Sequence[bool] = (False,),
    backward: bool = True,
    seed: int = 0,
    **options: Any,
) -> tuple[Functions, Callable[[], list[Tensor]]]:
    """A step by each path, by name; and the loop's step, which all must agree with.

    A step returns the outputs and the gradients of phi and of whatever in `cond` and `x` requires grad.
    """
    generator = torch.Generator().manual_seed(seed)
    evaluations = options.get("evaluations", 1)
    leaves = [t for t in optree.tree_leaves((phi, cond, x)) if isinstance(t, Tensor) and t.requires_grad]  # type: ignore[arg-type]
    slopes: list[Tensor] = []

    def forward_of(path: str | Path) -> Callable[..., Any]:
        model = compose(hyper, main, path, **options)
        return lambda phi, cond, x: evaluated(model, phi, cond, x, evaluations)

    def step(forward: Callable[..., Any]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            if not backward:
                with torch.no_grad():
                    return floating(forward(phi, cond, x))
            ys = floating(forward(phi, cond, x))
            if not slopes:  # not ones: a sum would hide an output in the wrong place
                slopes.extend(torch.randn(y.shape, generator=generator).to(y) for y in ys)
            grads = torch.autograd.grad(ys, leaves, slopes, allow_unused=True)
            return [
                *(y.detach() for y in ys),
                *(g if g is not None else torch.zeros_like(t) for g, t in zip(grads, leaves, strict=True)),
            ]

        return run

    def refuses(path: Path) -> Callable[[], Any]:
        def run() -> Any:
            B = len(optree.tree_leaves(cond)[0])  # type: ignore[arg-type]
            calls = evaluations * (B if path.name == "loop" else 1)
            if calls > UNROLLED:
                want, mend = f"at most {UNROLLED} calls of the main network", "each would be compiled by itself"
                raise bad("compare(compile=True)", want, f"{calls} in a step", mend)
            return compiled()

        compiled = step(torch.compile(apart(forward_of(path))))
        return run

    def made(path: Path, compiled: bool) -> Callable[[], Any]:
        try:
            return refuses(path) if compiled else step(forward_of(path))
        except ValueError as error:  # `compose` refuses: the row will say so
            return _raises(error)

    resolved = [resolve(path) for path in paths]
    functions = {p.name + COMPILED * c: made(p, c) for c in compile for p in resolved}
    return functions, step(forward_of("loop"))


def _raises(error: Exception) -> Callable[[], Any]:
    def run() -> Any:
        raise error

    return run


def evaluated(model: Model, phi: Phi, cond: Cond, x: Inputs, evaluations: int) -> Any:
    """The weights bound once, the main network called `evaluations` times: see `compare`."""
    net = model.bind(phi, cond, x)
    if evaluations == 1:
        return net(x)
    first, rest = (x[0], x[1:]) if isinstance(x, tuple) else (x, ())
    total = None
    for _ in range(evaluations):
        y = net((first, *rest) if isinstance(x, tuple) else first)
        if isinstance(y, Tensor) and y.shape == first.shape and y.dtype == first.dtype:
            total = first = first + y / evaluations
        else:
            total = y if total is None else map_leaves(torch.add, total, y)
            first = first * (1 + 1 / evaluations) if first.is_floating_point() else first
    return total


def floating(tree: Any) -> list[Tensor]:
    """The tensors of an output that a loss could read."""
    return [t for t in optree.tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point()]


def moved(tree: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    """Copies on the device and, where they are floating, in the dtype; what required grad does."""

    def move(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        kind = dtype if t.is_floating_point() else None
        return t.detach().to(device=device or t.device, dtype=kind or t.dtype).clone().requires_grad_(t.requires_grad)

    return optree.tree_map(move, tree, none_is_leaf=True)


def drawn(main: Main, hyper: Hypernet, B: int, many: bool, seed: int) -> tuple[Tensor, Tensor]:
    """A normal cond and x for B networks, one input each, where their sizes are known."""
    first = next((m for m in main.modules() if not list(m.children())), None) if isinstance(main, nn.Module) else None
    if hyper.in_features is None or not isinstance(first, nn.Linear) or many:
        want = "(cond, x)" + (" with many or shared" if many else "")
        raise bad("compare(batch=...)", want, f"{B}", "in_features and a first nn.Linear would tell the sizes")
    generator = torch.Generator().manual_seed(seed)
    sizes = (hyper.in_features, first.in_features)
    cond, x = (torch.randn(B, n, generator=generator, dtype=hyper.spec.dtype) for n in sizes)
    return cond, x
