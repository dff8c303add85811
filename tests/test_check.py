"""Every check passes healthy hypernetworks of all kinds, and finds what was broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import WRAPPERS, Affine, conds, custom, mlp, random_phi
from torch import Tensor, nn

import functional_hyper as fh

B, C = 24, 4
MAIN = mlp(6, 10, 8)
SPEC = fh.param_spec(MAIN)
MAIN_WEIGHTS = {s.name: s.draw.sample(s.shape, torch.Generator().manual_seed(1), torch.float64) for s in SPEC.slots}
X = torch.randn(B, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

Phi = dict[str, Tensor]

HYPERS: dict[str, Callable[[], fh.Hypernet]] = {  # trunks wide enough that no chunk's features are dead by chance
    "full": lambda: fh.full(SPEC, C),
    "full, deep": lambda: fh.full(SPEC, C, (20, 20), activation="tanh", layer_norm=True),
    "chunked by size": lambda: fh.chunked(SPEC, C, chunk_size=16),
    "chunked by layer": lambda: fh.chunked(SPEC, C, by="layer"),
    "low rank": lambda: fh.low_rank(SPEC, C),
    "low rank, frozen base": lambda: fh.low_rank(SPEC, C, base=MAIN_WEIGHTS),
    "scaled": lambda: fh.scaled(SPEC, C, scale="both"),
    "custom": lambda: custom(SPEC, C),
}
CASES = [(kind, "plain") for kind in HYPERS] + [
    ("full", "base"),
    ("chunked by size", "base"),
    ("custom", "base"),
    ("full", "embedding"),
    ("low rank", "embedding"),
    ("full", "encoder"),
    ("scaled", "encoder"),
]


def make(kind: str, wrapper: str) -> fh.Hypernet:
    return WRAPPERS[wrapper](HYPERS[kind](), C)


def every(f: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize(("kind", "wrapper"), CASES)(f)


def wide(**how: Any) -> tuple[fh.Hypernet, Phi, Tensor]:
    """A healthy full hypernetwork with a trunk, its phi and its conds."""
    hyper = fh.full(SPEC, C, (32,), **how)
    return hyper, hyper.init(), conds("plain", B, C, torch.float64)


# ------------------------------------------------------------------------------------------------ healthy ones


@every
def test_healthy_gradients_flow_at_the_start(kind: str, wrapper: str):
    hyper = make(kind, wrapper)
    table = fh.check.gradient_flow(fh.compose(hyper, MAIN), hyper.init(), conds(wrapper, B, C, torch.float64), X)
    assert table.ok, str(table)
    assert [r[0] for r in table.rows] == [f"phi[{k}]" for k in hyper.init()] + [f"theta[{n}]" for n in SPEC.names]


@every
def test_healthy_weights_differ(kind: str, wrapper: str):
    hyper = make(kind, wrapper)
    phi, cond = random_phi(hyper), conds(wrapper, B, C, torch.float64)
    assert fh.check.diversity(hyper, phi, cond).ok
    table = fh.check.dead_heads(hyper, phi, cond)
    assert table.ok, str(table)
    assert any(row[0].startswith("features") for row in table.rows) == kind.startswith(("full", "chunked by layer"))


@every
def test_sensitivity_is_the_norm_of_the_jacobian(kind: str, wrapper: str):
    hyper = make(kind, wrapper)
    phi, cond = random_phi(hyper), conds(wrapper, 3, C, torch.float64)
    if not cond.is_floating_point():
        with pytest.raises(fh.HyperError, match=r"check.sensitivity\(cond=.*floating.*int64"):
            fh.check.sensitivity(hyper, phi, cond)
        return
    table = fh.check.sensitivity(hyper, phi, cond)
    for name in SPEC.names:
        one = lambda c: fh.unravel(SPEC, hyper.apply(phi, c[None]))[name][0]  # noqa: B023
        norms = torch.stack([torch.autograd.functional.jacobian(one, c).norm() for c in cond])
        want = [norms.mean().item(), norms.min().item(), norms.max().item(), int((norms == 0).sum())]
        assert [table[name][c] for c in ("mean", "least", "largest", "zeros")] == pytest.approx(want, rel=1e-9)


@every
def test_a_step_along_the_gradient_changes_everything(kind: str, wrapper: str):
    hyper = make(kind, wrapper)
    cond = conds(wrapper, B, C, torch.float64)
    before = {k: v.requires_grad_() for k, v in random_phi(hyper).items()}
    loss = fh.compose(hyper, MAIN)(before, cond, X).square().mean()
    slopes = torch.autograd.grad(loss, list(before.values()))
    rate = 1e-2 / max(g.norm().item() for g in slopes)
    after = {k: v.detach() - rate * g for (k, v), g in zip(before.items(), slopes, strict=True)}
    table = fh.check.update(hyper, before, after, cond)
    assert table.ok, str(table)
    name = next(iter(before))
    assert table[f"phi[{name}]"]["change"] == pytest.approx(rate * slopes[0].norm().item())


@pytest.mark.parametrize(("kind", "wrapper"), [c for c in CASES if c[0] != "custom" and c[1] != "encoder"])
@pytest.mark.parametrize("seed", range(3))
def test_healthy_weights_start_at_the_ordinary_scale(kind: str, wrapper: str, seed: int):
    hyper = make(kind, wrapper)
    cond = conds(wrapper, B, C, torch.float64)
    table = fh.check.weight_scale(hyper, hyper.init(torch.Generator().manual_seed(seed)), cond)
    assert table.ok, str(table)
    assert list(fh.check.weight_scale(hyper, hyper.init(), cond, high=0.0).suspicious) == list(SPEC.names)


def test_conds_that_an_encoder_shrinks_make_small_weights():
    hyper = make("full", "encoder")
    phi, cond = hyper.init(), conds("encoder", B, C, torch.float64)
    small = phi | {k: 0.1 * v for k, v in phi.items() if k.startswith("encoder")}
    assert fh.check.weight_scale(hyper, small, cond).suspicious == dict.fromkeys(SPEC.names, "too small")


def test_somebodys_own_weights_are_too_large():
    hyper = make("custom", "plain")
    cond = conds("plain", B, C, torch.float64)
    assert fh.check.weight_scale(hyper, hyper.init(), cond).suspicious == dict.fromkeys(SPEC.names, "too large")


# ------------------------------------------------------------------------------------------------ broken ones


@dataclass(frozen=True)
class Cut:
    """Somebody's own hypernetwork whose trunk, or some of whose weights, are cut off."""

    how: str

    def init(self, generator: Any = None, dtype: Any = None, device: Any = None) -> Phi:
        g = torch.Generator().manual_seed(0)
        shapes = {"trunk": (C, 5), "head": (5, SPEC.size)}
        return {k: torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for k, s in shapes.items()}

    def apply(self, phi: Phi, cond: Tensor) -> Tensor:
        features = (cond @ phi["trunk"]).tanh()
        if self.how == "detach":
            features = features.detach()
        if self.how == "no_grad":
            with torch.no_grad():
                features = (cond @ phi["trunk"]).tanh()
        theta = features @ phi["head"]
        if self.how == "part":
            theta = torch.cat([theta[..., :60].detach(), theta[..., 60:]], -1)
        return theta.detach() if self.how == "all" else theta


