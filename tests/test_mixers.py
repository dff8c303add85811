"""Never silently wrong: main networks that mix their batch or handle their weights, on every path."""

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from cases import EVERY_PATH, assert_same, define, hypernet, random_phi, results, told
from networks import DISTINCT, EQUAL, MIXING, Network
from networks_of_weights import HANDLING
from torch import Tensor

import functional_hyper as fh

NETWORKS: dict[str, Network] = {n.name: n for n in (*MIXING.networks, *HANDLING.networks)}
SIZES = {"distinct": DISTINCT, "equal": EQUAL}
KINDS = [("dense", "equal"), ("full", "distinct"), ("full", "equal"), ("low rank", "equal"), ("scaled", "equal")]
"""Plain dense weights, or a hypernetwork's leaves."""


@cache
def problem(network: Network, kind: str, sizes: str) -> tuple[fh.Hypernet, Any]:
    """The hypernetwork, and the arguments (phi, cond, x) of the model."""
    spec = fh.param_spec(network.template(SIZES[sizes]))
    g = torch.Generator().manual_seed(3)
    cond = torch.randn(SIZES[sizes]["B"], 2, generator=g, dtype=torch.float64)
    hyper = hypernet("full" if kind == "dense" else kind, spec, 2)
    return hyper, (random_phi(hyper, 5), cond, network.x(SIZES[sizes]))


@cache
def reference(network: Network, kind: str, sizes: str) -> dict[str, Tensor]:
    hyper, arguments = problem(network, kind, sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as torch's own about networks that read single numbers
        return results(lambda phi, cond, x: define(hyper, network.main, phi, cond, x, many=True), arguments)


def model(hyper: fh.Hypernet, kind: str, main: Any, path: str) -> Callable[..., Any]:
    if kind != "dense":
        return fh.compose(hyper, main, path, many=True)
    return lambda phi, cond, x: fh.evaluate(main, fh.unravel(hyper.spec, hyper.apply(phi, cond)), x, path, many=True)


def assert_right_or_refused(
    network: Network, path: str, got: Callable[[], dict[str, Tensor]], want: Callable[[], dict[str, Tensor]]
) -> None:
    refused, values = None, {}
    try:
        values = got()
    except fh.Refused as error:
        refused = str(error)
    if refused is None:
        assert_same(values, want(), network.tolerance)
    else:
        assert network.refusable == "by all" or (network.refusable == "by others" and path != "loop"), refused
        assert "`main`" in refused
        assert "loop" in refused or network.refusable == "by all"


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("name", NETWORKS)
def test_right_or_refused_by_name(name: str, path: str) -> None:
    network = NETWORKS[name]
    for kind, sizes in KINDS:
        hyper, arguments = problem(network, kind, sizes)
        f = model(hyper, kind, network.main, path)
        with told(f"{kind} weights, {sizes} sizes"):
            assert_right_or_refused(
                network, path, partial(results, f, arguments), partial(reference, network, kind, sizes)
            )


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", ["dense", "full"])
@pytest.mark.parametrize("name", [n.name for n in NETWORKS.values() if n.refusable == "by all"])
def test_weights_changed_in_place_without_gradients(name: str, kind: str, path: str) -> None:
    network = NETWORKS[name]
    hyper, (phi, cond, x) = problem(network, kind, "equal")
    with told(kind), torch.no_grad():
        params = fh.unravel(hyper.spec, hyper.apply(phi, cond))
        before = {n: t.clone() for n, t in params.items()}
        leaves = params if kind == "dense" else hyper.weights(phi, cond)

        def want() -> dict[str, Tensor]:
            return {"y": define(hyper, network.main, phi, cond, x, many=True)}

        def twice() -> dict[str, Tensor]:
            net = fh.bind(network.main, leaves, path, many=True)
            net(x)
            return {"y": net(x)}

        assert_right_or_refused(network, path, twice, want)
    assert all(torch.equal(t, before[n]) for n, t in params.items()), "the caller's weights are changed"
