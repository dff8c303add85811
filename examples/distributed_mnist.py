"""Input-conditioned MNIST on many processes: `torchrun --nproc-per-node 2 examples/distributed_mnist.py`.

Every process takes its share of each batch. `--parallel ddp` keeps all of phi everywhere, `--parallel fsdp` a share of
phi, of its gradient and of the optimiser's state. Batches, shifts and losses are those of one process, to rounding.
Checkpoints may be resumed by another number of processes, or the other way of sharing.
"""

import argparse
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        dist.destroy_process_group()


def train(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All of a run."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        checkpoints.make_writable(args.out)
    classifier = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, CLASSES)).requires_grad_(False)
    spec = fh.param_spec(classifier)
    hyper = fh.full(spec, in_features=PIXELS, hidden=args.hidden)
    generator = torch.Generator().manual_seed(args.seed)
    phi = hyper.init(generator, device=device)
    module: Any = fh.as_module(fh.compose(hyper, classifier), phi)
    core = module
    if args.parallel == "ddp":
        module = DistributedDataParallel(module)
    else:
        warnings.filterwarnings("ignore", ".*returned a view tensor")  # which nothing here writes into
        fully_shard(module, ignored_params=set(classifier.parameters()))
    optimizer = AdamW(core.phi.parameters(), lr=args.lr, weight_decay=args.weight_decay)

    digits = load_digits(args.data, args.data_dir, args.validation).to(device)
    steps = len(digits.train_images) // args.batch_size  # of an epoch; what is left over waits for the next order
    total = args.epochs * steps
    run = {
        "step": torch.zeros((), dtype=torch.int64),
        "losses": torch.zeros(total, dtype=torch.float64),
        "order": torch.zeros(len(digits.train_images), dtype=torch.int64),
        "generator": generator.get_state(),
    }
    settings = checkpoints.settings(args, phi, spec)
    if args.resume and (folder := step_folders.latest(args.out, settings)) is not None:
        restore(folder, module, optimizer, run)
        generator.set_state(run["generator"])
        say(f"resumed after step {int(run['step'])} of {total}, from {folder}")

    with (
        tqdm(total=total, initial=int(run["step"]), unit="step", disable=rank != 0) as bar,
        checkpoints.interruption_noted() as interrupted,
    ):
        for step in range(int(run["step"]), total):
            if step % steps == 0:
                run["order"] = torch.randperm(len(digits.train_images), generator=generator)
            chosen = run["order"].split(args.batch_size)[step % steps].to(device)
            # Every process draws the shifts of the whole batch, and takes its rows.
            images = random_shift(digits.train_images[chosen], generator)[rank::world]
            for group in optimizer.param_groups:
                group["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * step / total))
            optimizer.zero_grad()
            loss = F.cross_entropy(
                module(images, images), digits.train_labels[chosen][rank::world], label_smoothing=SMOOTHING
            )
            loss.backward()  # averages the gradients of all processes
            norm = whole(torch.nn.utils.clip_grad_norm_(core.phi.parameters(), 1.0))
            mean, stop = averaged(loss.detach(), torch.tensor(float(interrupted()), device=device))
            if not (mean.isfinite() and norm.isfinite()):
                raise SystemExit(f"loss {mean.item()}, gradient norm {norm.item()} at step {step + 1}; stopped unsaved")
            optimizer.step()
            run["losses"][step] = mean.item()
            run["step"] += 1
            bar.set_postfix(loss=f"{mean.item():.3f}", refresh=False)
            bar.update()
            if (step + 1) % args.save_every == 0 or step + 1 == total or stop:
                if not whole(torch.nn.utils.get_total_norm(list(core.phi.parameters()))).isfinite():
                    raise SystemExit(f"phi not finite after step {step + 1}; stopped unsaved: try a lower --lr")
                run["generator"] = generator.get_state()
                step_folders.save(args.out, step + 1, state_of(module, optimizer, run), settings)
            if stop:  # in one process is in all of them
                say(f"interrupted after step {step + 1}, which is saved; --resume continues from there")
                raise SystemExit(130)

    accuracy = tested(module, digits)
    say(f"{'validation' if args.validation else 'test'} accuracy: {100 * accuracy:.1f} %")
    found = core.phi_dict()
    if args.export is not None and rank == 0:
        checkpoints.export(args.export, found, spec)
    return {"losses": run["losses"].tolist(), "accuracy": accuracy, "phi": found}


def state_of(module: nn.Module, optimizer: AdamW, run: dict[str, Tensor]) -> dict[str, Any]:
    """All that a run depends on, as tensors, each with this process's share; the settings hold the options."""
    phi, optimal = get_state_dict(module, optimizer, options=GENERATED)
    return {"phi": phi, "optimizer": optimal["state"], "run": run}


def restore(folder: Path, module: nn.Module, optimizer: AdamW, run: dict[str, Tensor]) -> None:
    """Reads a step folder into the module, the optimiser and the run; each process its share."""
    state = state_of(module, optimizer, run)
    step_folders.read(folder, state)
    groups = get_state_dict(module, optimizer, options=GENERATED)[1]["param_groups"]
    optimal: Any = {"state": state["optimizer"], "param_groups": groups}
    set_state_dict(module, optimizer, model_state_dict=state["phi"], optim_state_dict=optimal, options=GENERATED)


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
