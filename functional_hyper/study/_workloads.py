"""The workloads: one training step of an MLP, one call of bound networks, one training step of a neural ODE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import optree
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from .. import ode
from ..evaluate import bind
from ..hypernets import full, with_base
from ..params import param_spec
from ..paths import PATHS
from ._compare import steps
from ._measure import COMPILED, Functions

STEPS = [  # layer widths, B, K: one input for each of B networks
    ((784, 32, 10), 256, 16),
    ((784, 32, 10), 1024, 16),
    ((784, 256, 256, 10), 128, 32),
    ((16, 128, 128, 16), 256, 32),
    ((2, 64, 64, 2), 256, 32),
]
CALLS = [((2, 64, 2), 64), ((2, 64, 2), 256)]  # layer widths, B: one call of bound networks, forward
ODES = {  # layer widths, B, N, K, times: RK4, four evaluations a step
    "2-64-64-2 B=256 K=32": ((2, 64, 64, 2), 256, 1, 32, 21),
    "16-128-128-16 B=32 K=32": ((16, 128, 128, 16), 32, 1, 32, 21),
    "16-128-128-16 B=256 K=32": ((16, 128, 128, 16), 256, 1, 32, 21),
    "Lotka-Volterra 9 x 4": ((2, 64, 64, 64, 2), 9, 4, 2, 20),
}
WAYS: dict[str, dict[str, Any]] = {
    "deferred": {"gradient": "deferred"},
    "adjoint": {"gradient": "adjoint", "path": "bmm"},
    "bmm": {"path": "bmm"},
    "grouped_conv": {"path": "grouped_conv"},
    "vmap": {"path": "vmap"},
    "loop": {"path": "loop"},
}


BY_HAND = "grouped_conv by hand"
Workload = tuple[Functions, Callable[[], Any]]
"""What is compared, by name, and the function that all are held to."""


def mlp(widths: Sequence[int]) -> nn.Module:
    """Linear layers with SiLU between."""
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


def problem(main: nn.Module, size: Sequence[int], B: int, K: int, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """main, hyper, phi, cond ``(B, K)`` (the features themselves) and x ``(B, *size)``; all of them require grad."""
    generator = torch.Generator().manual_seed(seed)
    main = main.to(dtype)
    hyper = full(param_spec(main), K, hidden=())
    phi = hyper.init(generator)
    cond, x = (torch.randn(B, *s, generator=generator).to(dtype).requires_grad_() for s in ((K,), size))
    return main, hyper, phi, cond, x


def by_hand(features: Tensor, heads: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """The contraction of an MLP written out, without a library: what the machinery is held to."""
    h = F.pad(features, (0, 1), value=1.0)
    for n, (w, b) in enumerate(heads):
        o, i = w.shape[1:]
        if o <= i:
            y = torch.bmm(h.unsqueeze(1), F.linear(x, w.flatten(0, 1)).unflatten(1, (-1, o))).squeeze(1)
        else:
            y = (h.unsqueeze(2) * x.unsqueeze(1)).flatten(1) @ w.transpose(1, 2).reshape(-1, o)
        x = y + h @ b
        x = F.silu(x) if n < len(heads) - 1 else x
    return x


def step_functions(widths: Sequence[int], B: int, K: int, seed: int, compile: bool = False) -> Workload:
    """One training step, forward and backward, head included, for each path; and what a step is compared with."""
    main, hyper, phi, cond, x = problem(mlp(widths), (widths[0],), B, K, seed)
    heads = [(phi[f"head.{n}.weight"], phi[f"head.{n}.bias"]) for n in range(0, 2 * len(widths) - 2, 2)]
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(hyper.spec.size, K, generator=generator).requires_grad_()
    c = torch.randn(hyper.spec.size, generator=generator).requires_grad_()
    paths, reference = steps(main, hyper, phi, cond, x, [*PATHS, "auto"], seed=seed)
    slope = torch.randn(B, widths[-1], generator=torch.Generator().manual_seed(seed))  # as `steps` draws it

    def step(y: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], Any]:
        def run() -> Any:
            value = y()
            return [
                value.detach(),
                *torch.autograd.grad(value, leaves, slope if value.shape == slope.shape else torch.ones_like(value)),
            ]

        return run

    leaves = optree.tree_leaves((phi, cond))  # type: ignore[arg-type]  # in the order in which `steps` has them
    functions = {
        "by hand": step(lambda: by_hand(cond, heads, x), *leaves, x),
        "head alone": step(lambda: F.linear(cond, W, c), W, c, cond),
        "apply": step(lambda: hyper.apply(phi, cond), *leaves),
        **paths,
    }
    if compile:
        functions |= steps(main, hyper, phi, cond, x, ["auto"], [True], seed=seed)[0]
    return functions, reference


def call_functions(widths: Sequence[int], B: int, seed: int) -> Workload:
    """One forward call of bound networks, the same by hand, and the module itself with its calls looked at."""
    generator = torch.Generator().manual_seed(seed)
    main = mlp(widths)
    params = {n: torch.randn(B, *p.shape, generator=generator) for n, p in main.named_parameters()}
    x = torch.randn(B, widths[0], generator=generator)
    w1, b1, w2, b2 = params.values()
    each = vmap(lambda p, x: functional_call(main, p, (x,)))

    def bmm_by_hand() -> Tensor:
        h = F.silu(torch.baddbmm(b1.unsqueeze(1), x.unsqueeze(1), w1.mT))
        return torch.baddbmm(b2.unsqueeze(1), h, w2.mT).squeeze(1)

    class Nothing(TorchFunctionMode):
        """What a look at every torch call costs, before anything is done about it."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    def watched() -> None:  # what it computes is no one's to compare: its weights are the module's own
        with Nothing(), torch.no_grad():
            main(x)

    functions: Functions = {
        "bmm by hand": bmm_by_hand,
        "vmap by hand": lambda: each(params, x.unsqueeze(1)).squeeze(1),
        "one network": watched,
    }
    for path in PATHS:
        net = bind(main, params, path)
        functions[path] = lambda net=net: net(x)
    return functions, functions["loop"]


