"""A script for torchrun: whole runs of distributed_mnist, and one in which a process kills itself.

`torchrun ... distributed_runs.py OUT ARGUMENT...` saves what the whole runs return as `OUT/<name>.pt`. All are done by
the same processes, as these take longer to start than to train.
"""

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


def main(out: Path, argv: list[str]) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in "ddp", "fsdp":
        result = distributed_mnist.main([*argv, "--parallel", name, "--out", str(out / name)])
        if rank == 0:
            torch.save(result, out / f"{name}.pt")
    if rank == VICTIM:
        distributed_mnist.random_shift = killing(distributed_mnist.random_shift)
    distributed_mnist.main([*argv, "--parallel", "fsdp", "--out", str(out / "killed")])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
