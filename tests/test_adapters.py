"""The adapters example: what is frozen stays, gradients reach what is trained, and all paths agree on every subset."""

import copy
from argparse import Namespace
from pathlib import Path

import adapters as example
import pytest
import torch
import torch.nn.functional as F
from data import CLASSES, PIXELS, Digits
from killing import killed_after_two
from option_checks import refused, told
from torch import Tensor, nn

import functional_hyper as fh

GENERATED = [name for name, method in example.METHODS.items() if method.make]
TRAINED = [name for name, method in example.METHODS.items() if not method.frozen]
FROZEN = [name for name in GENERATED if example.METHODS[name].frozen]


def few_digits(*_: object) -> Digits:
    """Ten random blots under noise, the same for training and test."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(CLASSES, 1, 5, 5, generator=generator)
    blots = F.interpolate(coarse, (28, 28), mode="bilinear").flatten(1)

    def draw(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(CLASSES).repeat(each)
        return 0.9 * blots[labels] + 0.1 * torch.rand(len(labels), PIXELS, generator=generator), labels

    return Digits(*draw(8), *draw(5))


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "load_digits", few_digits)


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "draw_picture", lambda *_: None)


def options(*more: str) -> Namespace:
    return example.options().parse_args(["--batch-size", "32", *more])


def run(out: Path, *more: str) -> dict[str, float]:
    return example.main(["--pretraining", "2", "--steps", "4", "--batch-size", "32", "--out", str(out), *more])


def state(out: Path, name: str) -> dict[str, Tensor]:
    return torch.load(out / f"{name}.pt", weights_only=True)["phi"]


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    digits = few_digits()
    domain, images = example.draw(digits.train_images[:12], torch.Generator().manual_seed(1))
    return domain.to(dtype), images.to(dtype), digits.train_labels[:12]


def prepared(name: str, dtype: torch.dtype, *more: str) -> tuple[nn.Module, example.Logits, dict[str, Tensor]]:
    """A method, what it trains moved off its start: heads that start at zero would hide what they generate."""
    main = example.backbone(0).to(dtype)
    logits, trained = example.prepare(example.METHODS[name], main, options(*more))
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.02 * torch.randn(value.shape, dtype=dtype, generator=noise))
    return main, logits, trained


def test_a_run_of_all_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path)
    assert list(found) == list(example.METHODS)
    assert (tmp_path / "adapters.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    for name, share in found.items():
        row = next(line for line in printed if line.startswith(f"{name}  "))
        assert row.split()[-2] == f"{100 * share:.1f}"


@pytest.mark.usefixtures("_no_pictures")
def test_the_cond_may_be_the_image(tmp_path: Path) -> None:
    assert list(run(tmp_path, "--cond", "image", "--methods", "adapters")) == ["adapters"]
    assert state(tmp_path, "adapters")["trunk.0.weight"].shape == (64, PIXELS)


@pytest.mark.usefixtures("_no_pictures")
def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "norms + backbone"
    chosen = ("--pretraining", "1", "--methods", name)
    whole = run(tmp_path / "whole", *chosen)
    killed_after_two(lambda: run(tmp_path / "killed", *chosen), monkeypatch)  # a step of the backbone, one of its own
    assert torch.load(tmp_path / "killed" / f"{name}.pt", weights_only=True)["step"] == 1
    assert run(tmp_path / "killed", *chosen, "--resume") == whole
    for part in ("backbone", name):
        first, second = state(tmp_path / "whole", part), state(tmp_path / "killed", part)
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    with pytest.raises(SystemExit, match="rank: 8 there, 2 now"):
        run(tmp_path / "killed", *chosen, "--resume", "--rank", "2")


@pytest.mark.parametrize("name", GENERATED)
def test_every_method_starts_at_the_backbone(name: str) -> None:
    main = example.backbone(0)
    domain, images, _ = batch(torch.float32)
    want = main(images).detach()
    logits, _ = example.prepare(example.METHODS[name], main, options())
    torch.testing.assert_close(logits(domain, images).detach(), want, rtol=1e-4, atol=1e-5)
    assert want.std() > 0.1


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_keeps_its_bits(name: str, tmp_path: Path) -> None:
    args = options("--steps", "3", "--lr", "0.1", "--out", str(tmp_path))
    main = example.backbone(0)
    before = copy.deepcopy(main.state_dict())
    logits, trained = example.prepare(example.METHODS[name], main, args)
    assert not [key for key in trained if key.startswith(("main.", "base."))]
    start = {key: value.detach().clone() for key, value in trained.items()}
    example.train(name, logits, trained, few_digits(), args, upright=False)
    assert [key for key, value in main.state_dict().items() if not torch.equal(value, before[key])] == []
    assert all(p.grad is None for p in main.parameters())
    assert [key for key in trained if torch.equal(start[key], trained[key])] == []


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_the_backbone_and_phi(name: str) -> None:
    main, logits, trained = prepared(name, torch.float64)
    domain, images, labels = batch(torch.float64)
    slopes = torch.autograd.grad(F.cross_entropy(logits(domain, images), labels), list(trained.values()))
    assert [key for key, slope in zip(trained, slopes, strict=True) if slope.abs().max() < 1e-9] == []
    # with what is generated, all of the backbone is trained: in main, or as the base of what is generated
    heads = {key.removeprefix("head.").removesuffix(".u").removesuffix(".delta") for key in trained if "head." in key}
    reached = {key.removeprefix("main.") for key in trained} | heads
    assert {key for key, _ in main.named_parameters()} <= reached


@pytest.mark.parametrize("path", [path for path in (*fh.PATHS, "auto") if path != "loop"])
@pytest.mark.parametrize("name", GENERATED)
def test_paths_agree_on_every_subset(name: str, path: str) -> None:
    domain, images, labels = batch(torch.float64)

    def value_and_slopes(path: str) -> list[Tensor]:
        _, logits, trained = prepared(name, torch.float64, "--path", path)
        x = images.clone().requires_grad_()
        y = logits(domain, x)
        return [y, *torch.autograd.grad(F.cross_entropy(y, labels), [*trained.values(), x])]

    for ours, theirs in zip(value_and_slopes(path), value_and_slopes("loop"), strict=True):
        assert theirs.abs().max() > 1e-9
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * theirs.abs().max().item())


def test_told_is_the_domain_as_further_inputs() -> None:
    main, logits, trained = prepared("fine-tuned and told", torch.float64)
    domain, images, _ = batch(torch.float64)
    head = trained["head.first.bias"]  # a row for each number of the cond, then the bias itself
    first = nn.Linear(PIXELS + 3, 256).double()
    with torch.no_grad():
        first.weight.copy_(torch.cat([main.get_parameter("first.weight"), head[:-1].T], 1))
        first.bias.copy_(head[-1])
    rest = nn.Sequential(first, *list(main.children())[1:])
    torch.testing.assert_close(logits(domain, images), rest(torch.cat([images, domain], 1)))


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_generated_fits_domains_that_the_backbone_does_not_know(name: str) -> None:
    logits, trained = example.prepare(example.METHODS[name], example.backbone(0), options())
    domain, images, labels = batch(torch.float32)
    optimizer, losses = torch.optim.Adam(trained.values(), lr=1e-2), []
    for _ in range(40):
        losses.append(F.cross_entropy(logits(domain, images), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_images_are_turned_and_inverted() -> None:
    images = torch.rand(4, PIXELS)
    angles = torch.tensor([0.0, torch.pi / 2, 0.0, -torch.pi / 2])
    got = example.turned(images, angles, torch.tensor([False, False, True, True]))
    squares = images.view(4, 28, 28)
    want = [squares[0], squares[1].rot90(1), 1 - squares[2], 1 - squares[3].rot90(-1)]
    torch.testing.assert_close(got.view(4, 28, 28), torch.stack(want), rtol=0, atol=1e-4)
    domain, _ = example.draw(images.repeat(100, 1), torch.Generator().manual_seed(0))
    assert 0.4 < domain[:, 2].mean() < 0.6
    assert domain[:, 0].min() >= 0  # within a quarter turn
    assert domain[:, 1].min() < -0.9 < 0.9 < domain[:, 1].max()


def test_a_loss_that_is_not_finite_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = few_digits()
    digits.train_images.fill_(torch.nan)
    monkeypatch.setattr(example, "load_digits", lambda *_: digits)
    with pytest.raises(SystemExit, match=r"loss nan, .* at step 1 of backbone; stopped before it could reach"):
        run(tmp_path)


def test_help_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    told(example, capsys, *example.METHODS)


@pytest.mark.parametrize("bad", [("--methods", "lora"), ("--rank", "0"), ("--cond", "support"), ("--path", "fast")])
def test_bad_options(bad: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(example, bad, capsys)
