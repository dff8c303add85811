"""What the neural-ODE examples share: their options, reference solutions, and a training loop that follows a clock."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import torch
from torch import Tensor
from torchdiffeq import odeint
from tqdm import tqdm

import functional_hyper as fh

Phi = dict[str, Tensor]
Loss = Callable[[torch.Generator], Tensor]
History = list[dict[str, float]]
SAVE_EVERY = 20.0  # seconds


def options(description: str | None, out: str, minutes: float) -> argparse.ArgumentParser:
    """The options of every example, with the defaults of this one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=float, default=minutes, help="length of the training; the schedule follows the clock")
    add("--steps", type=int, default=0, help="train this many steps instead: then every run gives the same bits")
    add("--path", choices=[*fh.PATHS, "auto"], default="bmm", help="how the main networks are evaluated")
    add(
        "--gradient",
        choices=["direct", "deferred", "adjoint"],
        default="deferred",
        help="see functional_hyper.ode.solve",
    )
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="train with compiled steps, if deferred")
    add("--device", type=torch.device, default=torch.device("cpu"), help="for example cpu or cuda")
    add("--seed", type=int, default=0, help="draws the data and phi")
    add("--out", type=Path, default=Path("runs") / out, help="folder for the checkpoints and the picture")
    add("--resume", action="store_true", help="continue from the checkpoint in --out, if there is one")
    return parser


def solver(args: argparse.Namespace, training: bool) -> dict[str, Any]:
    """What `ode.solve` is told besides the problem; to compile a step pays for training, which takes thousands."""
    compile = args.compile and args.gradient == "deferred" and training
    return {"path": args.path, "gradient": args.gradient, "compile": compile}


def simulate(rhs: Callable[[Tensor, Tensor], Tensor], y0: Tensor, t: Tensor, step: float = 0.025) -> Tensor:
    """The reference solution ``(T, *y0.shape)``, by small steps of rk4 in double precision."""
    y = odeint(rhs, y0.double(), t.double(), method="rk4", options={"step_size": step})
    return y.to(y0.dtype)  # type: ignore[union-attr]


def fit(
    name: str,
    phi: Phi,
    loss: Loss,
    args: argparse.Namespace,
    lr: float,
    minutes: float,
    spec: fh.ParamSpec | None = None,
) -> History:
    """Trains `phi` in place: Adam, a cosine learning rate, gradients clipped to norm 1.

    Progress runs from 0 to 1 with the clock, or with the steps where --steps counts them. A checkpoint is saved every
    `SAVE_EVERY` seconds, at the end and on Ctrl-C; one of another `spec` is refused. Resumed from it, a run of --steps
    on the CPU ends in the very same bits as one that was never interrupted.

    Returns:
        The mean loss of every twentieth of the training.

    Raises:
        SystemExit: with a message, where the run cannot go on; the last checkpoint is whole.
    """
    path, generator = args.out / f"{name}.pt", torch.Generator().manual_seed(args.seed)
    settings = checkpoints.settings(args, phi, spec)
    optimizer = torch.optim.Adam(phi.values(), lr=lr, betas=(0.9, 0.99))
    step, elapsed, history, losses = 0, 0.0, [], []
    if args.resume and path.exists():
        state = checkpoints.load(path, settings)
        with torch.no_grad():
            for key, value in phi.items():
                value.copy_(state["phi"][key])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step, elapsed, history, losses = (state[k] for k in ("step", "elapsed", "history", "losses"))
        print(f"resumed {name} from {path} after step {step}")

    def save() -> None:
        state = {"settings": settings, "phi": {k: v.detach().cpu() for k, v in phi.items()}}
        state |= {"optimizer": optimizer.state_dict(), "generator": generator.get_state()}
        checkpoints.save(path, state | {"step": step, "elapsed": elapsed, "history": history, "losses": losses})

    saved = started = time.monotonic() - elapsed
    with (
        tqdm(total=args.steps or None, initial=step, desc=name, unit="step") as bar,
        checkpoints.interruption_noted() as interrupted,
    ):
        while (progress := step / args.steps if args.steps else elapsed / (60 * minutes)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * progress))
            optimizer.zero_grad(set_to_none=True)
            value = loss(generator)
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(phi.values(), 1.0)
            if not (value.isfinite() and norm.isfinite()):
                found = f"loss {value.item()}, gradient norm {norm.item()} at step {step + 1} of {name}"
                raise SystemExit(f"{found}; stopped before it could reach {path}")
            optimizer.step()
            step, elapsed = step + 1, time.monotonic() - started
            losses.append(value.item())
            if progress >= 0.05 * (len(history) + 1):
                history.append({"progress": progress, "loss": sum(losses) / len(losses)})
                losses = []
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{value.item():.1e}", done=f"{progress:.0%}")
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
            if interrupted():
                save()
                print(f"interrupted after step {step}, which is saved; --resume continues from {path}")
                raise SystemExit(130)
    save()
    return history
