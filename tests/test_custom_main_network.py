"""The example with main networks of the user's own: it runs, resumes to the same bits, and all paths agree."""

from types import SimpleNamespace

import custom_main_network as example
import pytest
import torch
from killing import killed_after_two
from option_checks import told

import functional_hyper as fh

TRAINED = ("function", "cnn", "siren")


@pytest.fixture(autouse=True)
def _each_step_once(monkeypatch):
    """Times are not tested, and take long; the steps that would be timed are."""

    def once(functions, seconds):
        for slopes in (f() for f in functions.values()):
            assert any(slope.any() for slope in slopes)
        return {name: SimpleNamespace(median=1e-3 + 1e-6 * at) for at, name in enumerate(functions)}

    monkeypatch.setattr(example, "interleaved", once)


def run(folder, part, *more):
    return example.main(["--part", part, "--steps", "4", "--out", str(folder), *more])[part]


def phi_in(folder, part):
    return torch.load(folder / f"{part}.pt", weights_only=True)["phi"]


@pytest.mark.parametrize("part", example.PARTS)
def test_a_run_says_what_answered_and_what_it_took(part, tmp_path, capsys):
    found = run(tmp_path, part)
    printed = capsys.readouterr().out
    assert f"\n{part}: " in printed
    assert "answered by" in printed
    assert "auto 1.00 ms, loop 1.00 ms, vmap 1.00 ms" in printed
    assert "contracted 1.01 ms" in printed
    assert all(0 <= value < 100 for value in found.values())
    assert (tmp_path / "siren.png").exists() == (part == "siren")
    assert (tmp_path / f"{part}.pt").exists() == (part in TRAINED)


def test_the_path_is_the_one_that_was_asked_for(tmp_path, capsys):
    run(tmp_path, "function", "--path", "bmm")
    assert 'path "bmm"' in capsys.readouterr().out


def test_rules_answer_what_no_vmap_hides(tmp_path, capsys):
    assert run(tmp_path, "unbatched")["gap"] < 1e-6  # of every path, with and without vmap, in float32
    vmapped, direct = capsys.readouterr().out.split("without vmap around it")
    assert "bmm\n" not in vmapped
    assert direct.count("bmm\n") == 4
    assert "a training step: auto" in direct


def test_few_steps_teach_a_cnn_its_own_turn(tmp_path):
    found = run(tmp_path, "cnn", "--steps", "20")
    assert found["test accuracy"] > 0.5
    assert found["by another turn"] < 0.3


def test_few_steps_fit_the_sirens(tmp_path, monkeypatch):
    monkeypatch.setattr(example.pictures, "save", lambda figure, path: None)
    assert run(tmp_path, "siren", "--steps", "1")["mean PSNR"] < 12
    assert run(tmp_path, "siren", "--steps", "30")["mean PSNR"] > 16


@pytest.mark.parametrize("part", TRAINED)
def test_a_resumed_run_ends_in_the_same_bits(part, tmp_path, monkeypatch, capsys):
    whole = run(tmp_path / "whole", part)
    killed_after_two(lambda: run(tmp_path / "killed", part), monkeypatch)
    assert torch.load(tmp_path / "killed" / f"{part}.pt", weights_only=True)["step"] == 2
    assert run(tmp_path / "killed", part, "--resume") == whole
    assert f"resumed {part} from {tmp_path / 'killed' / part}.pt after step 2" in capsys.readouterr().out
    first, second = phi_in(tmp_path / "whole", part), phi_in(tmp_path / "killed", part)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    with pytest.raises(SystemExit, match="seed: 0 there, 1 now"):
        run(tmp_path / "killed", part, "--resume", "--seed", "1")


def value_and_gradients(part, path, phi, batch):
    y = part.model(path)(phi, *batch[:2])
    return [y, *torch.autograd.grad(part.loss(y, batch[2]), list(phi.values()))]


@pytest.mark.parametrize("path", [path for path in example.EVERY_PATH if path != "loop"])
@pytest.mark.parametrize("name", example.PARTS)
def test_paths_agree_on_the_networks_of_the_example(name, path):
    part = example.PARTS[name](0)
    double = lambda t: t.double() if t.is_floating_point() else t
    batch = tuple(map(double, part.draw(torch.Generator().manual_seed(0))))
    phi = part.hyper.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():  # heads that start at zero would hide what is wrong with the generated part
        for value in phi.values():
            value.add_(0.01 * torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(1)))
    want = value_and_gradients(part, "loop", phi, batch)
    assert all(slope.abs().max() > 1e-6 for slope in want)
    for ours, theirs in zip(value_and_gradients(part, path, phi, batch), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * theirs.abs().max().item())


def test_turns_are_quarter_turns_of_the_digits():
    images = torch.arange(4.0 * 784).view(4, 1, 784)
    want = [[image.view(28, 28).rot90(t)] for t, image in enumerate(images)]
    assert torch.equal(example.turned(images), torch.stack([torch.stack(row) for row in want]).unsqueeze(2))


def test_a_siren_starts_as_the_paper_says():
    siren = example.Siren(torch.Generator().manual_seed(0), 64)
    first, hidden, last = (siren.get_parameter(f"layers.{at}.weight") for at in range(3))
    for weight, bound in ((first, 1 / 2), (hidden, (6 / 64) ** 0.5 / 30), (last, (6 / 64) ** 0.5 / 30)):
        assert 0.9 * bound < weight.abs().max() <= bound
    # so that what enters a hidden layer's sine has unit variance: sines of a wide argument are arcsine-distributed
    x = 2 * torch.rand(2000, 2) - 1
    inner = example.OMEGA * (torch.sin(example.OMEGA * (x @ first.T + siren.get_parameter("layers.0.bias"))) @ hidden.T)
    assert 0.8 < inner.std() < 1.25


def test_sirens_of_the_hypernetwork_start_at_the_base():
    part = example.siren(3)
    weights = part.hyper.apply(part.hyper.init(), torch.arange(example.IMAGES))
    base = torch.cat([p.detach().flatten() for p in example.Siren(torch.Generator().manual_seed(3)).parameters()])
    assert torch.equal(weights, base.expand_as(weights))


def test_every_path_is_timed():
    assert set(example.EVERY_PATH) == {"auto", *fh.PATHS}


def test_help(capsys):
    told(example, capsys, "--part", "--path", "--steps", "--seed", "--out", "--resume")