def flow(hyper: fh.Hypernet, phi: Phi, cond: Any, **how: Any) -> fh.check.Table:
    return fh.check.gradient_flow(fh.compose(hyper, MAIN), phi, cond, X, **how)


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("nothing", []),
        ("detach", ["phi[trunk]"]),
        ("no_grad", ["phi[trunk]"]),
        ("part", ["theta[0.weight]"]),  # 60 numbers, all of the first weight
        ("all", ["phi[trunk]", "phi[head]", *(f"theta[{n}]" for n in SPEC.names)]),
    ],
)
def test_gradient_flow_finds_where_the_graph_breaks(how: str, found: list[str]):
    cut = Cut(how)
    phi = cut.init()
    table = flow(fh.Hypernet(SPEC, cut.init, cut.apply), phi, conds("plain", B, C, torch.float64))
    assert list(table.suspicious) == found, str(table)
    assert all(v.grad is None for v in phi.values())


def test_gradient_flow_tells_a_loss_that_looks_away_from_a_hypernetwork_that_is_cut():
    hyper, phi, cond = wide()
    table = flow(hyper, phi, cond, loss=lambda y: (0 * y).sum())
    reasons = {k: v for k, v in table.suspicious.items() if k.startswith("phi")}
    assert set(reasons.values()) == {"the weights depend on it, the loss does not"}
    assert len(reasons) == len(phi)
    assert not [k for k in table.suspicious if k.startswith("theta")]


def test_gradient_flow_gives_the_gradients_norm_and_changes_nothing():
    hyper, phi, cond = wide()
    before = {k: v.detach().clone() for k, v in phi.items()}
    with torch.no_grad():
        table = flow(hyper, phi, cond)
    assert all(v.grad is None and v.requires_grad and torch.equal(v, before[k]) for k, v in phi.items())
    loss = fh.compose(hyper, MAIN)(phi, cond, X).square().mean()
    for name, slope in zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True):
        assert table[f"phi[{name}]"]["norm"] == pytest.approx(slope.norm().item())


