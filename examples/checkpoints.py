"""Checkpoints that no kill, full disk or flipped byte can spoil, and that continue only the run they were made by."""

import io
import os
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]  # dicts and lists of tensors, numbers and strings: what `weights_only=True` reads

# Options that say where a run computes, not what: it may be resumed with others.
FREE_OPTIONS = {"compare_paths", "data_dir", "device", "out", "path", "resume"}


def settings(args: Namespace, phi: dict[str, Tensor]) -> State:
    """What a checkpoint pins down, as plain data: the options, and the shapes of phi, which the code decides too."""
    shapes = {f"shape of {name}": list(value.shape) for name, value in phi.items()}
    return {name: value for name, value in vars(args).items() if name not in FREE_OPTIONS} | shapes


def make_writable(folder: Path) -> None:
    """Makes the folder; where nothing can be written there, stops with a message before any work is lost."""
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SystemExit(f"cannot write to {folder} ({error.strerror}): choose another folder with --out") from error


def save(path: Path, state: State) -> None:
    """Writes the state so that at any moment the path holds one whole checkpoint, the former or this one."""
    buffer = io.BytesIO()  # straight to a file, torch would report a full disk as a RuntimeError of its own
    torch.save(state, buffer)
    unfinished = path.with_suffix(".unfinished")  # in the same folder: only within a file system is a rename atomic
    try:
        with unfinished.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise SystemExit(f"cannot save {path} ({error.strerror}): a former checkpoint there is whole") from error


def load(path: Path, expected: State) -> State:
    """Reads a checkpoint onto the CPU.

    Args:
        path: the file.
        expected: what must be its "settings".

    Returns:
        The state that was saved.

    Raises:
        SystemExit: with a message, where the file is damaged or belongs to a run with other settings.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums that torch.save writes
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["settings"]
    except Exception as error:  # a damaged file makes the readers raise whatever they can
        raise SystemExit(f"{path} is not a whole checkpoint ({error}): start again without --resume") from error
    if differing := [name for name in {**expected, **found} if found.get(name) != expected.get(name)]:
        lines = "".join(f"\n  {name}: {found.get(name)} there, {expected.get(name)} now" for name in differing)
        raise SystemExit(f"{path} belongs to a run with other settings, take those or another --out:{lines}")
    return state
