"""`fh.ode.solve` in value: known solutions, batched = solved one by one, per-sample times, errors at the door."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from ode_cases import ADAMS, ADAPTIVE, FIXED, PATHS, B, D, draw, driven, network, states, times
from torch import nn

import functional_hyper as fh
from functional_hyper import ode


@pytest.mark.parametrize("method", [*FIXED, *ADAMS, *ADAPTIVE, "scipy_solver"])
def test_a_linear_system_has_its_known_solution(method):
    matrices = torch.randn(B, D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y0, t = states(many=False), times(41)
    want = torch.stack([torch.einsum("boi,bi->bo", torch.matrix_exp(s * matrices), y0) for s in t])
    main = nn.Linear(D, D, bias=False).double()
    order = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
    options: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    tolerance = 1e-2
    if method in order:
        options, tolerance = {}, 20 * (1 / 40) ** order[method]
    if method in ADAMS:  # of order 12, the default, explicit_adams is unstable at this step
        options = {"options": {"max_order": 4}}
    got = ode.solve(main, {"weight": matrices}, y0, t, method=method, **options)
    assert (got - want).abs().max() < tolerance
    if method in FIXED:  # halving the step divides the error as the order says
        half = ode.solve(main, {"weight": matrices}, y0, t, method=method, options={"step_size": 1 / 80})
        ratio = (got - want)[-1].norm() / (half - want)[-1].norm()
        assert 0.7 * 2 ** order[method] < ratio < 1.4 * 2 ** order[method]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", [*FIXED, *ADAMS])
def test_batched_is_one_by_one(method, path, many):
    main, y0, t = network(), states(many), times()
    weights = draw(main, structured=path == "contracted")
    push = torch.linspace(-1, 1, B, dtype=torch.float64)
    got = ode.solve(main, weights, y0, t, method=method, path=path, many=many, field=driven, args=(push,))
    # implicit_adams iterates until the whole batch has converged: only to its tolerance the same as alone
    rtol = 1e-5 if method == "implicit_adams" else 1e-10
    for b in range(B):
        alone = {n: fh.materialize(w)[b : b + 1] for n, w in weights.items()}
        want = ode.solve(
            main, alone, y0[b : b + 1], t, method=method, path="loop", many=many, field=driven, args=(push[b : b + 1],)
        )
        torch.testing.assert_close(got[:, b : b + 1], want, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_batched_is_one_by_one_within_tolerance(method):
    main, y0, t = network(), states(many=False), times()
    weights = draw(main)
    got = ode.solve(main, weights, y0, t, method=method, rtol=1e-5, atol=1e-6)
    for b in range(B):
        alone = {n: w[b : b + 1] for n, w in weights.items()}
        want = ode.solve(main, alone, y0[b : b + 1], t, method=method, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[:, b : b + 1], want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gradient", ["direct", "deferred", "adjoint"])
@pytest.mark.parametrize("method", FIXED)
def test_per_sample_times_are_one_by_one(method, gradient):
    main, y0 = network(), states(many=False)
    t = torch.rand(5, B, generator=torch.Generator().manual_seed(3), dtype=torch.float64).sort(0).values
    push, weights = torch.linspace(-1, 1, B, dtype=torch.float64), draw(main)
    got = ode.solve(main, weights, y0, t, method=method, gradient=gradient, field=driven, args=(push,))
    for b in range(B):
        alone = {n: w[b : b + 1] for n, w in weights.items()}
        want = ode.solve(main, alone, y0[b : b + 1], t[:, b], method=method, field=driven, args=(push[b : b + 1],))
        torch.testing.assert_close(got[:, b : b + 1], want, rtol=1e-10, atol=1e-12)


def test_the_last_stage_of_a_step_reads_its_own_interval():
    """dy/dt = 1 integrates to t itself however the intervals' lengths jump; a stage in the next interval would not."""
    main = nn.Linear(1, 1).double()
    weights = {"weight": torch.zeros(2, 1, 1).double(), "bias": torch.ones(2, 1).double()}
    t = torch.tensor([[0.0, 0.0], [1.0, 0.01], [1.0, 5.0], [1.5, 5.1]]).double()
    y = ode.solve(main, weights, torch.zeros(2, 1).double(), t, method="rk4", many=False)
    torch.testing.assert_close(y.squeeze(-1), t)


def test_a_step_size_counts_in_intervals_on_per_sample_times():
    main, y0, weights = network(), states(many=False), draw(network())
    t = times(3).unsqueeze(1) * torch.linspace(0.5, 2, B, dtype=torch.float64)
    got = ode.solve(main, weights, y0, t, options={"step_size": 0.25})
    want = ode.solve(main, weights, y0, times(9).unsqueeze(1) * t[-1])[::4]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_times_may_fall():
    main, y0, weights = network(), states(many=False), draw(network())
    end = ode.solve(main, weights, y0, times(), method="dopri5")[-1]
    back = ode.solve(main, weights, end, times().flip(0), method="dopri5")[-1]
    torch.testing.assert_close(back, y0, rtol=1e-5, atol=1e-6)


