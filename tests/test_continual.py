"""The continual-learning example: what it measures, that it resumes to the same bits, and that mistakes come first."""

import signal
from pathlib import Path

import continual_split_digits as example
import pictures
import pytest
import torch
from data import CLASSES, PIXELS, Digits
from option_checks import refused, told
from torch import Tensor

HYPERNETS = list(example.HYPERNETS)
EACH, BATCH = 8, 4
STEPS = 2 * EACH // BATCH  # of a task


def few_digits(*_: object) -> Digits:
    """Ten random prototypes under noise, the same for training and test."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(CLASSES, PIXELS, generator=generator)

    def draw(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(CLASSES).repeat(each)
        noise = torch.rand(len(labels), PIXELS, generator=generator)
        return (prototypes[labels] + noise) / 2, labels

    return Digits(*draw(EACH), *draw(10))


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "load_digits", few_digits)


def run(out: Path, *more: str) -> dict[str, float]:
    return example.main(["--epochs", "1", "--batch-size", str(BATCH), "--out", str(out), *more])


def state(out: Path, method: str) -> dict:
    return torch.load(out / f"{method}.pt", weights_only=True)


def test_a_task_has_its_two_digits() -> None:
    images, labels = torch.arange(20.0).unsqueeze(1), torch.arange(20) % 10
    for task, (first, second) in enumerate(example.TASKS):
        chosen, which = example.of_task(images, labels, task)
        assert chosen.flatten().tolist() == [first, second, first + 10, second + 10]
        assert which.tolist() == [0, 1, 0, 1]


def test_all_methods_start_with_the_same_classifier() -> None:
    args = example.options().parse_args([])
    images = few_digits().test_images
    for hypernet in HYPERNETS:
        args.hypernet = hypernet
        one, two, tuned = (example.make(method, args) for method in example.METHODS)
        for task in range(len(example.TASKS)):
            logits = tuned.logits(tuned.phi, task, images)
            assert logits.std() > 0.01
            for learner in (one, two):
                torch.testing.assert_close(learner.logits(learner.phi, task, images), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hypernet", HYPERNETS)
def test_an_interrupted_run_ends_in_the_same_bits(
    hypernet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--hypernet", hypernet, "--resume")
    means = run(tmp_path / "whole", *options)
    assert list(means) == list(example.METHODS)
    assert (tmp_path / "whole" / "continual_split_digits.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{100 * means['regularised']:8.1f}" in next(x for x in printed.splitlines() if x.startswith("regularised"))

    # The second run has what the first left of the first method, and as much as that had done of the second.
    step, half = torch.optim.Adam.step, 2 * STEPS + 4  # of a method: within its third task
    for method, number in ("regularised", half), ("unregularised", 5 * STEPS):
        count = iter(range(1, 10**6))

        def interrupted(self, *args, count=count, number=number, **kwargs):
            if next(count) == number:
                signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", interrupted)
            with pytest.raises(SystemExit) as stopped:
                run(tmp_path / "parts", *options)
        assert stopped.value.code == 130
        assert f"interrupted after step {half} of {method}, which is saved" in capsys.readouterr().out
    assert run(tmp_path / "parts", *options) == means
    printed = capsys.readouterr().out
    assert "resumed regularised after task 8/9" in printed
    assert "resumed unregularised in task 4/5" in printed
    for method in example.METHODS:
        ours, theirs = (state(tmp_path / folder, method) for folder in ("parts", "whole"))
        assert ours["accuracies"] == theirs["accuracies"]
        assert [len(row) for row in ours["accuracies"]] == [1, 2, 3, 4, 5]
        assert [name for name in ours["phi"] if not torch.equal(ours["phi"][name], theirs["phi"][name])] == []


@pytest.mark.parametrize("hypernet", HYPERNETS)
def test_the_regulariser_holds_the_earlier_classifiers(hypernet: str) -> None:
    """One more task is learned, and moves them far less than it does without."""
    options, moved = ["--hypernet", hypernet, "--batch-size", str(BATCH), "--lr", "3e-3"], {}
    for method in ("regularised", "unregularised"):
        args = example.options().parse_args(options)
        args.epochs = {"full": 4, "chunked": 8}[hypernet]
        learner, bar = example.make(method, args), example.tqdm(disable=True)
        example.learn(learner, 0, few_digits(), args, bar)
        before = learner.hyper.apply(learner.phi, torch.tensor(0)).detach()
        example.learn(learner, 1, few_digits(), args, bar)
        moved[method] = (learner.hyper.apply(learner.phi, torch.tensor(0)) - before).norm().item()
        if method == "regularised":
            assert min(example.test(learner, few_digits(), task) for task in (0, 1)) > 0.9
    assert 0 < moved["regularised"] < 0.5 * moved["unregularised"]


def test_a_foreign_checkpoint_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "save", lambda figure, path: None)
    run(tmp_path)
    (tmp_path / "regularised.pt").unlink()
    monkeypatch.setattr(example, "learn", lambda *_: pytest.fail("trained before it looked"))
    with pytest.raises(SystemExit, match=r"other settings.*\n  beta: 1.0 there, 2.0 now"):
        run(tmp_path, "--resume", "--beta", "2")
    (tmp_path / "unregularised.pt").rename(tmp_path / "regularised.pt")
    with pytest.raises(SystemExit, match="method: unregularised there, regularised now"):
        run(tmp_path, "--resume")


@pytest.mark.parametrize(
    "bad",
    [
        ("--beta", "-1"),
        ("--beta", "nan"),
        ("--lr", "inf"),
        ("--epochs", "0"),
        ("--batch-size", "none"),
        ("--hypernet", "low_rank"),
        ("--device", "abacus"),
    ],
)
def test_bad_options(bad: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(example, bad, capsys)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(example, "load_digits", lambda *_: pytest.fail("went on"))
    with pytest.raises(SystemExit, match=r"cannot write to .*choose another folder with --out"):
        run(tmp_path / "file")


def test_nan_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = few_digits()
    nan.train_images[nan.train_labels >= 4] = torch.nan  # from the third task on
    monkeypatch.setattr(example, "load_digits", lambda *_: nan)
    with pytest.raises(SystemExit, match=rf"regularised: loss nan at step {2 * STEPS + 1}; .*lower --lr"):
        run(tmp_path)
    saved = state(tmp_path, "regularised")
    assert len(saved["accuracies"]) == 2
    assert all(value.isfinite().all() for value in saved["phi"].values())


def test_help_says_how_many_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    told(example, capsys, "15 for full, 30 for chunked")
