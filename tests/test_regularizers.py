"""`output_regularizer`: its value, its gradient, and what it refuses, for hypernetworks of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import KINDS, WRAPPERS, conds, hypernet, mlp, random_phi
from test_errors import raises
from torch import Tensor

import functional_hyper as fh

MAIN = mlp(3, 2, 2)
SPEC = fh.param_spec(MAIN)
P, C = SPEC.size, 2

EVERY = [(kind, "plain") for kind in KINDS] + [("full", w) for w in WRAPPERS] + [("custom", "embedding of base")]


def kept(hyper: fh.Hypernet, phi: dict[str, Tensor], cond: Any) -> tuple[Any, Tensor]:
    with torch.no_grad():
        return cond, hyper.apply(phi, cond)


@pytest.mark.parametrize(("kind", "wrapper"), EVERY)
def test_the_value_and_gradient_of_every_hypernetwork(kind: str, wrapper: str) -> None:
    hyper = hypernet(kind, SPEC, C, wrapper)
    before, now = random_phi(hyper, seed=1), {k: v.requires_grad_() for k, v in random_phi(hyper, seed=2).items()}
    cond = conds(wrapper, 4, C, torch.float64)
    value = fh.output_regularizer(hyper, now, kept(hyper, before, cond))

    total = torch.zeros((), dtype=torch.float64)
    for b in range(4):  # the formula, a cond and a weight at a time
        new, old = hyper.apply(now, cond[b : b + 1])[0], hyper.apply(before, cond[b : b + 1])[0]
        assert new.shape == (P,)
        total = total + sum((new[p] - old[p]) ** 2 for p in range(P)) / 4
    assert value.shape == ()
    assert value.item() > 1e-3
    torch.testing.assert_close(value, total)

    ours, theirs = (torch.autograd.grad(v, list(now.values()), allow_unused=True) for v in (value, total))
    for name, one, other in zip(now, ours, theirs, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other)
    assert any(g is not None and g.abs().max() > 1e-3 for g in ours)


@pytest.mark.parametrize(("kind", "wrapper"), EVERY)
def test_it_is_zero_until_something_changes(kind: str, wrapper: str) -> None:
    hyper = hypernet(kind, SPEC, C, wrapper)
    phi, cond = random_phi(hyper), conds(wrapper, 4, C, torch.float64)
    targets = kept(hyper, phi, cond)
    assert fh.output_regularizer(hyper, phi, targets) == 0
    name = next(name for name in phi if name.startswith(("head.", "map")))
    assert fh.output_regularizer(hyper, phi | {name: phi[name] + 0.1}, targets) > 1e-6


def test_the_targets_get_no_gradient() -> None:
    hyper = hypernet("full", SPEC, C)
    phi = hyper.init()
    cond, thetas = conds("plain", 4, C, torch.float64), torch.zeros(4, P, dtype=torch.float64, requires_grad=True)
    fh.output_regularizer(hyper, phi, (cond, thetas)).backward()
    assert thetas.grad is None
    assert all(v.grad is not None for v in phi.values())
    # nor does phi get any through thetas that were kept with their graph
    own = fh.output_regularizer(hyper, phi, (cond, 0.5 * hyper.apply(phi, cond)))
    constant = fh.output_regularizer(hyper, phi, (cond, 0.5 * hyper.apply(phi, cond).detach()))
    for one, other in zip(*(torch.autograd.grad(v, list(phi.values())) for v in (own, constant)), strict=True):
        assert torch.equal(one, other)


def test_only_the_embeddings_of_the_kept_tasks_are_held() -> None:
    hyper = hypernet("full", SPEC, C, "embedding")
    before, now = random_phi(hyper, seed=1), {k: v.requires_grad_() for k, v in random_phi(hyper, seed=2).items()}
    ids = torch.tensor([0, 2])
    fh.output_regularizer(hyper, now, kept(hyper, before, ids)).backward()
    grad = now["embedding.weight"].grad
    assert grad is not None
    assert (grad.abs().amax(1) > 0).tolist() == [True, False, True]


def test_no_earlier_conds_cost_nothing() -> None:
    hyper = hypernet("full", SPEC, C, "embedding")
    phi = hyper.init()
    value = fh.output_regularizer(hyper, phi, kept(hyper, phi, torch.arange(0)))
    assert value.shape == ()
    assert value == 0
    value.backward()
    assert all(v.grad is None or v.grad.abs().max() == 0 for v in phi.values())


def test_more_batch_dims_are_averaged_too() -> None:
    hyper = hypernet("full", SPEC, C)
    before, now, cond = random_phi(hyper, 1), random_phi(hyper, 2), conds("plain", 6, C, torch.float64)
    flat = fh.output_regularizer(hyper, now, kept(hyper, before, cond))
    torch.testing.assert_close(fh.output_regularizer(hyper, now, kept(hyper, before, cond.view(2, 3, C))), flat)
    one = fh.output_regularizer(hyper, now, kept(hyper, before, cond[0]))
    torch.testing.assert_close(one, fh.output_regularizer(hyper, now, kept(hyper, before, cond[:1])))


def test_it_composes_with_transforms() -> None:
    hyper = hypernet("chunked by size", SPEC, C)
    before, now = random_phi(hyper, 1), {k: v.requires_grad_() for k, v in random_phi(hyper, 2).items()}
    targets = kept(hyper, before, conds("plain", 4, C, torch.float64))
    got = torch.func.grad(lambda phi: fh.output_regularizer(hyper, phi, targets))(now)
    fh.output_regularizer(hyper, now, targets).backward()
    for name, value in now.items():
        torch.testing.assert_close(got[name], value.grad)


COND = torch.zeros(4, C, dtype=torch.float64)
THETAS = torch.zeros(4, P, dtype=torch.float64)


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        ((COND, THETAS[:3]), (f"P={P}", f"(3, {P})", f"(4, {P})")),
        ((COND, THETAS[:1]), (f"(1, {P})", "before the task")),  # would broadcast
        ((COND, THETAS[0]), (f"({P},)", f"(4, {P})")),  # would broadcast
        ((COND[0], THETAS), (f"(4, {P})", f"({P},)")),  # would broadcast
        ((COND, THETAS[:, :1]), (f"P={P}", "(4, 1)")),  # would broadcast
        ((COND, fh.unravel(SPEC, THETAS)), ("thetas", "dict", "ravel")),
        (THETAS, ("(conds, thetas)", "Tensor")),
        (None, ("(conds, thetas)", "NoneType", "no rows")),
        ((COND,), ("(conds, thetas)", "1 items")),
        ((COND, THETAS, 1.0), ("(conds, thetas)", "3 items")),
    ],
)
def test_bad_targets(targets: Any, parts: tuple[str, ...]) -> None:
    hyper = hypernet("full", SPEC, C)
    raises(lambda: fh.output_regularizer(hyper, hyper.init(), targets), "output_regularizer(targets=", *parts)
