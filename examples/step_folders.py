"""Checkpoints of many processes: a folder for each saved step, which has its name only when all of it is on the disk.

`torch.distributed.checkpoint` writes a file for each process and reads them with any number of processes. It does not
say whether a folder is whole, and unpickles its own `.metadata`. A manifest with the settings and the SHA-256 of every
file is therefore written last and checked first, before anything else is read.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoints import State, differences, write
from torch.distributed.checkpoint.api import CheckpointException

MANIFEST = "manifest.json"


def save(out: Path, step: int, tensors: dict[str, Any], settings: State) -> None:
    """Saves the tensors as `out/step-<step>`, then removes the folders of other steps. Every process must call it.

    Raises:
        SystemExit: with a message, where it cannot be written; a former folder is whole.
    """
    folder, unfinished = out / f"step-{step:08}", out / "unfinished"
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed in a save
    dist.barrier()
    try:
        dcp.save(tensors, checkpoint_id=unfinished)
        if dist.get_rank() == 0:
            finish(unfinished, folder, settings)
    except (OSError, CheckpointException) as error:
        causes = [error] if isinstance(error, OSError) else [cause for cause, _ in error.failures.values()]
        why = "; ".join(str(cause) for cause in causes)
        raise SystemExit(f"cannot save {folder} ({why}): a former checkpoint there is whole") from error
    dist.barrier()


def finish(unfinished: Path, folder: Path, settings: State) -> None:
    """Gives the folder its manifest and its name."""
    sums = {file.name: checksum(file) for file in sorted(unfinished.iterdir())}
    write(unfinished / MANIFEST, json.dumps({"settings": settings, "sha256": sums}, indent=1).encode())
    for stale in whole_in(unfinished.parent):
        if stale == folder:  # of a run that was not resumed, but began anew
            shutil.rmtree(stale)
    os.rename(unfinished, folder)
    for stale in whole_in(folder.parent):
        if stale != folder:
            shutil.rmtree(stale)


def latest(out: Path, settings: State) -> Path | None:
    """The folder to resume from; None where there is none. Every process must call it.

    Raises:
        SystemExit: with a message, where the folder is damaged or belongs to a run with other settings.
    """
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0 and (folders := whole_in(out)):
        answer = [folders[-1], objection(folders[-1], settings)]
    dist.broadcast_object_list(answer)
    folder, refusal = answer
    if refusal:
        raise SystemExit(refusal)
    return folder


def read(folder: Path, tensors: dict[str, Any]) -> None:
    """Reads the folder into the tensors, each process what it holds. Every process must call it."""
    dcp.load(tensors, checkpoint_id=folder)


def objection(folder: Path, settings: State) -> str | None:
    """Why the folder cannot be resumed from; None where it can."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        wrong = [name for name, sum in manifest["sha256"].items() if checksum(folder / name) != sum]
        found = manifest["settings"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{folder} is not a whole checkpoint ({error!r}): start again without --resume"
    if wrong:
        return f"{folder} is not a whole checkpoint (wrong checksum of {', '.join(wrong)}): start without --resume"
    if lines := differences(found, json.loads(json.dumps(settings))):
        return f"{folder} belongs to a run with other settings, take those or another --out:{lines}"
    return None


def whole_in(out: Path) -> list[Path]:
    """The step folders, the latest last."""
    return sorted(out.glob("step-*"))


def checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
