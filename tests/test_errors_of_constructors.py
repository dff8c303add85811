"""Bad arguments of specs, hypernetworks and `compose`: errors at the door that name the argument and the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import custom, encoded
from test_errors import raises
from torch import Tensor, nn

import functional_hyper as fh

MAIN = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
SPEC = fh.param_spec(MAIN)
P = SPEC.size
FULL = fh.full(SPEC, 2)


def nothing(generator: Any = None, dtype: Any = None, device: Any = None) -> dict[str, Tensor]:
    return {}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2, dtype=torch.float64)


# name: (what is done, parts of the message)
CASES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    # one thing in another's place
    "a module for a spec": (lambda: fh.full(MAIN, 2), ("full(...)", "spec", "Sequential", "param_spec(main)")),  # type: ignore[arg-type]
    "a spec for a hypernetwork": (lambda: fh.compose(SPEC, MAIN), ("compose(hyper=", "ParamSpec")),  # type: ignore[arg-type]
    "compare, swapped": (lambda: fh.study.compare(FULL, MAIN, batch=2), ("compare(hyper=", "Sequential", "first")),  # type: ignore[arg-type]
    "one width": (lambda: fh.low_rank(SPEC, 2, hidden=16), ("low_rank(...)", "hidden", "16", "(16,)")),  # type: ignore[arg-type]
    "a seed for a generator": (lambda: FULL.init(0), ("init(generator=", "int", "manual_seed")),  # type: ignore[arg-type]
    "phi without a name": (
        lambda: fh.compose(FULL, MAIN)({}, torch.zeros(2, 2), torch.zeros(2, 3)),
        ("model(phi=", "no trunk.0.weight", "hyper.init()"),
    ),
    "phi as a list": (
        lambda: fh.compose(FULL, MAIN)([*FULL.init().values()], torch.zeros(2, 2), torch.zeros(2, 3)),  # type: ignore[arg-type]
        ("model(phi=", "list"),
    ),
    "conds of two batch dims": (
        lambda: fh.compose(FULL, MAIN)(FULL.init(), torch.zeros(2, 1, 2), torch.zeros(2, 3)),
        ("model(cond=", "one batch dim", "ids (B,)"),
    ),
    # specs and flat vectors
    "spec of a function": (lambda: fh.param_spec(torch.relu), ("param_spec", "function relu", "pytree")),
    "spec of two dtypes": (lambda: fh.param_spec(Mixed()), ("one dtype", "float32", "float64", "a.", "b.", "include=")),
    "spec of integers": (lambda: fh.param_spec({"w": torch.zeros(2, dtype=torch.int64)}), ("floating", "w", "int64")),
    "spec of numbers": (lambda: fh.param_spec({"w": 1.0}), ("tensors", "w", "float")),
    "spec of equal names": (
        lambda: fh.param_spec({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}),
        ("names", "a.b"),
    ),
    "include without a match": (lambda: fh.param_spec(MAIN, include="2.*"), ("include", "'2.*'", "0.weight")),
    "one include without a match": (lambda: fh.param_spec(MAIN, include=["0.*", "bias"]), ("include", "'bias'")),
    "include of a pytree": (
        lambda: fh.param_spec({"w": torch.zeros(2)}, include="w"),
        ("include", "nn.Module", "dict"),
    ),
    "too many numbers": (lambda: fh.unravel(SPEC, torch.zeros(2, P + 1)), ("unravel(flat=", f"P={P}", f"(2, {P + 1})")),
    "ravel, missing key": (lambda: fh.ravel(SPEC, {}), ("ravel(tree=", "missing: 0.weight")),
    "ravel, extra key": (lambda: fh.ravel(SPEC, dict(MAIN.named_parameters()) | {"c": torch.zeros(1)}), ("extra: c",)),
    "ravel, other structure": (
        lambda: fh.ravel(SPEC, [torch.zeros(1)]),
        ("ravel(tree=", "missing: 0.weight", "extra: 0"),
    ),
    "ravel, other shape": (
        lambda: fh.ravel(SPEC, dict(MAIN.named_parameters()) | {"0.weight": torch.zeros(4, 4)}),
        ("0.weight", "(*batch, 4, 3)", "(4, 4)"),
    ),
    "ravel, other batch": (
        lambda: fh.ravel(SPEC, {n: torch.zeros(2 + n.startswith("1"), *p.shape) for n, p in MAIN.named_parameters()}),
        ("1.weight", "(2, 2, 4)", "(3, 2, 4)"),
    ),
    # constructors
    "no input": (lambda: fh.full(SPEC, 0), ("full(", "in_features", "0")),
    "no width": (lambda: fh.chunked(SPEC, 2, (4, 0), chunk_size=2), ("chunked(", "widths", "(4, 0)")),
    "unknown activation": (lambda: fh.full(SPEC, 2, activation="relux"), ("activation", "'relux'", "'relu'")),
    "unknown init": (lambda: fh.full(SPEC, 2, init="xavier"), ("init=", "'xavier'", "ordinary", "hyperfan_in")),
    "unknown init of an adapter": (lambda: fh.scaled(SPEC, 2, init="xavier"), ("init=", "'xavier'", "bias_hyperinit")),
    "no rank": (lambda: fh.low_rank(SPEC, 2, rank=0), ("low_rank(rank=", "0")),
    "unknown scale": (lambda: fh.scaled(SPEC, 2, scale="rows"), ("scaled(scale=", "'rows'", "'both'")),  # type: ignore[arg-type]
    "no chunks": (lambda: fh.chunked(SPEC, 2), ("exactly one", "chunk_size", "num_chunks", "by='layer'")),
    "chunks twice": (
        lambda: fh.chunked(SPEC, 2, chunk_size=2, num_chunks=3),
        ("exactly one", "chunk_size=2", "num_chunks=3"),
    ),
    "chunks by what": (lambda: fh.chunked(SPEC, 2, by="module"), ("by='module'", "layer")),  # type: ignore[arg-type]
    "chunks of nothing": (lambda: fh.chunked(SPEC, 2, chunk_size=-1), ("positive", "-1")),
    "too many chunks": (
        lambda: fh.chunked(SPEC, 2, num_chunks=P - 1),
        ("num_chunks", f"P={P}", str(P - 1), "chunks of"),
    ),
    "chunks of no embedding": (lambda: fh.chunked(SPEC, 2, chunk_size=2, embedding_dim=0), ("positive", "0")),
    # bases
    "a base of another size": (lambda: fh.with_base(FULL, torch.zeros(P - 1)), ("base", f"P={P}", str(P - 1))),
    "a base with a batch": (lambda: fh.with_base(FULL, torch.zeros(2, P)), ("base", f"P={P}", f"(2, {P})")),
    "a base of another network": (lambda: fh.with_base(FULL, {"w": torch.zeros(1)}), ("base", "0.weight")),
    "an adapter's base of another size": (lambda: fh.low_rank(SPEC, 2, base=torch.zeros(P + 1)), ("base", f"P={P}")),
    "two bases": (lambda: fh.with_base(fh.with_base(FULL)), ("with_base(hyper=", "once")),
    "two bases around another": (lambda: fh.with_base(fh.with_base(custom(SPEC, 2))), ("with_base(hyper=", "once")),
    "two bases around an embedding": (
        lambda: fh.with_base(fh.with_embedding(fh.with_base(FULL), 2)),
        ("with_base(hyper=",),
    ),
    "two bases of chunks": (
        lambda: fh.with_base(fh.with_base(fh.chunked(SPEC, 2, chunk_size=3))),
        ("with_base(hyper=",),
    ),
    "low_rank has a base": (lambda: fh.with_base(fh.low_rank(SPEC, 2)), ("low_rank", "constructor")),
    "scaled has a base": (lambda: fh.with_base(encoded(fh.scaled(SPEC, 2), 2)), ("scaled", "constructor")),
    # embeddings and encoders
    "no tasks": (lambda: fh.with_embedding(FULL, 0), ("with_embedding", "num_tasks", "0")),
    "an embedding of unknown width": (
        lambda: fh.with_embedding(encoded(FULL, 2), 3),
        ("with_embedding", "embedding_dim"),
    ),
    "an encoder that is a function": (lambda: fh.with_encoder(FULL, torch.relu), ("with_encoder(module=", "nn.Module")),  # type: ignore[arg-type]
    "an encoder of another width": (
        lambda: fh.with_encoder(FULL, nn.Linear(2, 3)).apply(
            fh.with_encoder(FULL, nn.Linear(2, 3)).init(), torch.zeros(1, 2)
        ),
        ("cond", "in_features=2", "(1, 3)"),
    ),
    # compose
    "another main network": (
        lambda: fh.compose(FULL, nn.Linear(3, 2)),
        ("main", "0.weight", "(4, 3)", "absent", "param_spec(main)"),
    ),
    "a main network of other shapes": (
        lambda: fh.compose(FULL, nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))),
        ("main", "0.weight: (4, 3)", "0.weight: (5, 3)"),
    ),
    "no main network": (lambda: fh.compose(FULL, {"w": 1}), ("main", "dict", "nn.Module")),  # type: ignore[arg-type]
    "nothing generated": (
        lambda: fh.compose(fh.full(fh.param_spec(nn.ReLU()), 2), nn.ReLU()),
        ("at least one", "include"),
    ),
    "a hypernetwork that gives another size": (
        lambda: fh.compose(fh.Hypernet(SPEC, nothing, lambda phi, cond: cond @ torch.zeros(2, P - 1)), MAIN)(
            {}, torch.zeros(1, 2), torch.zeros(1, 3)
        ),
        (f"P={P}", f"(1, {P - 1})"),
    ),
    "unknown randomness": (
        lambda: fh.compose(FULL, MAIN, randomness="same")(FULL.init(), torch.zeros(1, 2), torch.zeros(1, 3)),
        ("'same'",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error(name: str) -> None:
    f, parts = CASES[name]
    raises(f, *parts)


def test_errors_are_value_errors() -> None:
    assert issubclass(fh.HyperError, ValueError)
    assert issubclass(fh.Refused, fh.HyperError)


def test_a_spec_without_parameters_is_no_error() -> None:
    spec = fh.param_spec(nn.ReLU())
    assert spec.size == 0
    assert fh.unravel(spec, torch.zeros(3, 0)) == {}
    assert fh.full(spec, 2).apply(fh.full(spec, 2).init(), torch.zeros(3, 2)).shape == (3, 0)


def test_a_module_that_cannot_be_nested() -> None:
    hyper = fh.Hypernet(SPEC, nothing, lambda phi, cond: cond @ torch.zeros(2, P))
    phi: dict[str, Tensor] = {"a": torch.zeros(1), "a.b": torch.zeros(1)}
    raises(lambda: fh.as_module(fh.compose(hyper, MAIN), phi), "phi", "a.b", "nest")
