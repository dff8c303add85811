"""This library beside what people use instead: the same hypernetwork, the same numbers, one process, in turn.

One training step, forward and backward, of B main networks (an MLP with SiLU) whose flat weights are a linear head of K
features: the five workloads of `python -m functional_hyper.study --workloads steps`. Every way starts from the same
values, and must give the same output and the same gradients as the loop before anything is timed.

    python examples/side_by_side.py

JAX (`pip install jax`) and hyper-nn (`pip install --no-deps hyper-nn`) take part where they are installed.
"""

import argparse
import importlib.util
import json
import platform
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap
from tqdm import tqdm

import functional_hyper as fh
from functional_hyper import study

WORKLOADS = {f"{'-'.join(map(str, widths))} B={B} K={K}": (widths, B, K) for widths, B, K in study.STEPS}
OURS = ("this library", "compiled")

# What each way starts from: W (P, K) and c (P,), the head; features (B, K); x (B, I).
Start = tuple[Tensor, Tensor, Tensor, Tensor]
Step = Callable[[], tuple[Any, ...]]  # y, then the gradients of y.sum() for W, c, features and x
Way = Callable[[Sequence[int], Start], Step]


def with_gradients(f: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Step:
    def step() -> tuple[Tensor, ...]:
        y = f(*leaves)
        return (y, *torch.autograd.grad(y.sum(), leaves))

    return step


def library(widths: Sequence[int], start: Start, path: str = "auto", compile: bool = False) -> Step:
    """`fh.compose` with the head's values in phi; gradients of phi in the head's own layout."""
    W, c, features, x = start
    main = study.mlp(widths)
    spec = fh.param_spec(main)
    model = fh.compose(fh.full(spec, W.shape[1], hidden=()), main, path)
    run = torch.compile(model) if compile else model
    rows = torch.cat([W.T, c[None]]).detach()
    phi = {f"head.{n}": v.clone().requires_grad_() for n, v in fh.unravel(spec, rows).items()}

    def step() -> tuple[Any, ...]:
        y = run(phi, features, x)
        *heads, of_features, of_x = torch.autograd.grad(y.sum(), [*phi.values(), features, x])
        return y, heads, of_features, of_x

    return step


def vmap_by_hand(widths: Sequence[int], start: Start) -> Step:
    """What the documentation of `torch.func` suggests: unravel, then `vmap` of `functional_call`."""
    main = study.mlp(widths)
    shapes = {n: p.shape for n, p in main.named_parameters()}
    each = vmap(lambda params, x: functional_call(main, params, (x,)))

    def f(W: Tensor, c: Tensor, features: Tensor, x: Tensor) -> Tensor:
        parts = F.linear(features, W, c).split([s.numel() for s in shapes.values()], 1)
        return each({n: t.unflatten(1, s) for (n, s), t in zip(shapes.items(), parts, strict=True)}, x)

    return with_gradients(f, start)


def grouped_by_hand(widths: Sequence[int], start: Start) -> Step:
    """Published code's way: slices of the flat vectors as the kernels of one convolution with B groups."""

    def f(W: Tensor, c: Tensor, features: Tensor, x: Tensor) -> Tensor:
        return study.grouped_by_hand(F.linear(features, W, c), widths, x.unsqueeze(1)).squeeze(1)

    return with_gradients(f, start)


def hyper_nn(widths: Sequence[int], start: Start) -> Step:
    """hyper-nn's functional target network under the `vmap` that its users write."""
    from hypernn.torch.hypernet import TorchHyperNetwork

    net = TorchHyperNetwork.from_target(study.mlp(widths))  # warns: it calls what torch has deprecated
    each = vmap(lambda theta, x: net.target_forward(x, generated_params=theta))
    return with_gradients(lambda W, c, features, x: each(F.linear(features, W, c), x), start)


def jax_vmap(widths: Sequence[int], start: Start, contract: bool = False) -> Step:
    """JAX: `jit` of the gradient of `vmap` over flat vectors; with `contract`, of the contraction written by hand."""
    import jax
    import jax.numpy as jnp

    def layers(flat: Any) -> list[tuple[Any, Any]]:
        """Slices (..., O, I) and (..., O) of flat vectors (..., P)."""
        out, at = [], 0
        for i, o in pairwise(widths):
            out.append((flat[..., at : at + o * i].reshape(*flat.shape[:-1], o, i), flat[..., at + o * i :][..., :o]))
            at += o * i + o
        return out

    def one(theta: Any, x: Any) -> Any:
        for n, (w, b) in enumerate(layers(theta)):
            x = w @ (jax.nn.silu(x) if n else x) + b
        return x

    def contracted(W: Any, c: Any, features: Any, x: Any) -> Any:
        h = jnp.concatenate([features, jnp.ones((len(features), 1), features.dtype)], 1)
        for n, (w, b) in enumerate(layers(jnp.concatenate([W.T, c[None]]))):
            x = jnp.einsum("bk,koi,bi->bo", h, w, jax.nn.silu(x) if n else x) + h @ b
        return x

    def loss(W: Any, c: Any, features: Any, x: Any) -> Any:
        y = contracted(W, c, features, x) if contract else jax.vmap(one)(features @ W.T + c, x)
        return y.sum(), y

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    leaves = [jnp.asarray(t.detach().numpy()) for t in start]

    def step() -> tuple[Any, ...]:
        (_, y), gradients = jax.block_until_ready(grad(*leaves))
        return (y, *gradients)

    return step


OPTIONAL: dict[str, tuple[str, Way]] = {  # name -> the package it needs, and the way
    "hyper-nn": ("hypernn", hyper_nn),
    "JAX jit(vmap)": ("jax", jax_vmap),
    "JAX, contracted by hand": ("jax", partial(jax_vmap, contract=True)),
}


def ways(compile: bool) -> dict[str, Way]:
    """Every way that can run here; a line for one that cannot."""
    found: dict[str, Way] = {OURS[0]: library, "vmap by hand": vmap_by_hand, "grouped conv by hand": grouped_by_hand}
    if compile:
        found[OURS[1]] = partial(library, compile=True)
    for name, (package, way) in OPTIONAL.items():
        if importlib.util.find_spec(package):
            found[name] = way
        else:
            print(f"{name}: skipped, {package} is not installed")
    return found


def draw(widths: Sequence[int], B: int, K: int, seed: int) -> Start:
    """Values that keep the outputs near 1."""
    generator = torch.Generator().manual_seed(seed)
    P = sum(i * o + o for i, o in pairwise(widths))
    scale = torch.cat([torch.full((i * o + o,), i**-0.5) for i, o in pairwise(widths)])
    W = torch.randn(P, K, generator=generator) * (scale / K**0.5)[:, None]
    c = torch.randn(P, generator=generator) * scale
    features, x = torch.randn(B, K, generator=generator), torch.randn(B, widths[0], generator=generator)
    return W.requires_grad_(), c.requires_grad_(), features.requires_grad_(), x.requires_grad_()


def disagreement(found: tuple[Any, ...], reference: tuple[Any, ...]) -> float:
    """The largest difference of an output or a gradient, relative to the reference's largest number."""

    def flat(step: tuple[Any, ...]) -> list[Tensor]:
        y, *rest = step
        if isinstance(rest[0], list):  # phi's heads, (K + 1, *shape) each: the head's columns, the last its bias
            rows = torch.cat([h.flatten(1) for h in rest[0]], 1)
            rest = [rows[:-1].T, rows[-1], *rest[1:]]
        return [torch.as_tensor(t.detach() if isinstance(t, Tensor) else t.__array__().copy()) for t in (y, *rest)]

    pairs = zip(flat(found), flat(reference), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def medians(steps: dict[str, Step], seconds: float) -> dict[str, float]:
    """Median milliseconds of each step."""
    return {name: 1e3 * runs.median for name, runs in study.interleaved(steps, seconds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each way on each workload")
    parser.add_argument("--threads", type=int, default=2, help="torch's; JAX takes as many as there are cores")
    parser.add_argument("--compile", action="store_true", help="torch.compile of this library's model, too")
    parser.add_argument("--seed", type=int, default=0, help="draws the values that every way starts from")
    parser.add_argument("--json", type=Path, help="where to save the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    entrants, rows = ways(args.compile), {}
    for workload, (widths, B, K) in tqdm(WORKLOADS.items(), unit="workload"):
        start = draw(widths, B, K, args.seed)
        reference = library(widths, start, "loop")()
        steps = {name: make(widths, start) for name, make in entrants.items()}
        for name, step in steps.items():
            if not (error := disagreement(step(), reference)) < 1e-4:  # float32, sums of up to B K = 16,000 terms
                raise SystemExit(f"{name} does not agree with the loop on {workload}: {error:.1e}")
        rows[workload] = medians(steps, args.seconds)
    print(table(rows))
    if args.json:
        about = {"machine": platform.machine(), "threads": args.threads, "torch": torch.__version__, "seed": args.seed}
        args.json.write_text(json.dumps({**about, "milliseconds": rows}, indent=1))


def table(rows: dict[str, dict[str, float]]) -> str:
    """Milliseconds of this library's best, and every other way's as a multiple of it."""
    others = [name for name in next(iter(rows.values())) if name not in OURS]
    lines = [["training step", "ms, this library's best", *others]]
    for workload, times in rows.items():
        best = min(times[name] for name in OURS if name in times)
        lines.append([workload, f"{best:.2f}", *(f"{times[name] / best:.1f}x" for name in others)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


if __name__ == "__main__":
    main()
