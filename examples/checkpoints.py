"""Checkpoints that no kill, full disk or flipped byte can spoil, and that continue only the run they were made by."""

import hashlib
import io
import os
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import functional_hyper as fh

State = dict[str, Any]  # dicts and lists of tensors, numbers and strings: what `weights_only=True` reads

# Options that say where a run computes, not what: it may be resumed with others.
FREE_OPTIONS = {"compare_paths", "data_dir", "device", "export", "out", "parallel", "path", "resume", "save_every"}
DIGEST = 64  # bytes of a SHA-256 in hexadecimal


def settings(args: Namespace, phi: dict[str, Tensor], spec: fh.ParamSpec | None = None) -> State:
    """What a checkpoint pins down, as plain data: the options, the shapes of phi, and the spec with its fingerprint."""
    shapes = {f"shape of {name}": list(value.shape) for name, value in phi.items()}
    generated: State = {}
    if spec is not None:
        generated["fingerprint of the spec"] = spec.fingerprint
        generated |= {f"generated {slot.name}": list(slot.shape) for slot in spec.slots}
    return {name: value for name, value in vars(args).items() if name not in FREE_OPTIONS} | shapes | generated


def differences(found: State, expected: State) -> str:
    """A line for each setting that is not the same; empty where all are."""
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    return "".join(f"\n  {name}: {found.get(name)} there, {expected.get(name)} now" for name in names)


@contextmanager
def interruption_noted() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C waits for the loop to ask whether it came, as between two steps; a second one does not wait."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    former = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, former)


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
    """Writes the state so that at any moment the path holds one whole checkpoint, the former or this one.

    Raises:
        SystemExit: with a message, where the state's "phi" is not finite, or cannot be written.
    """
    if broken := [name for name, value in state.get("phi", {}).items() if not value.isfinite().all()]:
        raise SystemExit(f"{', '.join(broken)}: not finite, and not saved; a former checkpoint in {path} is whole")
    unfinished = path.with_suffix(".unfinished")  # in the same folder: only within a file system is a rename atomic
    try:
        write(unfinished, sealed(state))
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise SystemExit(f"cannot save {path} ({error.strerror}): a former checkpoint there is whole") from error


def write(path: Path, content: bytes) -> None:
    """Writes a file, and returns when the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sealed(state: State) -> bytes:
    """What `torch.save` writes, a zip archive, with the SHA-256 of all before it as the archive's comment."""
    buffer = io.BytesIO()  # straight to a file, torch would report a full disk as a RuntimeError of its own
    torch.save(state, buffer)
    content = bytearray(buffer.getbuffer())
    content[-2:] = DIGEST.to_bytes(2, "little")  # the last field of an archive is the length of its comment
    return bytes(content) + hashlib.sha256(content).hexdigest().encode()


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
        content = path.read_bytes()
        if hashlib.sha256(content[:-DIGEST]).hexdigest().encode() != content[-DIGEST:]:
            raise ValueError("wrong checksum")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        found = state["settings"]
    except Exception as error:  # a file of something else makes the readers raise whatever they can
        raise SystemExit(f"{path} is not a whole checkpoint ({error}): start again without --resume") from error
    if lines := differences(found, expected):
        raise SystemExit(f"{path} belongs to a run with other settings, take those or another --out:{lines}")
    return state


def export(path: Path, phi: dict[str, Tensor], spec: fh.ParamSpec | None = None) -> None:
    """Writes phi alone as safetensors, with the spec's fingerprint, for whatever reads that."""
    from safetensors.torch import save_file  # here, as only --export needs the package

    whole = {name: value.detach().contiguous() for name, value in phi.items()}  # it takes no views with gaps
    save_file(whole, path, metadata={"fingerprint": spec.fingerprint} if spec is not None else None)
