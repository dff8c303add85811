"""Every path agrees with the loop on networks that hypothesis composes; `make fuzz` goes on for as long as asked."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import optree
import pytest
import torch
from cases import EVERY_PATH, assert_same, define, hypernet, random_phi, results, told
from compositions import LAYERS, SIZED, Composition, build, compositions, refusable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import functional_hyper as fh

KINDS = ("full", "chunked by layer", "low rank", "scaled", "custom")
WIDTH, D = 3, torch.float64
sizes = st.integers(1, 3)


def network(composition: Composition, seed: int) -> nn.Module:
    """The composition, with a layer in front, so that there is something to generate."""
    torch.manual_seed(seed)
    return build(("chain", ("linear", WIDTH), composition), WIDTH)[0].to(D)


def agree(composition: Composition, kind: str, B: int, N: int, seed: int) -> None:
    """Every path gives the loop's values, gradients or exception, or refuses by name what only the loop takes."""
    main = network(composition, seed)
    hyper = hypernet(kind, fh.param_spec(main), 2)
    g = torch.Generator().manual_seed(seed)
    arguments: Any = random_phi(hyper, seed), torch.randn(B, 2, generator=g, dtype=D)
    arguments = *arguments, torch.randn(B, N, WIDTH, generator=g, dtype=D)
    reference = partial(define, hyper, main, many=True)
    want, raised = attempt(reference, arguments)

    def off(t: Tensor) -> Tensor:
        return t * (1 + 4 * torch.finfo(D).eps * torch.randn(t.shape, generator=g, dtype=D))

    def rounded(times: int) -> list[Any]:
        found = [attempt(reference, optree.tree_map(off, arguments))[0] for _ in range(times)]
        return [values for values in found if values is not None]

    one = rounded(1)
    for path in EVERY_PATH:
        if path == "contracted" and kind == "custom":
            continue
        with told(f"{path}, {kind}, B={B}, N={N}, seed={seed}: {composition}"):
            got, error = attempt(fh.compose(hyper, main, path, many=True), arguments)
            if isinstance(error, fh.Refused):
                assert refusable(composition), error
                assert path != "loop"
            elif want is None or got is None:
                assert (type(error), str(error)) == (type(raised), str(raised))
            else:
                try:  # a norm, or a mean taken off, cancels what came before it
                    assert_same(got, want, rounded=one)
                except AssertionError:  # rounding errors of a few sizes: one draw may miss the larger
                    assert_same(got, want, rounded=[*one, *rounded(15)])


def attempt(f: Any, arguments: Any) -> tuple[dict[str, Tensor] | None, Exception | None]:
    """Values and gradients, or the exception in their place."""
    try:
        return results(f, arguments), None
    except Exception as error:
        return None, error


composed = given(composition=compositions, kind=st.sampled_from(KINDS), B=sizes, N=sizes, seed=st.integers(0, 2**16))
few = settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def test_composed_at_random() -> None:
    """500 compositions, and as many more as go into the minutes that `make fuzz` asks for."""
    end, rounds = time.monotonic() + 60 * float(os.environ.get("FH_FUZZ_MINUTES", "0")), 0
    few(composed(agree))()
    more = settings(few, max_examples=200, derandomize=False)(composed(agree))
    while time.monotonic() < end:
        more()
        rounds += 1
    print(f"{500 + 200 * rounds} compositions")


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_of_which_they_are_composed(name: str) -> None:
    agree((name, 2) if name in SIZED else (name,), "low rank", 2, 3, 0)
