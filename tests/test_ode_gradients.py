"""Gradients of `fh.ode.solve`: every mode against direct, the loop and finite differences; what must be refused."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from ode_cases import ADAPTIVE, FIXED, PATHS, B, D, draw, driven, network, states, times
from torch import nn
from torch.profiler import ProfilerActivity, profile

import functional_hyper as fh
from functional_hyper import ode


class Everything(nn.Module):
    """Weights used by linear calls, twice, and by other operations; one parameter stays the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, 4), nn.Linear(4, 4, bias=False)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, D)
        self.conv, self.slope, self.own = (
            nn.Conv1d(1, 1, 3, padding=1),
            nn.Parameter(torch.ones(())),
            nn.Parameter(torch.ones(D)),
        )

    def forward(self, y):
        h = torch.tanh(self.a(y) * self.slope)
        h = self.norm(self.b(h) + self.b(h.sin())) + h @ self.b.weight.T
        h = h + self.conv(h.flatten(0, -2).unsqueeze(1)).squeeze(1).view_as(h) + self.a.bias
        return self.own * self.out(h)


def setup(main, structured=False, include=None, many=False):
    """phi, and a function phi -> weights; small enough for finite differences."""
    hyper = fh.full(fh.param_spec(main, include=include), in_features=2, hidden=(3,))
    phi = hyper.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    cond = torch.randn(B, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    make = hyper.weights if structured else lambda p, c: fh.unravel(hyper.spec, hyper.apply(p, c))
    return phi, cond, make


def gradients(
    main, gradient, structured=False, include=None, many=False, t=None, path="auto", method="rk4", alone=False, **more
):
    """Of phi, cond, y0, t and args; with `alone` through a solve of its own for every sample."""
    phi, cond, make = setup(main, structured, include)
    y0, push = states(many).requires_grad_(), torch.linspace(-1, 1, B, dtype=torch.float64).requires_grad_()
    t = (times() if t is None else t).clone().requires_grad_()
    options = {"gradient": gradient, "many": many, "path": path, "method": method, "field": driven, **more}
    weights = make(phi, cond)
    if alone:
        one = lambda b: {n: w[b : b + 1] for n, w in weights.items()}
        solves = [ode.solve(main, one(b), y0[b : b + 1], t, args=(push[b : b + 1],), **options) for b in range(B)]
        ys = torch.cat(solves, 1)
    else:
        ys = ode.solve(main, weights, y0, t, args=(push,), **options)
    loss = (ys[1:] * torch.arange(1, ys[1:].numel() + 1).view_as(ys[1:]).cos()).sum()
    own = [p for n, p in main.named_parameters() if include and n not in fh.param_spec(main, include=include).names]
    found = torch.autograd.grad(loss, [*phi.values(), cond, y0, t, push, *own], allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def assert_same(got, want, rtol=1e-10, atol=1e-11):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=rtol, atol=atol)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", [*FIXED, "explicit_adams", "implicit_adams"])
def test_direct_and_deferred_agree_with_solves_one_by_one(method, path, many):
    main, structured = network(), path in ("contracted", "auto")
    # implicit_adams iterates until the whole batch has converged: alone it is the same only to its tolerance
    want = gradients(main, "direct", many=many, path="loop", method=method, alone=method != "implicit_adams")
    for gradient in ("direct", "deferred"):
        assert_same(gradients(main, gradient, structured, many=many, path=path, method=method), want)


@pytest.mark.parametrize("method", [*ADAPTIVE])
def test_deferred_is_direct_with_adaptive_methods(method):
    tight: Any = {"rtol": 1e-4, "atol": 1e-5}  # unused last stages and rejected steps included
    assert_same(
        gradients(network(), "deferred", method=method, **tight), gradients(network(), "direct", method=method, **tight)
    )


@pytest.mark.parametrize("gradient", ["direct", "deferred", "adjoint"])
@pytest.mark.parametrize("path", ["bmm", "grouped_conv", "vmap", "auto"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_adaptive_gradients_agree_with_solves_one_by_one(method, path, gradient):
    """Samples share a step: the same only within the tolerance."""
    tight: Any = {"rtol": 1e-8, "atol": 1e-9, "method": method}
    want = gradients(network(), "direct", path="loop", alone=True, **tight)
    got = gradients(network(), gradient, path=path, **tight)
    # the slope in t is that of torchdiffeq's interpolation within a step, which converges more slowly than its values
    assert_same(got[-2:-1], want[-2:-1], rtol=3e-2, atol=1e-3)
    assert_same(got[:-2] + got[-1:], want[:-2] + want[-1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("path", ["bmm", "loop"])
def test_the_adjoint_agrees_with_solves_one_by_one(path, method):
    """The adjoint of a batch is the adjoint of its samples, to rounding: each has its own state."""
    want = gradients(network(), "adjoint", path=path, method=method, alone=True)
    assert_same(gradients(network(), "adjoint", path=path, method=method), want)


@pytest.mark.parametrize("gradient", ["direct", "deferred"])
@pytest.mark.parametrize("many", [False, True])
def test_every_use_of_a_weight_counts(gradient, many):
    torch.manual_seed(0)
    main = Everything().double()
    include = [n for n, _ in main.named_parameters() if n != "own"]
    want = gradients(main, "direct", True, include, many, path="loop")
    for path in PATHS:
        assert_same(gradients(main, gradient, True, include, many, path=path), want)
    assert want[-1].abs().sum() > 0  # the module's own parameter trains, too


@pytest.mark.parametrize("gradient", ["direct", "deferred"])
@pytest.mark.parametrize("method", FIXED)
def test_per_sample_times_in_gradient(method, gradient):
    """Against solving each sample alone; t's gradient, too."""
    main, push = network(), torch.linspace(-1, 1, B, dtype=torch.float64)
    t = (
        torch.rand(4, B, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        .sort(0)
        .values.requires_grad_()
    )
    phi, cond, make = setup(main)
    loss = lambda ys: (ys * ys.sin()).sum()
    got = ode.solve(
        main, make(phi, cond), states(False), t, method=method, gradient=gradient, field=driven, args=(push,)
    )
    weights = make(phi, cond)
    alone = [
        ode.solve(
            main,
            {n: w[b : b + 1] for n, w in weights.items()},
            states(False)[b : b + 1],
            t[:, b],
            method=method,
            field=driven,
            args=(push[b : b + 1],),
        )
        for b in range(B)
    ]
    inputs = [*phi.values(), cond, t]
    assert_same(
        torch.autograd.grad(loss(got), inputs), torch.autograd.grad(torch.stack(list(map(loss, alone))).sum(), inputs)
    )


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", ["direct", "deferred"])
def test_finite_differences(gradient, per_sample):
    main = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, D)).double()
    phi, cond, make = setup(main)
    names, t = list(phi), times(3)
    if per_sample:
        t = t.unsqueeze(1) * torch.linspace(0.5, 1.5, B, dtype=torch.float64)

    def f(cond, y0, t, push, *values):
        weights = make(dict(zip(names, values, strict=True)), cond)
        return ode.solve(main, weights, y0, t, gradient=gradient, field=driven, args=(push,))

    push = torch.linspace(-1, 1, B, dtype=torch.float64).requires_grad_()
    inputs = (cond, states(False).requires_grad_(), t.requires_grad_(), push, *phi.values())
    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)


def test_direct_is_differentiable_twice():
    main = nn.Linear(D, D).double()
    w = torch.randn(B, D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    f = lambda w: ode.solve(main, {"weight": w, "bias": w[:, 0]}, states(False), times(3))
    assert torch.autograd.gradgradcheck(f, (w,), fast_mode=True)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("structured", [False, True])
def test_adjoint_converges_to_direct(structured, many):
    """Only as the step goes to zero, with rk4's order; never to a wrong limit."""
    main = network()
    for path in ("bmm", "auto", "contracted", "loop") if structured else ("bmm", "grouped_conv", "vmap"):
        errors = []
        for step in (0.1, 0.05):
            options: Any = {"options": {"step_size": step}, "t": times(3), "path": path}
            pairs = [gradients(main, g, structured, many=many, **options) for g in ("direct", "adjoint")]
            keep = [i for i in range(len(pairs[0])) if pairs[0][i].shape != (3,)]  # t: see the next test
            errors.append(max(((pairs[0][i] - pairs[1][i]).abs().max() / pairs[0][i].abs().max()).item() for i in keep))
        assert errors[0] < 1e-4
        assert errors[1] < errors[0] / 8


def test_adjoint_of_tight_adaptive_solves():
    tight: Any = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-11}
    want = gradients(network(), "direct", **tight)
    assert_same(gradients(network(), "adjoint", **tight), want, rtol=1e-5, atol=1e-6)
    seminorm = gradients(network(), "adjoint", **tight, adjoint_options={"norm": "seminorm"})
    assert_same(seminorm, want, rtol=1e-5, atol=1e-6)


def test_adjoint_of_per_sample_times():
    t = torch.linspace(0, 1, 21, dtype=torch.float64).unsqueeze(1) * torch.linspace(0.5, 1.5, B, dtype=torch.float64)
    assert_same(gradients(network(), "adjoint", t=t), gradients(network(), "direct", t=t), rtol=1e-5, atol=1e-6)


def test_adjoint_counts_weights_that_depend_on_each_other_once():
    main = nn.Linear(D, D).double()
    w = torch.randn(B, D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    for gradient in ("deferred", "adjoint"):
        found = []
        for g in ("direct", gradient):
            bias = w.sum(1)  # made from the weight that is passed beside it
            ys = ode.solve(
                main,
                {"weight": w, "bias": bias},
                states(False) + bias,
                times(41),
                gradient=g,
                field=driven,
                args=(bias[:, 0],),
            )
            found.append(torch.autograd.grad(ys.square().sum(), w))
        assert_same(*found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gradient", ["deferred", "adjoint"])
def test_captured_tensors_are_refused(gradient):
    main, weights = network(), draw(network())
    leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
    for captured in (leaf, 2 * leaf, weights["0.weight"].sum()):
        with pytest.raises(fh.Refused, match="args="):
            ode.solve(
                main, weights, states(False), times(), gradient=gradient, field=lambda net, t, y, c=captured: c * net(y)
            )
    late = lambda net, t, y: net(y) * (leaf if t > 0.9 else 1.0)  # seen only where it is used
    with pytest.raises(fh.Refused, match="args="):
        ode.solve(main, weights, states(False), times(), gradient=gradient, field=late)[-1].sum().backward()
    fine = ode.solve(
        main,
        weights,
        states(False),
        times(),
        gradient=gradient,
        field=lambda net, t, y, a: a["c"] * net(y),
        args=({"c": leaf},),
    )
    assert torch.autograd.grad(fine.sum(), leaf)[0] != 0


@pytest.mark.parametrize("gradient", ["deferred", "adjoint"])
def test_parameters_that_modules_hold_get_gradients(gradient):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.damping = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, net, t, y, scale):
            return net(y) - self.damping * scale(y)

    field, scale, main, found = Field(), nn.Linear(D, D).double(), network(), []
    for g in ("direct", gradient):
        ys = ode.solve(main, draw(main), states(False), times(41), gradient=g, field=field, args=(scale,))
        found.append(torch.autograd.grad(ys.square().sum(), [field.damping, *scale.parameters()]))
    assert_same(*found, rtol=1e-5, atol=1e-7)


def test_in_place_activations_are_right():
    for activation in (nn.ReLU(inplace=True), nn.SiLU(), nn.Hardtanh(inplace=True)):
        main = nn.Sequential(nn.Linear(D, 5), activation, nn.Linear(5, D)).double()
        assert_same(gradients(main, "deferred"), gradients(main, "direct"))


def test_an_input_changed_after_its_linear_call_is_refused():
    class Spoiler(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, y):
            h = torch.tanh(self.a(y)) + 1
            out = self.b(h)
            h.mul_(2)
            return out + h

    main = Spoiler().double()
    with pytest.raises(fh.Refused, match="in-place"):
        gradients(main, "deferred")


@pytest.mark.parametrize("gradient", ["deferred", "adjoint"])
def test_second_derivatives_are_refused(gradient):
    main, y0 = network(), states(False).requires_grad_()
    ys = ode.solve(main, draw(main), y0, times(), gradient=gradient)
    with pytest.raises(fh.Refused, match=r"create_graph=True.*direct"):
        torch.autograd.grad(ys.sum(), y0, create_graph=True)


@pytest.mark.parametrize("gradient", ["deferred", "adjoint"])
def test_transforms_are_refused(gradient):
    main, weights = network(), draw(network())
    f = lambda y0: ode.solve(main, weights, y0, times(), gradient=gradient).sum()
    for transformed in (torch.func.grad(f), torch.func.jacrev(f), lambda y0: torch.func.vmap(f)(y0[None])):
        with pytest.raises(fh.Refused, match=r"torch\.func.*direct"):
            transformed(states(False))


def test_direct_works_inside_transforms():
    main, weights, y0 = network(), draw(network()), states(False)
    f = lambda y0: ode.solve(main, weights, y0, times(), method="rk4").sum()
    want = torch.autograd.grad(f(leaf := y0.clone().requires_grad_()), leaf)[0]
    torch.testing.assert_close(torch.func.grad(f)(y0), want)


def test_a_second_backward_needs_retain_graph_and_gives_the_same():
    main, y0 = network(), states(False).requires_grad_()
    weights = {n: w.detach().requires_grad_() for n, w in draw(main).items()}
    ys = ode.solve(main, weights, y0, times(), gradient="deferred")
    inputs = [y0, *weights.values()]
    first = torch.autograd.grad(ys.square().sum(), inputs, retain_graph=True)
    assert_same(torch.autograd.grad(ys.square().sum(), inputs), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(ys.square().sum(), inputs)


def test_a_partial_gradient():
    """Only y0, or only one weight, or nothing at all requires grad; the first layer may see only t."""
    main = network()
    plain = {n: w.detach() for n, w in draw(main).items()}
    assert not ode.solve(main, plain, states(False), times(), gradient="deferred").requires_grad
    with torch.no_grad():
        assert not ode.solve(main, draw(main), states(False), times(), gradient="deferred").requires_grad

    def clock(net, t, y):
        return net(t.expand_as(y))

    for field in (None, clock):
        for name in plain:
            found = []
            for gradient in ("direct", "deferred"):
                w = plain[name].clone().requires_grad_()
                ys = ode.solve(main, {**plain, name: w}, states(False), times(), gradient=gradient, field=field)
                found.append(torch.autograd.grad(ys.square().sum(), w))
            assert_same(*found)


def test_scipy_differentiates_by_the_adjoint_only():
    main, y0 = network(), states(False)
    for gradient in ("direct", "deferred"):
        with pytest.raises(fh.Refused, match="adjoint"):
            ode.solve(main, draw(main), y0, times(), method="scipy_solver", gradient=gradient)
    options: Any = {"method": "scipy_solver", "rtol": 1e-9, "atol": 1e-10}
    got = gradients(main, "adjoint", **options)
    assert_same(got, gradients(main, "direct", method="dopri5", rtol=1e-9, atol=1e-10), rtol=1e-4, atol=1e-5)


def test_nothing_of_the_callers_is_changed():
    main, weights, y0 = network(), draw(network()), states(False)
    before = copy.deepcopy(main.state_dict())
    held = {n: (w.clone(), w.requires_grad) for n, w in weights.items()}
    ode.solve(main, weights, y0, times(), gradient="deferred").sum().backward()
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in main.named_parameters())
    assert all(torch.equal(w, held[n][0]) and w.requires_grad == held[n][1] for n, w in weights.items())


def test_the_graph_is_freed_by_backward():
    """The activations of a solve that was differentiated must not live as long as its loss."""
    alive = []

    class Token:
        """Lives as long as the graph."""

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            ctx.token = Token()
            alive.append(weakref.ref(ctx.token))
            return y.clone()

        @staticmethod
        def backward(ctx, *grads):
            return grads

    main, y0 = network(), states(False).requires_grad_()
    field = lambda net, t, y: net(Identity.apply(y))
    loss = ode.solve(main, draw(main), y0, times(), gradient="deferred", field=field).sum()
    assert any(node() is not None for node in alive)
    loss.backward()
    gc.collect()
    assert not any(node() is not None for node in alive)
    assert loss.grad_fn is not None


def test_deferred_needs_no_more_memory_than_direct():
    main = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    weights = {n: torch.randn(64, *p.shape, requires_grad=True) for n, p in main.named_parameters()}
    y0, t = torch.randn(64, 2), torch.linspace(0, 0.1, 21)

    def peak(gradient):
        def step():
            ys = ode.solve(main, weights, y0, t, path="bmm", gradient=gradient)
            torch.autograd.grad(ys.square().sum(), list(weights.values()))

        step()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            step()
        return peak_of(prof)

    assert peak("deferred") <= peak("direct")


def peak_of(prof):
    """The most bytes that a profile's allocations and frees leave alive at once."""
    changes = sorted(
        (e.start_ns(), e.nbytes()) for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    alive = most = 0
    for _, change in changes:
        alive += change
        most = max(most, alive)
    assert most > 0
    return most


@pytest.mark.parametrize("everywhere", [False, True])
def test_compiled_steps_are_deferred(everywhere):
    """Value and gradient, every use of a weight, a field with arguments, per-sample times, many states."""
    main = Everything().double() if everywhere else network()
    include = [n for n, _ in main.named_parameters() if n != "own"]
    t = times().unsqueeze(1) * torch.linspace(0.5, 1.5, B, dtype=torch.float64) if everywhere else times()
    given: Any = {"structured": True, "include": include, "many": everywhere, "t": t, "method": "midpoint"}
    assert_same(gradients(main, "deferred", **given, compile="aot_eager"), gradients(main, "deferred", **given))


def test_a_step_is_compiled_once_and_what_cannot_be_is_refused():
    graphs, main = [], network()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    for seed in (0, 1):
        ode.solve(
            main, draw(main, seed), states(False, seed), times(), method="euler", gradient="deferred", compile=backend
        )
    assert len(graphs) == 1
    with pytest.raises(fh.HyperError, match="compile="):
        gradients(main, "direct", compile=True)


def test_as_many_networks_compile_as_are_needed():
    """Dynamo allows eight compilations of one function, unless it is told that they are of different ones."""
    for width in range(2, 12):
        main = nn.Sequential(nn.Linear(D, width), nn.Tanh(), nn.Linear(width, D)).double()
        given: Any = {"method": "euler", "gradient": "deferred"}
        solved = [
            ode.solve(main, draw(main, 0), states(False, 0), times(), **given, compile=c) for c in (False, "eager")
        ]
        torch.testing.assert_close(*solved)


def test_arguments_of_too_many_kinds_are_refused():
    """A number among `args` is compiled into the step; a tensor is not."""
    main, y0 = network(), states(False, 0)
    weights = draw(main, 0)

    def field(net, t, y, k):
        return k * net(y)

    def solved(k):
        given: Any = {"field": field, "method": "euler", "gradient": "deferred", "compile": "eager"}
        return ode.solve(main, weights, y0, times(), args=(k,), **given)

    tensors = [solved(torch.tensor(0.1 * i, dtype=torch.float64)) for i in range(10)]
    for i in range(1, 7):
        torch.testing.assert_close(solved(0.1 * i), tensors[i])
    with pytest.raises(fh.HyperError, match=r"compile=.*numbers as tensors"):
        [solved(0.1 * i) for i in range(8, 20)]