def test_gradient_flow_tells_a_zero_start_from_dead_units():
    hyper, phi, cond = wide()
    based = fh.with_base(hyper)
    start = flow(based, based.init(), cond)
    assert start.ok
    assert start["phi[trunk.0.weight]"]["norm"] == 0
    assert "zero in phi" in start["phi[trunk.0.weight]"]["note"]
    dead = flow(hyper, phi | {"trunk.0.bias": phi["trunk.0.bias"] - 100}, cond)
    assert list(dead.suspicious) == ["phi[trunk.0.weight]", "phi[trunk.0.bias]"]
    nan = flow(hyper, phi | {"trunk.0.bias": phi["trunk.0.bias"] * float("nan")}, cond)
    assert nan.suspicious["phi[trunk.0.weight]"] == "not finite"


@pytest.mark.parametrize(("factor", "reason"), [(10, "too large"), (0.1, "too small"), (0, "too small")])
def test_weight_scale_finds_an_initialisation_of_another_size(factor: float, reason: str):
    hyper, phi, cond = wide()
    heads = {k: factor * v for k, v in phi.items() if k.startswith("head")}
    good, bad = (fh.check.weight_scale(hyper, p, cond) for p in (phi, phi | heads))
    assert good.ok, str(good)
    assert bad.suspicious == dict.fromkeys(SPEC.names, reason)
    assert bad["0.weight"]["ratio"] == pytest.approx(factor * good["0.weight"]["ratio"])
    assert good["0.weight"]["ordinary"] == pytest.approx(1 / 6**0.5 / 3**0.5)


def test_weight_scale_measures_a_norms_gain_around_one():
    spec = fh.param_spec(nn.LayerNorm(5))
    hyper = fh.full(spec, C)
    phi, cond = hyper.init(), torch.randn(B, C)
    good = fh.check.weight_scale(hyper, phi, cond)
    assert good.ok
    assert good["weight"] == {"slot": "weight", "std": pytest.approx(0, abs=1e-6), "ordinary": 0.0, "ratio": None}
    assert list(fh.check.weight_scale(hyper, phi | {"head.weight": 10 * phi["head.weight"]}, cond).suspicious) == [
        "weight"
    ]


def ignoring() -> tuple[fh.Hypernet, Phi, Tensor]:
    """Reads its cond and multiplies it by zero."""
    parts = Affine(SPEC, C)
    apply = lambda phi, cond: parts.apply(phi, 0 * cond) + phi["map"][0]
    return fh.Hypernet(SPEC, parts.init, apply), parts.init(), conds("plain", B, C, torch.float64)


def zero_head() -> tuple[fh.Hypernet, Phi, Tensor]:
    hyper, phi, cond = wide()
    heads = {k: torch.cat([0 * v[:-1], torch.ones_like(v[-1:])]) for k, v in phi.items() if k.startswith("head")}
    return hyper, phi | heads, cond


def dead_units() -> tuple[fh.Hypernet, Phi, Tensor]:
    hyper, phi, cond = wide()
    return hyper, phi | {"trunk.0.bias": phi["trunk.0.bias"] - 100}, cond


@pytest.mark.parametrize("broken", [ignoring, zero_head, dead_units])
def test_weights_that_ignore_the_cond_are_found(broken: Callable[[], tuple[fh.Hypernet, Phi, Tensor]]):
    hyper, phi, cond = broken()
    names = list(SPEC.names)
    assert list(fh.check.diversity(hyper, phi, cond).suspicious) == names
    table = fh.check.sensitivity(hyper, phi, cond)
    assert table.suspicious == dict.fromkeys(names, "does not depend on the cond")
    dead = fh.check.dead_heads(hyper, phi, cond)
    assert list(dead.suspicious) == names + ["features[0.weight]"] * (broken is dead_units)
    assert all(dead[slot.name]["dead"] == slot.size for slot in SPEC.slots)
    good, start, _ = wide()
    assert fh.check.sensitivity(good, start, cond).ok
    assert fh.check.diversity(good, start, cond).ok


def test_one_slot_that_all_samples_share_is_found():
    hyper, phi, cond = wide()
    head = phi["head.2.bias"].detach().clone()
    head[:-1] = 0
    phi = phi | {"head.2.bias": head}
    for table in (fh.check.diversity(hyper, phi, cond), fh.check.sensitivity(hyper, phi, cond)):
        assert list(table.suspicious) == ["2.bias"]
    assert fh.check.diversity(hyper, phi, cond)["0.weight"]["ratio"] > 0.5


