"""A script for torchrun: whole runs of distributed_mnist, and one in which a process kills itself.

`torchrun ... distributed_runs.py OUT ARGUMENT...` saves what the whole runs return as `OUT/<name>.pt`. All are done by
the same processes, as these take longer to start than to train.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import distributed_mnist
import torch
import torch.distributed as dist
from torch import Tensor

KILLED_IN = 8  # the step, from 1
VICTIM = 1  # its rank


def killing(shift: Callable[..., Tensor]) -> Callable[..., Tensor]:
    calls = iter(range(1, 10**6))

    def shifted(*args: object) -> Tensor:
        if next(calls) == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)
        return shift(*args)

    return shifted


def collectives(parallel: str) -> dict[str, int]:
    """What the processes send in a forward and a backward pass, once all is arranged."""
    arguments = argparse.Namespace(parallel=parallel, hidden=[4], seed=0, lr=1e-3, weight_decay=0.0)
    module = distributed_mnist.make(arguments, torch.device("cpu"), 1, 1).module
    images = torch.rand(4, 784)
    for _ in range(2):  # DDP arranges its buckets anew in the second
        module(images, images).sum().backward()
    with torch.profiler.profile() as seen:
        module(images, images).sum().backward()
    return {event.key: event.count for event in seen.key_averages() if event.key.startswith("c10d::")}


def main(out: Path, argv: list[str]) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in "ddp", "fsdp":
        result = distributed_mnist.main([*argv, "--parallel", name, "--out", str(out / name)])
        if rank == 0:
            torch.save(result, out / f"{name}.pt")
    counts = {name: collectives(name) for name in ("ddp", "fsdp")}
    if rank == 0:
        torch.save(counts, out / "collectives.pt")
    if rank == VICTIM:
        distributed_mnist.random_shift = killing(distributed_mnist.random_shift)
    distributed_mnist.main([*argv, "--parallel", "fsdp", "--out", str(out / "killed")])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
