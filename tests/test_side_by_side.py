"""The side by side example: every way that can run here agrees with the loop, and a wrong one is caught."""

from typing import Any

import pytest
import side_by_side
import torch

WIDTHS = (5, 4, 3)


def ways() -> dict[str, side_by_side.Way]:
    return side_by_side.ways(compile=False)


@pytest.mark.parametrize("name", ["vmap by hand", "grouped conv by hand", "this library", *side_by_side.OPTIONAL])
def test_every_way_gives_the_loops_values_and_gradients(name: str) -> None:
    if name not in ways():
        pytest.skip("not installed")
    start = side_by_side.draw(WIDTHS, B=7, K=2, seed=0)
    reference = side_by_side.library(WIDTHS, start, "loop")()
    assert side_by_side.disagreement(ways()[name](WIDTHS, start)(), reference) < 1e-5
    other = side_by_side.draw(WIDTHS, B=7, K=2, seed=1)
    assert side_by_side.disagreement(ways()[name](WIDTHS, other)(), reference) > 1e-2


def test_a_wrong_gradient_is_seen() -> None:
    start = side_by_side.draw(WIDTHS, B=7, K=2, seed=0)
    reference = side_by_side.vmap_by_hand(WIDTHS, start)()
    wrong: tuple[Any, ...] = (*reference[:-1], 1.01 * reference[-1])
    assert side_by_side.disagreement(wrong, reference) == pytest.approx(0.01, rel=1e-3)


def test_the_script_prints_ratios_and_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(side_by_side.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(side_by_side, "WORKLOADS", {"tiny": (WIDTHS, 7, 2)})
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["side_by_side.py", "--seconds", "0.01", "--threads", str(threads)])
    side_by_side.main()
    out = capsys.readouterr().out
    assert "JAX jit(vmap)" in out
    assert "skipped, jax is not installed" in out
    assert next(line for line in out.splitlines() if line.startswith("tiny")).count("x") == 2
