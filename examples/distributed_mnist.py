"""Input-conditioned MNIST on many processes: `torchrun --nproc-per-node 2 examples/distributed_mnist.py`.

Every process takes its share of each batch. `--parallel ddp` keeps all of phi everywhere, `--parallel fsdp` a share of
phi, of its gradient and of the optimiser's state. Batches, shifts and losses are those of one process, to rounding.
Checkpoints may be resumed by another number of processes, or the other way of sharing.
"""

import argparse
import gc
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import step_folders
import torch
import torch.distributed as dist
import torch.nn.functional as F
from data import CLASSES, PIXELS, Digits, load_digits, random_shift
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from tqdm import tqdm
from training import SMOOTHING, options, positive

import functional_hyper as fh

GENERATED = StateDictOptions(ignore_frozen_params=True, strict=False)  # the classifier's own weights are not saved


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains; returns the loss of every step, the test accuracy, and phi."""
    parser = options("distributed_mnist", __doc__, epochs=10, batch_size=64, lr=1e-3)
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="what the processes share")
    parser.add_argument("--hidden", type=positive, nargs="*", default=[16], help="widths of the hypernetwork's trunk")
    parser.add_argument("--save-every", type=positive, default=50, help="steps between two checkpoints")
    args = parser.parse_args(argv)
    with processes(args.device) as device:
        if args.batch_size % dist.get_world_size():
            raise SystemExit(f"--batch-size {args.batch_size} does not go evenly to {dist.get_world_size()} processes")
        return train(args, device)


@contextmanager
def processes(kind: str) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, unless they are joined, or is the only one; this process's device."""
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    if dist.is_initialized():
        yield device
        return
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        gc.collect()  # what a module still holds of its process groups would end after Python, and abort
        dist.destroy_process_group()


@dataclass
class Run:
    """What a run consists of, in this process."""

    core: Any  # what as_module returned
    module: nn.Module  # the core as DDP or FSDP wrap it
    optimizer: AdamW
    generator: torch.Generator  # in the same state everywhere
    progress: dict[str, Tensor]

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors; the settings hold the optimiser's options."""
        self.progress["generator"] = self.generator.get_state()
        phi, optimal = get_state_dict(self.module, self.optimizer, options=GENERATED)
        return {"phi": phi, "optimizer": optimal["state"], "progress": self.progress}

    def restore(self, folder: Path) -> None:
        """Reads a step folder, each process its share."""
        state = self.state()
        step_folders.read(folder, state)
        groups = get_state_dict(self.module, self.optimizer, options=GENERATED)[1]["param_groups"]
        optimal: Any = {"state": state["optimizer"], "param_groups": groups}
        set_state_dict(
            self.module,
            self.optimizer,
            model_state_dict=state["phi"],
            optim_state_dict=optimal,
            options=GENERATED,
        )
        self.generator.set_state(self.progress["generator"])


