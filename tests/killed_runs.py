"""A script: for each moment, a training run that kills itself there with SIGKILL, in a process of its own.

`python killed_runs.py OUT ARGUMENT...` runs mnist_parallel with the arguments and `--out OUT/<moment>`. All runs are
forks of one process, as the imports take longer than they do.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mnist_parallel
import pictures
import torch
import torchvision.datasets  # noqa: F401  each fork would import it anew
import training


def kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, of: str, before: bool = True) -> Callable[[], None]:
    """Arranges the kill before, or right after, the call of this number of a function or method, from 1."""

    def arrange() -> None:
        where, name = PLACES[of]
        real, calls = getattr(where, name), iter(range(1, 10**6))

        def counted(*args: Any, **kwargs: Any) -> Any:
            now = next(calls) == number
            if now and before:
                kill()
            value = real(*args, **kwargs)
            return kill() if now else value

        setattr(where, name, counted)

    return arrange


PLACES: dict[str, tuple[Any, str]] = {
    "batch": (training, "random_shift"),
    "update": (training.AdamW, "step"),
    "sync": (os, "fsync"),
    "rename": (os, "replace"),
}

# A run has 3 epochs of 3 steps, each with a save; in "often" every step is followed by one.
MOMENTS: dict[str, list[Callable[[], None]]] = {
    "in the first step": [at_call(1, "batch")],
    "between gradient and update": [at_call(5, "update")],
    "after the update": [at_call(6, "update", before=False)],
    "before a save is on the disk": [at_call(2, "sync")],
    "before a save has its name": [at_call(2, "rename")],
    "after a save": [at_call(2, "rename", before=False)],
    "often, in a step": [lambda: setattr(training, "SAVE_EVERY", 0.0), at_call(5, "batch")],
    "often, in a save": [lambda: setattr(training, "SAVE_EVERY", 0.0), at_call(8, "rename")],
}


def main(out: Path, argv: list[str]) -> None:
    torch.set_num_threads(1)
    pictures.save = lambda figure, path: None
    for moment, arrangements in MOMENTS.items():
        child = os.fork()
        if child == 0:
            for arrange in arrangements:
                arrange()
            try:
                mnist_parallel.main([*argv, "--out", str(out / moment)])
            finally:
                os._exit(0)  # not killed: the parent will say so
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, f"not killed {moment}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
