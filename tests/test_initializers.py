"""Generated weights have the variance that their initialiser promises, and activations keep the scale that follows."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_hyper as fh
from functional_hyper import initializers

WIDTH = 64
Make = Callable[..., fh.Hypernet]


def based_chunks(spec: fh.ParamSpec, init: Any) -> fh.Hypernet:
    hyper = fh.chunked(spec, 32, (WIDTH,), chunk_size=1000, init=init)
    return hyper if init == "bias_hyperinit" else fh.with_base(hyper)  # which bias-hyperinit brings


MAKERS: dict[str, Make] = {
    "full": lambda spec, init: fh.full(spec, 32, (WIDTH,), init=init),
    "full tanh": lambda spec, init: fh.full(spec, 32, (48, WIDTH), activation="tanh", layer_norm=True, init=init),
    "chunked": lambda spec, init: fh.chunked(spec, 32, (WIDTH,), chunk_size=1000, init=init),
    "by layer": lambda spec, init: fh.chunked(spec, 32, (WIDTH,), by="layer", init=init),
    "with_base": lambda spec, init: fh.with_base(fh.full(spec, 32, (WIDTH,), init=init)),
    "chunked with_base": lambda spec, init: based_chunks(spec, init),
    "low_rank": lambda spec, init: fh.low_rank(spec, 32, (WIDTH,), init=init),
    "scaled": lambda spec, init: fh.scaled(spec, 32, (WIDTH,), scale="both", init=init),
}
C = 2.0  # hyperfan's c for ReLU


def promised(rule: str, slot: Any) -> float:
    """The variance of one generated weight, by the formulas of Chang et al. and torch's own defaults."""
    paired = 2 if slot.paired else 1
    if slot.kind not in ("linear", "conv") or rule in ("ordinary", "bias_hyperinit"):
        return slot.draw.std**2
    if rule == "hyperfan_in":
        return C / 2 if slot.is_bias else C / (paired * slot.fan_in * slot.receptive)
    if slot.is_bias:
        return max(0.0, C * (1 - slot.fan_in / slot.fan_out))
    return C / (slot.fan_out * slot.receptive)


def drawn(hyper: fh.Hypernet, seeds: int, conds: int = 16) -> dict[str, Tensor]:
    """Generated weights, ``(seeds, conds, *shape)``."""
    found: dict[str, list[Tensor]] = {}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        phi = hyper.init(generator)
        cond = torch.randn(conds, 32, generator=generator)
        for name, w in fh.unravel(hyper.spec, hyper.apply(phi, cond)).items():
            found.setdefault(name, []).append(w.detach())
    return {name: torch.stack(ws) for name, ws in found.items()}


LARGE = nn.Sequential(nn.Conv2d(8, 32, 3), nn.Linear(50, 90), nn.Linear(90, 80, bias=False), nn.Linear(4, 1500))
SMALL = nn.Sequential(nn.Conv2d(3, 40, 1), nn.Linear(5, 90), nn.Linear(9, 30, bias=False))


@pytest.mark.parametrize("rule", ["ordinary", "hyperfan_in", "hyperfan_out", "bias_hyperinit"])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("main", "least", "seeds"), [(LARGE, 1000, 40), (SMALL, 0, 400)], ids=["large", "small"])
def test_variance_is_as_promised(main: nn.Module, least: int, seeds: int, make: str, rule: str):
    hyper = MAKERS[make](fh.param_spec(main), rule)
    for name, w in drawn(hyper, seeds).items():  # the fewer numbers a slot has, the more draws a sharp estimate takes
        slot = next(s for s in hyper.spec.slots if s.name == name)
        want = promised(rule, slot)
        if want == 0:
            want = 0.01 if make in ("chunked", "by layer") else 0.0  # a fixed gain of 0.1 where the draw is a constant
        if slot.size > least:
            assert w.square().mean().item() == pytest.approx(want, rel=0.05, abs=1e-12), name


def test_norm_gains_are_generated_around_one():
    main = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GroupNorm(2, 8))
    for rule in initializers.INITIALIZERS:
        for make in ("full", "chunked", "by layer", "with_base", "low_rank", "scaled"):
            weights = drawn(MAKERS[make](fh.param_spec(main), rule), 30)
            for name in ("1.weight", "2.weight"):
                assert weights[name].mean().item() == pytest.approx(1.0, abs=0.02), (rule, make)
                assert weights[name].std().item() < 0.11
            assert weights["1.bias"].mean().abs() < 0.02


def scales(main: nn.Sequential, params: dict[str, Tensor] | None, x: Tensor) -> list[float]:
    """Root mean square after every layer of the main network; with params, of B networks."""
    found = []
    for i, layer in enumerate(main):
        if isinstance(layer, nn.Linear):
            if params is None:
                x = layer(x)
            else:
                x = torch.einsum("bni,boi->bno", x, params[f"{i}.weight"]) + params[f"{i}.bias"].unsqueeze(1)
        else:
            x = layer(x)
            found.append(x.square().mean().sqrt().item())
    return found


def deep() -> nn.Sequential:
    return nn.Sequential(*[m for _ in range(10) for m in (nn.Linear(64, 64), nn.ReLU())])