def grouped_by_hand(theta: Tensor, widths: Sequence[int], y: Tensor) -> Tensor:
    """The main networks of flat vectors ``(B, P)`` as published code has them: every evaluation copies its weights."""
    B, N, _ = y.shape
    x, at = y.transpose(1, 2).reshape(1, -1, N), 0
    for n, (i, o) in enumerate(pairwise(widths)):
        w, b = theta[:, at : at + o * i].reshape(B * o, i, 1), theta[:, at + o * i : at + o * i + o].reshape(-1)
        x, at = F.conv1d(F.silu(x) if n else x, w, b, groups=B), at + o * i + o
    return x.view(B, -1, N).transpose(1, 2)


def solve_functions(widths: Sequence[int], B: int, N: int, K: int, T: int, seed: int, compile: bool) -> Workload:
    """One training step: solve, loss and backward, head included, for each way."""
    generator = torch.Generator().manual_seed(seed)
    main = mlp(widths)
    hyper = with_base(full(param_spec(main), K, hidden=()))
    phi, cond = hyper.init(generator), torch.randn(B, K, generator=generator)
    y0, t = torch.rand(B, N, widths[0], generator=generator), torch.linspace(0, 1, T)

    def step(options: dict[str, Any], tile: int = B) -> Callable[[], Any]:
        def run() -> Any:
            parts = zip(cond.split(tile), y0.split(tile), strict=True)
            solves = [ode.solve(main, hyper.weights(phi, c), y, t, many=True, **options) for c, y in parts]
            return torch.autograd.grad(torch.cat(solves, 1).square().mean(), list(phi.values()))

        return run

    def by_hand() -> Any:
        from torchdiffeq import odeint

        theta = hyper.apply(phi, cond)
        ys = odeint(lambda t, y: grouped_by_hand(theta, widths, y), y0, t, method="rk4")
        return torch.autograd.grad(ys.square().mean(), list(phi.values()))  # type: ignore[union-attr]

    functions = {**{way: step(options) for way, options in WAYS.items()}, BY_HAND: by_hand}
    if compile:
        compiled = {"gradient": "deferred", "path": "bmm", "compile": True}
        functions |= {"deferred" + COMPILED: step(compiled), "two tiles" + COMPILED: step(compiled, (B + 1) // 2)}
    return functions, functions["loop"]
