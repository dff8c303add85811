"""The study measures what it says it measures."""

from itertools import groupby
from pathlib import Path

import batching_study
import pytest
import torch
from torch import nn

import functional_hyper as fh
from functional_hyper.study import (
    Record,
    Records,
    call_functions,
    cases,
    claims,
    compare,
    count,
    interleaved,
    layer,
    linear_layers,
    main,
    measure,
    peak_bytes,
    rule,
    scores,
    solve_functions,
    step_functions,
    summary,
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
    runs = [(name, len([*calls])) for name, calls in groupby(seen)]
    assert [name for name, _ in runs] == ["a", "b"] * 6, "once to see how long they take, then five turns"
    assert sum(n - 1 for name, n in runs[2:] if name == "a") == len(times["a"].times), "the first call is not timed"
    assert all(t > 0 for t in [*times["a"].times, *times["b"].times])


@pytest.mark.parametrize(
    "workload",
    [
        lambda: step_functions((6, 5, 3), 4, 2, seed=0),
        lambda: call_functions((2, 8, 2), 4, seed=0),
        lambda: solve_functions((2, 8, 2), 3, 2, 2, 4, seed=0, compile=False),
    ],
    ids=["steps", "calls", "odes"],
)
def test_everything_in_a_workload_computes_the_same(workload):
    functions, reference = workload()
    records = measure("it", functions, 0.0, reference)
    assert [r.path for r in records] == list(functions)
    assert {r.note for r in records} == {""}
    compared = {r.path for r in records if r.error is not None}
    assert set(functions) - compared <= {"head alone", "apply", "one network"}


@pytest.mark.parametrize("E", [1, 3])
@pytest.mark.parametrize("path", [*fh.PATHS])
def test_the_cost_model_counts_what_torch_counts(path: str, E: int):
    (case,) = (c for c in cases(["B"], 0, False, 0, False) if c.settings["B"] == 16)
    s = case.settings
    hyper = fh.full(fh.param_spec(mlp := _mlp(s["widths"])), s["K"], hidden=())
    cond, x = torch.randn(16, s["K"]).requires_grad_(), torch.randn(16, 1, s["widths"][0]).requires_grad_()
    options = {"many": True, "evaluations": E}
    functions, _ = fh.study.steps(mlp, hyper, hyper.init(), cond, x, [path], **options)
    flops, moved = count(functions[path])
    layers = [layer(path, O, I, s["K"] + 1, 16, 1, E) for O, I in linear_layers(s["widths"])]
    assert sum(f for f, _ in layers) == pytest.approx(flops, rel=0.03)
    assert 4 * sum(n for _, n in layers) == pytest.approx(moved, rel=0.25)


def test_counted_operations_are_those_of_the_products():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count(lambda: a @ b) == (2 * 3 * 5 * 7, 4 * (15 + 35 + 21))
    assert count(lambda: a.t()) == (0, 0), "a view moves nothing"
    x, w = torch.randn(1, 6, 1), torch.randn(8, 3, 1).requires_grad_()
    y = lambda: torch.nn.functional.conv1d(x, w, groups=2)
    assert count(y)[0] == 2 * 8 * 3
    assert count(lambda: torch.autograd.grad(y(), w, torch.ones(1, 8, 1)))[0] == 2 * 2 * 8 * 3, "and as many backward"


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers = [m for O, I in linear_layers(widths) for m in (nn.Linear(I, O), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


def _compared(net: nn.Module, **options) -> Records:
    hyper = fh.full(fh.param_spec(net), in_features=3)
    return compare(net, hyper, **{"batch": 4, "compile": False, "seconds": 0.0, **options})


def test_compare_measures_every_path():
    found = _compared(_mlp((4, 5, 4)), evaluations=2)
    assert [r.path for r in found] == [*fh.PATHS, "auto"]
    for r in found:
        assert r.note == ""
        assert r.error is not None
        assert r.error < 1e-5
        assert all(v is not None and v > 0 for v in (r.ms, r.peak_mb, r.gflop, r.gbyte, r.of_gemm, r.of_bandwidth))
    assert found.machine["threads"] == torch.get_num_threads()
    assert [r.settings["E"] for r in found] == [2] * 7


def test_compare_leaves_what_it_was_given_alone():
    net = _mlp((4, 5, 2))
    before = {n: p.clone() for n, p in net.named_parameters()}
    found = _compared(net, dtype=torch.float64, backward=False, paths=["bmm"])
    assert next(iter(found)).settings["dtype"] == "float64"
    assert all(p.dtype == torch.float32 and torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_a_path_that_disagrees_or_refuses_has_a_row_that_says_so():
    wrong = fh.Path("wrong", {torch.nn.functional.linear: fh.linear(lambda x, w, b: 2 * torch.bmm(x, w.mT))})

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    found = {r.path: r for r in _compared(nn.Sequential(nn.Linear(4, 2)), paths=["loop", wrong])}
    assert found["loop"].note == ""
    assert "differs from the loop" in found["wrong"].note
    batch = torch.randn(4, 3), torch.randn(4, 4)
    refused = {r.path: r for r in _compared(Branches(), paths=["loop", "bmm"], batch=batch)}
    assert refused["loop"].ms is not None
    assert refused["bmm"].ms is None
    assert "Refused" in refused["bmm"].note


def test_compare_compiles(dynamo):
    found = {
        (r.path, r.compiled): r for r in _compared(_mlp((4, 5, 2)), paths=["loop", "auto"], compile=True, batch=65)
    }
    assert "each would be compiled by itself" in found["loop", True].note
    assert found["auto", True].note == ""
    assert found["auto", True].ms is not None


def test_a_batch_that_cannot_be_drawn_is_refused():
    with pytest.raises(fh.HyperError, match="batch="):
        _compared(nn.Sequential(nn.Conv2d(1, 2, 3)))
    with pytest.raises(fh.HyperError, match="many"):
        _compared(_mlp((4, 2)), many=True)


def test_auto_is_scored():
    rows = [("a", "bmm", 1.0), ("a", "auto", 1.2), ("b", "bmm", 2.0), ("b", "by hand", 0.1), ("b", "auto", 2.0)]
    records = [Record(w, path, ms=ms) for w, path, ms in rows]
    assert scores([*records, Record("c", "bmm", ms=1.0)]) == [("a", 1.2), ("b", 1.0)], "only paths compete"
    unfit = Record("a", "broadcast", ms=0.1, note="differs from the loop")
    assert scores([*records[:2], unfit]) == [("a", 1.2)]
    text = summary([1.0, 1.0, 1.12, 4.0])
    assert "within 10 % of the best on 50%, within 15 % on 75%; worst 4.00x, geometric mean 1.455x" in text


def test_claims_are_told_with_what_was_measured():
    kind = {"kind": "odes"}
    rows = [
        Record("ode", "loop", ms=75.0, settings=kind),
        Record("ode", "grouped_conv by hand", ms=10.0, settings=kind),
    ]
    rows += [
        Record("s", p, ms=1.0, peak_mb=m, settings={"kind": "steps"}) for p, m in (("loop", 2.0), ("grouped_conv", 3.0))
    ]
    ode, storage = claims(rows)
    assert "7.5x" in ode.split("the loop")[1]
    assert "1.50 times as much" in storage


def test_records_print_save_load_and_plot(tmp_path: Path):
    found = _compared(_mlp((4, 5, 2)), paths=["bmm", "auto"])
    text = str(found)
    assert "GEMM" in text
    assert "1 threads" in text
    for name in ("r.json", "r.csv"):
        found.save(tmp_path / name)
    assert Records.load(tmp_path / "r.json") == found
    header, *rows = (tmp_path / "r.csv").read_text().splitlines()
    assert header.startswith("workload,path,compiled,ms,iqr")
    assert len(rows) == 2
    found.plot(tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 1000
    with pytest.raises(fh.HyperError, match=r"json or \.csv"):
        found.save(tmp_path / "r.txt")


def test_a_busy_machine_is_said():
    facts = _compared(_mlp((4, 2)), paths=["bmm"]).machine
    assert "BUSY" in str(Records((), {**facts, "busy": ["load 9.0 on 2 cores"]}))
    assert "BUSY" not in str(Records((), {**facts, "busy": []}))


def test_the_grid_covers_what_it_says():
    whole = list(cases(fh.study.KINDS, 0, False, 100, False))
    seen = lambda kind, key: [c.settings[key] for c in whole if c.kind == kind]
    assert (min(seen("B", "B")), max(seen("B", "B"))) == (1, 4096)
    assert (min(seen("width", "widths"))[0], max(seen("width", "widths"))[0]) == (8, 1024)
    assert (min(seen("K", "K")), max(seen("K", "K"))) == (2, 256)
    assert (min(seen("N", "N")), max(seen("N", "N"))) == (1, 256)
    assert (min(seen("evaluations", "E")), max(seen("evaluations", "E"))) == (1, 320)
    assert {c.dtype for c in whole} == {torch.float32, torch.bfloat16}
    assert len({c.name for c in whole}) == len(whole)
    assert len(list(cases(fh.study.KINDS, 0, False, 100, True))) < 25


def test_the_command_runs_a_sweep_and_saves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--quick", "--workloads", "conv", "crossover", "--seconds", "0", "--threads", "1"]
    found = main([*arguments, "--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv")])
    text = capsys.readouterr().out
    assert "GEMM" in text
    assert "auto on 7 workloads" in text
    assert Records.load(tmp_path / "out.json") == found
    assert {r.note for r in found} == {""}, "paths agree, convolutional networks too"


def test_figures_are_drawn_of_the_records(tmp_path: Path):
    main(["--quick", "--workloads", "B", "crossover", "--seconds", "0", "--json", str(tmp_path / "study.json")])
    saved = batching_study.main(["--json", str(tmp_path / "study.json"), "--out", str(tmp_path)])
    assert [p.stem for p in saved] == ["time_against_b", "memory_against_b", "crossover"], "there are no odes"
    assert all(1_000 < p.stat().st_size < 150_000 for p in saved)


@pytest.mark.parametrize("load", [(64, 1, 1), (64, 1, 16), (64, 16, 1), (4, 1, 4)])
def test_the_rule_that_is_drawn_is_the_one_that_auto_follows(load: tuple[int, int, int]):
    B, N, E = load
    layer = nn.Linear(64, 64)
    hyper = fh.full(fh.param_spec(layer), in_features=15, hidden=())
    model = fh.compose(hyper, layer, many=True, evaluations=E)
    form = model.bind(hyper.init(), torch.zeros(B, 15), torch.zeros(B, N, 64)).choices[0].form
    assert form.startswith("contracted") == (rule(64, 64, 16, B, N, E) <= 1)
