"""The study measures what it says it measures."""

import json
from pathlib import Path

import pytest
import torch

from functional_hyper.study import (
    call_functions,
    interleaved,
    layer_functions,
    main,
    measure,
    peak_bytes,
    scores,
    solve_functions,
    step_functions,
    summary,
    table,
)


def test_peak_bytes_are_those_allocated_at_once():
    assert peak_bytes(lambda: torch.zeros(1000, 1000)) == pytest.approx(4e6, rel=0.01)
    assert peak_bytes(lambda: torch.zeros(1000, 1000) + torch.zeros(1000, 1000)) == pytest.approx(12e6, rel=0.01)

    def one_after_the_other() -> None:
        for _ in range(5):
            torch.zeros(1000, 1000)

    assert peak_bytes(one_after_the_other) == pytest.approx(4e6, rel=0.01)


def test_functions_take_turns():
    seen: list[str] = []
    times = interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 0.0)
    runs = "".join(seen[4:]).replace("ab", "a b").replace("ba", "b a").split()  # each function's calls, in turn
    assert [run[0] for run in runs] == ["a", "b"] * (len(runs) // 2)
    assert sum(len(run) - 1 for run in runs if run[0] == "a") == len(times["a"]), "the first call of a run is not timed"
    assert all(t > 0 for t in [*times["a"], *times["b"]])


def test_a_step_by_hand_is_a_step_of_every_path():
    functions = step_functions((6, 5, 3), 4, 2, seed=0)
    want = functions["by hand"]()
    for name in set(functions) - {"by hand", "head alone", "apply"}:
        for got, ref in zip(functions[name](), want, strict=True):
            torch.testing.assert_close(got, ref, rtol=1e-4, atol=1e-4)


def test_a_call_by_hand_is_a_call_of_every_path():
    functions = call_functions((2, 8, 2), 4, seed=0)
    for name, f in functions.items():
        if name == "one network":  # the module with weights of its own
            continue
        torch.testing.assert_close(f().reshape(4, 2), functions["bmm by hand"](), msg=name)


@pytest.mark.parametrize("layer", [(6, 3, 4, 2, 1, 1), (3, 6, 4, 2, 5, 2)])
def test_the_forms_of_a_layer_agree(layer: tuple[int, ...]):
    functions, chosen = layer_functions(*layer, seed=0)  # type: ignore[call-arg]
    assert chosen in functions
    for got, want in zip(functions["contracted"](), functions["bmm"](), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_auto_is_scored():
    found = list(scores(2, 0.0, seed=0))
    assert len(found) == 2
    assert all(ratio >= 1 and "auto takes" in line for line, ratio in found)
    text = summary([1.0, 1.0, 1.12, 4.0])
    assert "within 10 % of the best on 50%, within 15 % on 75%; worst 4.00x, geometric mean 1.455x" in text


def test_every_way_of_a_solve_agrees():
    functions = solve_functions((2, 8, 2), 3, 2, 2, 4, seed=0, compile=False)
    want = functions["loop"]()
    for name, f in functions.items():
        for got, ref in zip(f(), want, strict=True):
            torch.testing.assert_close(got, ref, rtol=1e-4, atol=1e-5, msg=name)


def test_records_print():
    records = measure("sum", {"a": lambda: torch.ones(10).sum(), "b": lambda: torch.ones(99).sum()}, 0.01, flops=10.0)
    text = table(records, peak=100.0)
    assert text.splitlines()[0] == "sum"
    assert "1.00" in text
    assert [r.path for r in records] == ["a", "b"]
    assert all(r.quartiles[0] <= r.median <= r.quartiles[1] for r in records)


def test_command_line_saves_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    try:
        main(["--workloads", "calls", "--seconds", "0.01", "--threads", "1", "--json", str(tmp_path / "out.json")])
    finally:
        torch.set_num_threads(threads)
    assert "GEMM peak" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out.json").read_text())
    assert {r["path"] for r in saved["records"]} >= {"bmm", "vmap", "loop", "bmm by hand"}