def test_dead_heads_counts_weights_and_features():
    hyper, phi, cond = wide()
    live = fh.check.dead_heads(hyper, phi, cond)
    assert live.ok
    assert live["features[0.weight]"]["of"] == 32
    bias, head = (phi[k].detach().clone() for k in ("trunk.0.bias", "head.0.bias"))
    bias[:20] = -100
    head[:-1, :3] = 0
    table = fh.check.dead_heads(hyper, phi | {"trunk.0.bias": bias, "head.0.bias": head}, cond)
    assert list(table.suspicious) == ["0.bias", "features[0.weight]"]
    assert table["0.bias"] == {"name": "0.bias", "dead": 3, "of": 10, "share": 0.3}
    assert 20 <= table["features[0.weight]"]["dead"] < 28
    assert fh.check.dead_heads(hyper, phi | {"trunk.0.bias": bias}, cond, most=0.9).ok


def test_probes_estimate_the_norm():
    hyper, phi, cond = wide()
    exact, rough = (fh.check.sensitivity(hyper, phi, cond, probes=p) for p in (None, 400))
    for name in SPEC.names:
        assert rough[name]["mean"] == pytest.approx(exact[name]["mean"], rel=0.1)
        assert rough[name]["mean"] != exact[name]["mean"]


def test_sensitivity_reads_a_tuple_of_conds():
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([2 * a, b[:, None]], -1)

    inner, phi, cond = wide()
    hyper = fh.with_encoder(inner, Two())
    two = fh.check.sensitivity(hyper, phi, (cond[:, :3] / 2, cond[:, 3]))
    one = fh.check.sensitivity(inner, phi, cond)
    assert all(one[n]["mean"] < two[n]["mean"] < 2 * one[n]["mean"] for n in SPEC.names)


def test_update_finds_what_stood_still_and_what_ran_away():
    hyper, before, cond = wide()
    still = before | {"head.0.weight": before["head.0.weight"] * 1.01}
    table = fh.check.update(hyper, before, still, cond)
    assert table["phi[head.0.weight]"]["relative"] == pytest.approx(0.01)
    assert table["theta[0.weight]"]["relative"] == pytest.approx(0.01)
    moved = {"phi[head.0.weight]", "theta[0.weight]"}
    assert set(table.suspicious) == {row[0] for row in table.rows} - moved
    far = {k: 2 * v + 0.1 for k, v in before.items()}
    assert fh.check.update(hyper, before, far, cond).suspicious == {f"theta[{n}]": "a large step" for n in SPEC.names}
    lost = before | {"head.0.weight": before["head.0.weight"] * float("nan")}
    assert fh.check.update(hyper, before, lost, cond).suspicious["theta[0.weight]"] == "not finite"


# ------------------------------------------------------------------------------------------------ tables and errors


def test_a_table_prints_and_is_read():
    table = fh.check.Table("what", ("name", "n"), (("a", 0.12345), ("bb", None)), ("", "odd"))
    assert str(table) == "what: 1 of 2 suspicious\n  name  n\n  a     0.123\n! bb    -      odd"
    assert table["bb"] == {"name": "bb", "n": None}
    assert table.suspicious == {"bb": "odd"}
    assert not table.ok
    with pytest.raises(KeyError):
        table["c"]


def test_errors_name_the_call_and_the_mend():
    hyper, phi, cond = wide()
    one = cond[0]
    for check in (fh.check.weight_scale, fh.check.diversity, fh.check.dead_heads, fh.check.sensitivity):
        with pytest.raises(fh.HyperError, match=rf"check\.{check.__name__}\(cond=.*batch dim|check.sensitivity"):
            check(hyper, phi, cond[None])
    for check in (fh.check.diversity, fh.check.dead_heads):
        with pytest.raises(fh.HyperError, match="at least two samples"):
            check(hyper, phi, one[None])
    with pytest.raises(fh.HyperError, match=r"check.update\(after=.*head.0.bias"):
        fh.check.update(hyper, phi, {k: v for k, v in phi.items() if k != "head.0.bias"}, cond)
    with pytest.raises(fh.HyperError, match="scalar"):
        flow(hyper, phi, cond, loss=lambda y: y)
    with pytest.raises(fh.HyperError, match="at least one direction"):
        fh.check.sensitivity(hyper, phi, cond, probes=0)
