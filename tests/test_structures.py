"""Inputs, outputs and parameters of every form: tuples, dicts, ties, subsets, and networks inside networks."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_PATH, assert_same, define, definition, hypernet, mlp, model_results, random_phi, results, told
from torch import Tensor, nn

import functional_hyper as fh

B, N, D = 3, 4, torch.float64
KINDS = ("full", "low rank", "scaled")

Layer = namedtuple("Layer", "weight bias")


def case(kind: str, spec: fh.ParamSpec) -> tuple[fh.Hypernet, Any, Tensor]:
    hyper = hypernet(kind, spec)
    return hyper, random_phi(hyper, 5), torch.randn(B, 2, dtype=D)


def check(kind: str, spec: fh.ParamSpec, main: Any, path: str, x: Any, also: Any = (), **how: Any) -> None:
    """The path agrees with the definition in value, in every gradient, and in those of the tensors in `also`."""
    hyper, phi, cond = case(kind, spec)
    with told(kind):
        got = results(fh.compose(hyper, main, path, **how), (phi, cond, x), also)
        assert_same(got, results(partial(define, hyper, main, **how), (phi, cond, x), also))


# ------------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pure_function_takes_any_pytree(kind: str, path: str) -> None:
    w, b = torch.zeros(4, 5, dtype=D), torch.zeros(4, dtype=D)
    tree = {"layers": [Layer(w, b), Layer(w.T, b.new_zeros(5))], "out": ({"w": w}, b), "gain": b.new_zeros(())}

    def main(p: Any, x: Tensor) -> Tensor:
        assert isinstance(p["layers"][0], Layer)
        for layer in p["layers"]:
            x = F.linear(x, layer.weight, layer.bias).tanh()
        first, bias = p["out"]
        return (x @ first["w"].T + bias) * p["gain"]

    check(kind, fh.param_spec(tree), main, path, torch.randn(B, N, 5, dtype=D), many=True)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_pure_function_takes_one_tensor(path: str) -> None:
    w = torch.randn(B, 4, 5, dtype=D)
    x = torch.randn(B, 5, dtype=D)
    main = lambda w, x: F.linear(x, w)
    got = results(lambda w, x: fh.evaluate(main, w, x, path), (w, x))
    assert_same(got, results(partial(definition, main), (w, x)))


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("include", ["*.weight", "*.bias", "0.*", ["2.weight", "1.*"], "0.weight"])
def test_what_is_not_generated_trains_in_the_main_network(include: Any, path: str) -> None:
    main = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    spec = fh.param_spec(main, include=include)
    own = tuple(p for n, p in main.named_parameters() if n not in spec.names)
    assert len(own) + len(spec.names) == 6
    for kind in KINDS:
        check(kind, spec, main, path, torch.randn(B, N, 5, dtype=D), also=own, many=True)
    assert all(p.grad is None for p in main.parameters())


@pytest.mark.parametrize("path", EVERY_PATH)
def test_what_is_not_generated_is_read_at_each_call(path: str) -> None:
    main: Any = mlp(5, 4, 2)
    hyper, phi, cond = case("full", fh.param_spec(main, include="0.*"))
    x = torch.randn(B, 5, dtype=D)
    net = fh.compose(hyper, main, path).bind(phi, cond, x)
    net(x)
    with torch.no_grad():
        main[2].weight.mul_(3)
    main[2].bias = nn.Parameter(torch.ones(2, dtype=D))
    main[1] = nn.ReLU()
    assert_same({"y": net(x)}, {"y": define(hyper, main, phi, cond, x)})


@pytest.mark.parametrize("path", EVERY_PATH)
def test_tied_parameters_are_one(path: str) -> None:
    main = mlp(5, 5, 5)
    main[2].weight = main[0].weight
    spec = fh.param_spec(main)
    assert spec.names == ("0.weight", "0.bias", "2.bias")
    for kind in KINDS:
        check(kind, spec, main, path, torch.randn(B, N, 5, dtype=D), many=True)


# ------------------------------------------------------------------------------------------------ inputs and outputs


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("many", [True, False])
def test_several_arguments(many: bool, path: str) -> None:
    main = lambda p, x, scale, ids, y, flag=None: F.linear(x, p["w"]) * scale + y[:, None] + F.one_hot(ids, 4)
    spec = fh.param_spec({"w": torch.zeros(4, 5, dtype=D)})
    rows = (B, N) if many else (B,)
    x = (torch.randn(*rows, 5, dtype=D), 2.0, torch.randint(4, rows), torch.randn(*rows, dtype=D), None)
    check("full", spec, main, path, x, many=many)


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("form", ["dict", "list", "nested"])
def test_tensors_inside_an_argument_are_rows_too(form: str, path: str) -> None:
    main = lambda p, x: F.linear(x["a"] if isinstance(x, dict) else x[0], p["w"])
    spec = fh.param_spec({"w": torch.zeros(4, 5, dtype=D)})
    hyper, phi, cond = case("full", spec)
    a = torch.randn(B, N, 5, dtype=D)
    x = {"dict": {"a": a}, "list": [a], "nested": ({"a": a},)}[form]
    plain = lambda p, x: F.linear(x, p["w"])
    got = fh.compose(hyper, main, path, many=True)(phi, cond, x)
    assert_same({"y": got}, {"y": define(hyper, plain, phi, cond, a, many=True)})


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("many", [True, False])
def test_outputs_of_any_pytree(many: bool, path: str) -> None:
    def main(p: Any, x: Tensor) -> Any:
        y = F.linear(x, p["w"], p["b"])
        return {"a": y, "b": [Layer(y.sin(), y.argmax(1))], "rows": (len(x), None)} | ({"w": p["w"]} if many else {})

    spec = fh.param_spec({"w": torch.zeros(4, 5, dtype=D), "b": torch.zeros(4, dtype=D)})
    hyper, phi, cond = case("low rank", spec)
    x = torch.randn(B, N, 5, dtype=D) if many else torch.randn(B, 5, dtype=D)
    tensors = lambda p, x: {k: v for k, v in main(p, x).items() if k != "rows"}
    model = fh.compose(hyper, main, path, many=many)
    y = model(phi, cond, x)
    assert isinstance(y["b"][0], Layer)
    assert y["rows"] == (N if many else 1, None)
    got = results(lambda *a: {k: v for k, v in model(*a).items() if k != "rows"}, (phi, cond, x))
    assert_same(got, model_results(hyper, tensors, None, phi, cond, x, many=many))


@dataclass
class Output:
    y: Tensor


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("many", [True, False])
def test_outputs_of_an_unknown_type_are_an_error(many: bool, path: str) -> None:
    main = lambda p, x: Output(F.linear(x, p["w"]))
    x = torch.randn(B, N, 5) if many else torch.randn(B, 5)
    with pytest.raises(fh.HyperError, match="Output"):
        fh.evaluate(main, {"w": torch.randn(B, 4, 5)}, x, path, many=many)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_numbers_that_differ_between_networks_are_an_error(path: str) -> None:
    main = lambda p, x: {"y": F.linear(x, p["w"]), "norm": p["w"].norm().item()}
    with pytest.raises(fh.HyperError):
        fh.evaluate(main, {"w": torch.randn(B, 4, 5)}, torch.randn(B, N, 5), path, many=True)


# ------------------------------------------------------------------------------------------------ networks in networks


@pytest.mark.parametrize("outer", EVERY_PATH)
@pytest.mark.parametrize("inner", EVERY_PATH)
def test_a_main_network_that_is_a_hypernetwork(inner: str, outer: str) -> None:
    target = mlp(3, 2, 2)
    small = fh.low_rank(fh.param_spec(target), 2, (3,), rank=1)
    names = {k: v.detach() for k, v in small.init().items()}

    def main(phi: Any, x: Tensor) -> Tensor:
        conds, rows = x[:, :2], x[:, 2:]
        return fh.compose(small, target, inner)(phi, conds, rows)

    spec = fh.param_spec(names)
    hyper, phi, cond = case("full", spec)
    x = torch.randn(B, N, 5, dtype=D)
    naive = lambda p, x: define(small, target, p, x[:, :2], x[:, 2:])
    assert_same(
        model_results(hyper, main, outer, phi, cond, x, many=True),
        model_results(hyper, naive, None, phi, cond, x, many=True),
    )