@pytest.mark.parametrize("rule", ["hyperfan_in", "measured"])
@pytest.mark.parametrize("make", MAKERS)
def test_ten_layers_keep_their_scale(make: str, rule: str):
    main = deep()
    generator = torch.Generator().manual_seed(0)
    gain = 1.0 if rule == "hyperfan_in" else 5.0  # conds of another scale are what measuring is for
    cond = gain * torch.randn(64, 32, generator=generator)
    init = initializers.Measured(cond) if rule == "measured" else rule
    hyper = MAKERS[make](fh.param_spec(main), init)
    ratios = torch.zeros(10)
    for seed in range(10):
        phi = hyper.init(torch.Generator().manual_seed(seed))
        params = fh.unravel(hyper.spec, hyper.apply(phi, cond).detach())
        x = torch.randn(64, 4, 64, generator=generator)
        ratios += torch.tensor(scales(main, params, x)).square() / x.square().mean() / 10
    assert ratios.sqrt().max() < 2
    assert ratios.sqrt().min() > 0.5


@pytest.mark.parametrize("rule", ["ordinary", "bias_hyperinit"])
@pytest.mark.parametrize("make", MAKERS)
def test_scale_is_the_main_networks_own(make: str, rule: str):
    main = deep()
    generator = torch.Generator().manual_seed(0)
    hyper = MAKERS[make](fh.param_spec(main), rule)
    ours, own = torch.zeros(10), torch.zeros(10)
    for seed in range(10):
        torch.manual_seed(seed)
        x = torch.randn(64, 4, 64, generator=generator)
        phi = hyper.init(torch.Generator().manual_seed(seed))
        params = fh.unravel(hyper.spec, hyper.apply(phi, torch.randn(64, 32, generator=generator)).detach())
        ours += torch.tensor(scales(main, params, x)).square() / 10
        own += torch.tensor(scales(deep(), None, x)).square() / 10
    ratio = (ours / own).sqrt()
    assert ratio.max() < 1.5
    assert ratio.min() > 1 / 1.5


def test_bias_hyperinit_moves_the_trunk_from_the_second_step():
    main = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    hyper = fh.full(fh.param_spec(main), 3, (8,), init="bias_hyperinit")
    model, phi = fh.compose(hyper, main), hyper.init()
    cond, x = torch.randn(6, 3), torch.randn(6, 5)
    trunk = [v for k, v in phi.items() if k.startswith("trunk")]
    optimizer = torch.optim.SGD(phi.values(), 0.1)
    first = hyper.apply(phi, cond)
    assert (first == first[:1]).all(), "every sample starts with the same weights"
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        model(phi, cond, x).square().sum().backward()
        moved.append(max(p.grad.abs().max().item() for p in trunk if p.grad is not None))
        optimizer.step()
    assert moved[0] == 0
    assert moved[1] > 0


def test_low_rank_and_scaled_start_at_their_base_and_move():
    main = nn.Linear(5, 4)
    base = torch.randn(24)
    for make in (fh.low_rank, fh.scaled):
        hyper = make(fh.param_spec(main), 3, base=base)
        phi = hyper.init()
        torch.testing.assert_close(hyper.apply(phi, torch.randn(7, 3)), base.expand(7, -1))
        assert not any(k.startswith("base") for k in phi)
        loss = hyper.apply(phi, torch.randn(7, 3)).square().sum()
        grads = torch.autograd.grad(loss, list(phi.values()), allow_unused=True)
        assert sum(g.abs().sum().item() for g in grads if g is not None) > 0


def test_measured_takes_any_rule():
    cond = 7 * torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    main = nn.Linear(50, 100)
    rule = initializers.Measured(cond, initializers.HyperfanOut(c=1.0))
    hyper = fh.full(fh.param_spec(main), 32, (WIDTH,), init=rule)
    variances = [
        hyper.apply(hyper.init(torch.Generator().manual_seed(s)), cond)[:, :5000].square().mean() for s in range(20)
    ]
    assert torch.stack(variances).mean().item() == pytest.approx(1 / 100, rel=0.05)


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu"])
def test_the_features_second_moment_is_reckoned_with(activation: str):
    hyper = fh.full(fh.param_spec(nn.Linear(50, 90)), 32, (128, WIDTH), activation=activation)
    want = hyper.spec.slots[0].draw.std ** 2
    assert drawn(hyper, 40)["weight"].square().mean().item() == pytest.approx(want, rel=0.05)


def test_mip_has_constant_norm():
    z = torch.rand(100, 6)
    encoded = initializers.MIP()(z)
    assert encoded.shape == (100, 12)
    torch.testing.assert_close(encoded.norm(dim=-1), torch.full((100,), math.sqrt(6)))
    main = nn.Linear(3, 2)
    hyper = fh.with_encoder(fh.full(fh.param_spec(main), 12), initializers.MIP())
    assert hyper.apply(hyper.init(), z).shape == (100, 8)


def test_init_is_deterministic_and_never_global():
    hyper = fh.full(fh.param_spec(nn.Linear(3, 2)), 4)
    state = torch.get_rng_state()
    one, two = hyper.init(), hyper.init()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[k], two[k]) for k in one)
    other = hyper.init(torch.Generator().manual_seed(1), dtype=torch.float64)
    assert not torch.equal(one["trunk.0.weight"], other["trunk.0.weight"].float())
    assert all(v.dtype == torch.float64 and v.is_leaf and v.requires_grad for v in other.values())
