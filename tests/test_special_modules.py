"""Main networks that vmap or a swap of parameters alone would get wrong: TorchScript, recomputation, statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import EVERY_PATH, assert_same, define, hypernet, results
from test_any_module import KINDS, B, D, N, build, model, problem
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import functional_hyper as fh


def traced(main: nn.Module) -> Any:
    return torch.jit.trace(main, torch.ones(1, 5, dtype=D))


COMPILED: dict[str, Callable[[Any], Any]] = {
    "scripted": torch.jit.script,
    "traced": traced,
    "a part scripted": lambda main: nn.Sequential(torch.jit.script(main[0]), *main[1:]),
    "a part traced": lambda main: nn.Sequential(traced(main[0]), *main[1:]),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", COMPILED)
def test_torchscript_is_right_or_refused(how: str, kind: str, path: str) -> None:
    eager, _ = build("mlp")
    hyper, arguments, want = problem("mlp", kind)
    try:
        got = results(model(hyper, kind, COMPILED[how](eager), path), arguments)
    except fh.HyperError:
        return
    assert_same(got, want)


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_inside_is_right_or_an_error(kind: str, path: str) -> None:
    eager, _ = build("mlp")
    hyper, arguments, want = problem("mlp", kind)

    class Checkpointed(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[2](checkpoint(lambda x: self[1](self[0](x)), input, use_reentrant=False))

    try:
        got = results(model(hyper, kind, Checkpointed(*eager.children()), path), arguments)
    except fh.Refused:
        return
    assert_same(got, want)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_batch_norm_in_training_is_refused(path: str) -> None:
    main = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double()
    hyper = hypernet("full", fh.param_spec(main))
    model = fh.compose(hyper, main, path, many=True)
    before = {k: v.clone() for k, v in main.state_dict().items()}
    phi, cond, x = hyper.init(), torch.randn(B, 2, dtype=D), torch.randn(B, N, 5, dtype=D)
    with pytest.raises(fh.Refused, match=r"BatchNorm1d.*training.*main\.eval\(\)"):
        model(phi, cond, x)
    assert all(torch.equal(v, before[k]) for k, v in main.state_dict().items())
    main.eval()
    assert_same({"y": model(phi, cond, x)}, {"y": define(hyper, main, phi, cond, x, many=True)})
