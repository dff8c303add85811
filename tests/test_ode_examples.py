"""The neural-ODE examples run, resume to the same bits, and refuse what does not belong to them."""

import signal

import dynamics
import forecast
import lotka_volterra
import pytest
import torch
from killing import killed_after_two
from option_checks import told

EXAMPLES = [
    (lotka_volterra, "lotka_volterra", []),
    (forecast, "controls", ["--arms", "controls", "--batch", "4"]),
    (forecast, "support", ["--arms", "support", "--batch", "4"]),
]


@pytest.fixture(autouse=True)
def _few_pendulums(monkeypatch):
    make = forecast.pendulums
    monkeypatch.setattr(forecast, "pendulums", lambda count, *more: make(min(count, 8), *more))


def phi_in(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)["phi"]


@pytest.mark.parametrize(("example", "name", "options"), EXAMPLES)
def test_a_resumed_run_ends_in_the_same_bits(example, name, options, tmp_path, monkeypatch):
    run = lambda folder, *more: example.main(
        ["--steps", "4", "--no-compile", "--out", str(tmp_path / folder), *options, *more]
    )
    whole = run("whole")
    assert all(float(torch.as_tensor(v).max()) < 10 for v in whole.values())
    assert list((tmp_path / "whole").glob("*.png"))

    killed_after_two(lambda: run("killed"), monkeypatch)
    assert torch.load(tmp_path / "killed" / f"{name}.pt", weights_only=True)["step"] == 2
    assert run("killed", "--resume") == whole
    first, second = phi_in(tmp_path / "whole", name), phi_in(tmp_path / "killed", name)
    assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(SystemExit, match="seed"):
        run("killed", "--resume", "--seed", "1")


def after_step(number: int, act, monkeypatch):
    """Acts on the parameters right after the optimiser's step of this number, from 1; every step is saved."""
    calls, step = iter(range(1, 10**6)), torch.optim.Adam.step

    def acting(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if next(calls) == number:
            act(self.param_groups[0]["params"])

    monkeypatch.setattr(torch.optim.Adam, "step", acting)
    monkeypatch.setattr(dynamics, "SAVE_EVERY", 0.0)  # seconds


def test_faults_leave_a_checkpoint_to_resume_from(tmp_path, monkeypatch):
    """Ctrl-C saves the step it comes in; a step that ends in NaN, in phi or in the next loss, is not saved."""
    argv = ["--steps", "4", "--no-compile", "--out", str(tmp_path)]
    path = tmp_path / "lotka_volterra.pt"
    with monkeypatch.context() as patch:
        patch.setattr(dynamics, "SAVE_EVERY", 1e9)
        after_step(2, lambda _: signal.raise_signal(signal.SIGINT), patch)
        with pytest.raises(SystemExit) as stopped:
            lotka_volterra.main(argv)
    assert stopped.value.code == 130
    assert torch.load(path, weights_only=True)["step"] == 2
    with monkeypatch.context() as patch:
        after_step(2, lambda phi: phi[0].data.fill_(torch.nan), patch)
        with pytest.raises(SystemExit, match="not finite, and not saved"):
            lotka_volterra.main([*argv, "--resume"])
    assert torch.load(path, weights_only=True)["step"] == 3
    with monkeypatch.context() as patch:
        patch.setattr(lotka_volterra, "segments", lambda *args, cut=lotka_volterra.segments: cut(*args) * torch.nan)
        with pytest.raises(SystemExit, match=r"loss nan.* at step 4 of lotka_volterra; stopped before"):
            lotka_volterra.main([*argv, "--resume"])
    assert torch.load(path, weights_only=True)["step"] == 3
    lotka_volterra.main([*argv, "--resume"])


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_every_gradient_trains(gradient, tmp_path):
    lotka_volterra.main(
        ["--steps", "1", "--no-compile", "--gradient", gradient, "--path", "auto", "--out", str(tmp_path)]
    )


def test_the_other_arms_run(tmp_path):
    arms = ["shared", "inputs", "wide"]
    found = forecast.main(["--steps", "1", "--no-compile", "--batch", "4", "--out", str(tmp_path), "--arms", *arms])
    assert list(found) == arms


def test_the_strong_baseline_has_as_many_numbers():
    arguments = dynamics.options(None, "x", 1).parse_args([])
    wide = forecast.Arm("wide", arguments).hyper.spec.size
    generated = sum(p.numel() for p in forecast.Arm("controls", arguments).hyper.init().values())
    assert 0.9 < wide / generated < 1.1


def test_help(capsys):
    for example in (lotka_volterra, forecast):
        told(example, capsys, "--minutes")