def test_the_union_of_irregular_times():
    main, y0, weights = network(), states(many=False), draw(network())
    seen = torch.rand(3, B, generator=torch.Generator().manual_seed(5), dtype=torch.float64).sort(0).values
    seen[0] = 0.0
    t, index = ode.union(seen)
    assert torch.equal(t[index], seen)
    assert (t[1:] > t[:-1]).all()
    got = ode.solve(main, weights, y0, t, method="dopri5")[index, torch.arange(B)]
    for b in range(B):
        alone = {n: w[b : b + 1] for n, w in weights.items()}
        want = ode.solve(main, alone, y0[b : b + 1], seen[:, b], method="dopri5")
        torch.testing.assert_close(got[:, b : b + 1], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(fh.HyperError, match="union"):
        ode.union(seen[0])


def test_weights_are_prepared_once(monkeypatch):
    calls = []
    original = fh.Generated.materialize
    monkeypatch.setattr(fh.Generated, "materialize", lambda self: calls.append(1) or original(self))
    main = network()
    ode.solve(main, draw(main, structured=True), states(many=False), times(20), path="bmm")
    assert len(calls) == 4  # one for each parameter


def test_auto_knows_the_number_of_evaluations():
    main, seen = network(), []

    def field(net, t, y):
        seen.append(net.choices[0].why)
        return net(y)

    weights = draw(main, structured=True)
    for method, t, options, want in [
        ("rk4", times(11), None, "E=40"),
        ("euler", times(11), {"step_size": 0.05}, "E=20"),
        ("rk4", times(11).unsqueeze(1).expand(11, B), {"step_size": 0.5}, "E=80"),
        ("dopri5", times(11), None, "E=1000"),
    ]:
        ode.solve(main, weights, states(many=False), t, method=method, field=field, options=options)
        assert want in seen[-1]


def test_a_pure_function_is_a_main_network():
    weights = {"w": torch.randn(B, D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    got = ode.solve(lambda p, y: torch.tanh(y @ p["w"].T), weights, states(False), times())
    want = ode.solve(
        nn.Sequential(nn.Linear(D, D, bias=False), nn.Tanh()).double(),
        {"0.weight": weights["w"]},
        states(False),
        times(),
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("gradient", ["direct", "deferred", "adjoint"])
def test_empty_batches(gradient):
    main = network()
    weights = {n: w[:0].requires_grad_() for n, w in draw(main).items()}
    weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
    ys = ode.solve(main, weights, torch.zeros(0, D).double(), times(), method="dopri5", gradient=gradient)
    assert ys.shape == (4, 0, D)
    assert all(
        g.shape == w.shape
        for g, w in zip(torch.autograd.grad(ys.sum(), list(weights.values())), weights.values(), strict=True)
    )
    many = ode.solve(main, draw(main), torch.zeros(B, 0, D).double(), times(), many=True, gradient=gradient)
    assert many.shape == (4, B, 0, D)


BAD = [
    ({"gradient": "backprop"}, "gradient=.*direct, deferred, adjoint"),
    ({"method": "rk45"}, "method=.*dopri5"),
    ({"event_fn": print}, "event_fn"),
    ({"adjoint_rtol": 1e-3}, "adjoint_rtol"),
    ({"y0": torch.zeros(B + 1, D).double()}, "y0="),
    ({"y0": torch.zeros(B).double(), "many": True}, "y0="),
    ({"y0": (torch.zeros(B, D),)}, "y0=.*concatenate"),
    ({"y0": torch.zeros(B, D).long()}, "y0="),
    ({"t": torch.zeros(3, B + 1)}, "t="),
    ({"t": torch.arange(3)}, "t="),
    ({"t": torch.zeros(0)}, "t="),
    ({"t": torch.tensor([0.0, 1.0, 1.0])}, "t=.*rise, or fall"),
    ({"t": torch.tensor([0.0, 1.0, 0.5])}, "t=.*rise, or fall"),
    ({"args": torch.zeros(B)}, "args=.*tuple"),
    ({"t": torch.rand(3, B), "method": "dopri5"}, "union of times"),
    ({"t": torch.rand(3, B), "method": "explicit_adams"}, "history"),
    ({"field": lambda net, t, y: net(y)[:, :1]}, "field="),
    ({"path": "warp"}, "path="),
]


@pytest.mark.parametrize(("change", "match"), BAD)
def test_errors_at_the_door(change, match):
    main = network()
    given = {"y0": states(False), "t": times(), **change}
    with pytest.raises(fh.HyperError, match=match):
        ode.solve(main, draw(main), given.pop("y0"), given.pop("t"), **given)


def test_importing_the_library_does_not_load_torchdiffeq():
    code = "import sys, functional_hyper.ode; assert 'torchdiffeq' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torchdiffeq_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"functional_hyper\[ode\]"):
        ode.solve(network(), draw(network()), states(False), times())