def train(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All of a run."""
    rank = dist.get_rank()
    if rank == 0:
        checkpoints.make_writable(args.out)
    digits = load_digits(args.data, args.data_dir, args.validation).to(device)
    steps = len(digits.train_images) // args.batch_size  # of an epoch; what is left over waits for the next order
    total = args.epochs * steps
    run = make(args, device, total, len(digits.train_images))
    spec = run.core.model.hyper.spec
    settings = checkpoints.settings(args, run.core.phi_dict(), spec)
    if args.resume and (folder := step_folders.latest(args.out, settings)) is not None:
        run.restore(folder)
        say(f"resumed after step {int(run.progress['step'])} of {total}, from {folder}")
    start = int(run.progress["step"])
    with (
        tqdm(total=total, initial=start, unit="step", disable=rank != 0) as bar,
        checkpoints.interruption_noted() as interrupted,
    ):
        for step in range(start, total):
            loss, stop = take_step(run, digits, args, step % steps, step / total, interrupted)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if (step + 1) % args.save_every == 0 or step + 1 == total or stop:
                save(run, args.out, settings)
            if stop:
                say(f"interrupted after step {step + 1}, which is saved; --resume continues from there")
                raise SystemExit(130)

    accuracy, phi = tested(run.module, digits), run.core.phi_dict()
    say(f"{'validation' if args.validation else 'test'} accuracy: {100 * accuracy:.1f} %")
    if args.export is not None and rank == 0:
        checkpoints.export(args.export, phi, spec)
    return {"losses": run.progress["losses"].tolist(), "accuracy": accuracy, "phi": phi}


def make(args: argparse.Namespace, device: torch.device, total: int, count: int) -> Run:
    """A run of so many steps, on so many digits, at its start: the same in every process."""
    classifier = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, CLASSES)).requires_grad_(False)
    hyper = fh.full(fh.param_spec(classifier), in_features=PIXELS, hidden=args.hidden)
    generator = torch.Generator().manual_seed(args.seed)
    module: Any = fh.as_module(fh.compose(hyper, classifier), hyper.init(generator, device=device)).to(device)
    core = module
    if args.parallel == "ddp":
        module = DistributedDataParallel(module)
    else:
        warnings.filterwarnings("ignore", ".*returned a view tensor")  # which nothing here writes into
        fully_shard(module, ignored_params=set(classifier.parameters()))
    optimizer = AdamW(core.phi.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    progress = {
        "step": torch.zeros((), dtype=torch.int64),
        "losses": torch.zeros(total, dtype=torch.float64),
        "order": torch.zeros(count, dtype=torch.int64),  # of the digits in this epoch
    }
    return Run(core, module, optimizer, generator, progress)


def take_step(
    run: Run, digits: Digits, args: argparse.Namespace, batch: int, done: float, interrupted: Callable[[], bool]
) -> tuple[float, bool]:
    """One step on a batch of the epoch; its loss over all processes, and whether any of them is to stop."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if batch == 0:
        run.progress["order"] = torch.randperm(len(digits.train_images), generator=run.generator)
    chosen = run.progress["order"].split(args.batch_size)[batch].to(digits.train_images.device)
    # Every process draws the shifts of the whole batch, and takes its rows.
    images = random_shift(digits.train_images[chosen], run.generator)[rank::world]
    for group in run.optimizer.param_groups:
        group["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * done))
    run.optimizer.zero_grad()
    scores = run.module(images, images)
    loss = F.cross_entropy(scores, digits.train_labels[chosen][rank::world], label_smoothing=SMOOTHING)
    loss.backward()  # averages the gradients of all processes
    norm = whole(torch.nn.utils.clip_grad_norm_(run.core.phi.parameters(), 1.0))
    mean, stops = averaged(loss.detach(), torch.tensor(float(interrupted()), device=loss.device))
    step = int(run.progress["step"])
    if not (mean.isfinite() and norm.isfinite()):
        raise SystemExit(f"loss {mean.item()}, gradient norm {norm.item()} at step {step + 1}; stopped unsaved")
    run.optimizer.step()
    run.progress["losses"][step] = mean.item()
    run.progress["step"] += 1
    return mean.item(), bool(stops)


def save(run: Run, out: Path, settings: checkpoints.State) -> None:
    """Saves the run, if it is worth it."""
    step = int(run.progress["step"])
    if not whole(torch.nn.utils.get_total_norm(list(run.core.phi.parameters()))).isfinite():
        raise SystemExit(f"phi is not finite after step {step}; stopped unsaved: try a lower --lr")
    step_folders.save(out, step, run.state(), settings)


@torch.no_grad()
def tested(module: nn.Module, digits: Digits) -> float:
    """The share of the test digits that are predicted, each process predicting its part."""
    rank, world = dist.get_rank(), dist.get_world_size()
    images, labels = digits.test_images[rank::world], digits.test_labels[rank::world]
    hits = (module(images, images).argmax(-1) == labels).double().sum()
    dist.all_reduce(hits)
    return hits.item() / len(digits.test_labels)


def averaged(*values: Tensor) -> Tensor:
    """The means of numbers over all processes."""
    joined = torch.stack(values)
    dist.all_reduce(joined)
    return joined / dist.get_world_size()


def whole(value: Any) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line)


if __name__ == "__main__":
    main()
