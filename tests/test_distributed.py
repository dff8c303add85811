"""Many processes: DDP and FSDP2 train as one process does, and a killed process costs nothing but its last steps."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_mnist
import pytest
import step_folders
import torch
from distributed_runs import KILLED_IN
from torch.distributed.fsdp import fully_shard

import functional_hyper as fh

EPOCHS, STEPS, SAVE_EVERY = 4, 12, 2
HERE = Path(__file__).parent


def arguments(mnist_dir: Path, *more: str) -> list[str]:
    given = {"data": "torchvision", "data-dir": mnist_dir, "epochs": EPOCHS, "batch-size": 16, "hidden": 4}
    given["save-every"] = SAVE_EVERY
    return [*(word for name, value in given.items() for word in (f"--{name}", str(value))), *more]


def torchrun(script: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([*command, *argv], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def together(mnist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave behind: whole runs, and one that was killed."""
    out = tmp_path_factory.mktemp("together")
    done = torchrun(HERE / "distributed_runs.py", str(out), *arguments(mnist_dir))
    assert done.returncode != 0, "a killed process ends all"
    assert "exitcode  : -9" in done.stderr, done.stderr
    return out


@pytest.fixture(scope="module")
def alone(mnist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds."""
    return distributed_mnist.main(arguments(mnist_dir, "--out", str(tmp_path_factory.mktemp("alone"))))


def assert_close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert len(ours["losses"]) == STEPS
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=1e-5, atol=0)
    assert ours["phi"].keys() == theirs["phi"].keys()
    for name, value in theirs["phi"].items():  # as a whole: Adam takes a gradient of rounding errors for any other
        assert (ours["phi"][name] - value).norm() < 1e-4 * value.norm(), name
    assert ours["accuracy"] == theirs["accuracy"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(parallel: str, together: Path, alone: dict[str, Any]):
    assert alone["losses"][-1] != alone["losses"][0]
    assert_close(torch.load(together / f"{parallel}.pt", weights_only=True), alone)


def test_each_process_saves_half_of_phi(together: Path):
    (folder,) = step_folders.whole_in(together / "fsdp")
    sizes = [file.stat().st_size for file in folder.glob("*.distcp")]
    assert len(sizes) == 2
    assert max(sizes) < 1.1 * min(sizes)


def test_a_run_resumes_after_a_process_was_killed(together: Path, mnist_dir: Path, tmp_path: Path):
    """Started as a user starts it, in two processes; with the bits of the run that was not killed."""
    out = together / "killed"
    assert [folder.name for folder in step_folders.whole_in(out)] == [f"step-{KILLED_IN - 2:08}"]
    copy = shutil.copytree(out, tmp_path / "copy")
    argv = arguments(mnist_dir, "--resume", "--parallel", "fsdp", "--out", str(copy))
    done = torchrun(Path(distributed_mnist.__file__), *argv)
    assert done.returncode == 0, done.stderr
    assert f"resumed after step {KILLED_IN - 2} of {STEPS}" in done.stdout
    contents = []
    for folder in copy, together / "fsdp":
        (saved,) = step_folders.whole_in(folder)
        contents.append(json.loads((saved / step_folders.MANIFEST).read_text()))
    (ours, theirs) = contents
    assert ours["settings"] == theirs["settings"]
    tensors = [name for name in ours["sha256"] if name.endswith(".distcp")]
    assert len(tensors) == 2
    assert {n: ours["sha256"][n] for n in tensors} == {n: theirs["sha256"][n] for n in tensors}


def test_a_step_communicates_phi_twice(together: Path):
    """As the README counts: FSDP2 gathers phi once and scatters its gradient once, DDP reduces its gradient once."""
    found = torch.load(together / "collectives.pt", weights_only=True)
    assert found["fsdp"] == {"c10d::_allgather_base_": 1, "c10d::_reduce_scatter_base_": 1}
    assert found["ddp"] == {"c10d::allreduce_": 1}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_resumes_what_two_began(
    parallel: str, together: Path, alone: dict[str, Any], mnist_dir: Path, tmp_path: Path
):
    shutil.copytree(together / "killed", tmp_path, dirs_exist_ok=True)
    argv = arguments(mnist_dir, "--resume", "--parallel", parallel, "--out", str(tmp_path))
    assert_close(distributed_mnist.main(argv), alone)


# Faults, in one process


def run_until_step_five(act, mnist_dir: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    """Runs, acting on the images of step 5; what it stops with."""
    calls, shift = iter(range(1, 10**6)), distributed_mnist.random_shift
    with monkeypatch.context() as patch:
        acting = lambda images, generator: shift(act(images) if next(calls) == 5 else images, generator)
        patch.setattr(distributed_mnist, "random_shift", acting)
        with pytest.raises(SystemExit) as stopped:
            distributed_mnist.main(arguments(mnist_dir, "--out", str(out), *more))
    return str(stopped.value)


def test_ctrl_c_saves(alone: dict[str, Any], mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(images: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        return images

    assert run_until_step_five(interrupt, mnist_dir, tmp_path, monkeypatch) == "130"
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000005"]
    found = distributed_mnist.main(arguments(mnist_dir, "--out", str(tmp_path), "--resume"))
    assert found["losses"] == alone["losses"]
    assert all(torch.equal(found["phi"][name], alone["phi"][name]) for name in alone["phi"])


def test_nan_and_a_save_that_fails_leave_the_last_folder(
    alone: dict[str, Any], mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said = run_until_step_five(lambda images: images * torch.nan, mnist_dir, tmp_path, monkeypatch)
    assert "loss nan" in said
    assert "at step 5" in said

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for broken in "write", "finish", "a file that grows too large":
        with monkeypatch.context() as patch:
            if hasattr(step_folders, broken):
                patch.setattr(step_folders, broken, full)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
            with pytest.raises(
                SystemExit, match=r"^cannot save .*step-00000006 \(.*\): a former checkpoint .* is whole$"
            ):
                distributed_mnist.main(arguments(mnist_dir, "--out", str(tmp_path), "--resume"))
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [folder.name for folder in step_folders.whole_in(tmp_path)] == ["step-00000004"]
        assert (tmp_path / "unfinished").exists(), "as a kill in a save leaves it"
    found = distributed_mnist.main(arguments(mnist_dir, "--out", str(tmp_path), "--resume"))
    assert found["losses"] == alone["losses"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000012"]


def test_damaged_and_foreign_folders_are_refused(together: Path, mnist_dir: Path, tmp_path: Path):
    shutil.copytree(together / "killed", tmp_path, dirs_exist_ok=True)
    argv = arguments(mnist_dir, "--resume", "--out", str(tmp_path))
    with pytest.raises(SystemExit, match=r"(?s)other settings.*hidden: \[4\] there, \[8\] now"):
        distributed_mnist.main([*argv, "--hidden", "8"])
    (folder,) = step_folders.whole_in(tmp_path)
    for file in sorted(folder.iterdir()):
        good = file.read_bytes()
        place = len(good) // 2
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(SystemExit, match=r"is not a whole checkpoint|belongs to a run with other settings"):
            distributed_mnist.main(argv)
        file.unlink()
        with pytest.raises(SystemExit, match="is not a whole checkpoint"):
            distributed_mnist.main(argv)
        file.write_bytes(good)
    distributed_mnist.main(argv)


# The module's layout


def test_a_part_that_is_sharded_alone_is_refused():
    """Nothing would gather it: FSDP2 does where the sharded module itself is called."""
    main = torch.nn.Linear(3, 2)
    hyper = fh.full(fh.param_spec(main), 4)
    module = fh.as_module(fh.compose(hyper, main), hyper.init())
    with distributed_mnist.processes("cpu"):
        fully_shard(module.phi)
        with pytest.raises(fh.HyperError, match=r"a share of phi\.trunk.*fully_shard the module itself"):
            module(torch.zeros(5, 4), torch.zeros(5, 3))


def test_every_parameter_is_a_vector_that_shards_evenly():
    main = torch.nn.Sequential(torch.nn.Linear(784, 32), torch.nn.PReLU(), torch.nn.Linear(32, 10))
    hyper = fh.full(fh.param_spec(main), 784, (16,))
    phi = hyper.init() | {"scale": torch.tensor(2.0)}
    module = fh.as_module(fh.compose(hyper, main), phi)
    assert {name: p.shape for name, p in module.phi.named_parameters()} == {n: (v.numel(),) for n, v in phi.items()}
    head = module.get_parameter("phi.head.0.weight")
    assert max(part.numel() for part in head.chunk(1000)) == -(-17 * 784 * 32 // 1000)
    assert all(torch.equal(value, phi[name]) for name, value in module.phi_dict().items())
    assert module.phi_dict()["scale"].shape == ()
