"""Attention of B networks is one attention: every form of it agrees with the loop, without vmap's slow fallback."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_PATH, assert_same, definition, hypernet, model_results, random_phi, results, told
from test_any_module import Lambda
from torch import Tensor, nn

import functional_hyper as fh

B, N, H, L, E, D = 3, 2, 4, 5, 6, torch.float64
OTHERS = tuple(path for path in EVERY_PATH if path != "loop")
CAUSAL = torch.ones(L, L, dtype=torch.bool).tril()
attend: Callable[..., Tensor] = F.scaled_dot_product_attention


def grouped(x: Tensor) -> Tensor:
    return x[..., : H // 2, :, :]


# name: f(q, k, v, bias) of one network, q, k, v (N, H, L, E), bias (L, L)
FORMS: dict[str, Callable[..., Any]] = {
    "plain": lambda q, k, v, b: attend(q, k, v),
    "causal": lambda q, k, v, b: attend(q, k, v, is_causal=True),
    "scaled": lambda q, k, v, b: attend(q, k, v, scale=0.3),
    "other lengths": lambda q, k, v, b: attend(q[:, :, :2], k, v[..., :3]),
    "mask": lambda q, k, v, b: attend(q, k, v, CAUSAL),
    "mask by name": lambda q, k, v, b: attend(query=q, key=k, value=v, attn_mask=CAUSAL),
    "generated bias": lambda q, k, v, b: attend(q, k, v, b),
    "generated bias for heads": lambda q, k, v, b: attend(q, k, v, b * torch.arange(H, dtype=D)[:, None, None]),
    "generated bias for inputs": lambda q, k, v, b: attend(q, k, v, b * torch.arange(N, dtype=D)[:, None, None, None]),
    "mask of inputs": lambda q, k, v, b: attend(q, k, v, torch.tensor([[1, 1, 0, 1, 1]] * N).bool()[:, None, None]),
    "mask of data": lambda q, k, v, b: attend(q, k, v, (k[..., 0] > -1)[:, :, None].logical_or(CAUSAL)),
    "shared keys": lambda q, k, v, b: attend(q, torch.ones(N, H, L, E, dtype=D).cumsum(2), v),
    "shared queries and keys": lambda q, k, v, b: attend(*[torch.ones(N, H, L, E, dtype=D)] * 2, v),
    "fewer heads of keys": lambda q, k, v, b: attend(q, grouped(k), grouped(v), enable_gqa=True),
    "fewer heads of keys, one input": lambda q, k, v, b: attend(q[0], grouped(k)[0], grouped(v)[0], enable_gqa=True),
    "without heads": lambda q, k, v, b: attend(q[:, 0], k[:, 0], v[:, 0], b),
    "one sequence": lambda q, k, v, b: attend(q[0, 0], k[0, 0], v[0, 0], b),
    "five dims": lambda q, k, v, b: attend(q[:, None], k[:, None], v[:, None], b),
    "keys of one input": lambda q, k, v, b: attend(q, k[:1], v[:1]),
    "inside vmap": lambda q, k, v, b: torch.func.vmap(attend)(q[:, :, None], k[:, :, None], v[:, :, None]),
}


def heads_of(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w).unflatten(-1, (H, E)).transpose(1, 2)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_on_every_path(name: str) -> None:
    def main(p: dict[str, Tensor], x: Tensor) -> Any:
        return FORMS[name](*[heads_of(x, p[n]) for n in "qkv"], p["bias"])

    params = {n: torch.randn(B, H * E, 3, dtype=D) for n in "qkv"} | {"bias": torch.randn(B, L, L, dtype=D)}
    x = torch.randn(B, N, L, 3, dtype=D)
    with warnings.catch_warnings():
        if name == "inside vmap":  # the main network's own vmap is the slow one
            warnings.simplefilter("ignore")
        for shared in (False, True):
            args, how = (params, x[0] if shared else x), {"many": not shared, "shared": shared}
            want = results(partial(definition, main, **how), args)
            for path in OTHERS:
                with told(path):
                    assert_same(results(partial(fh.evaluate, main, path=path, **how), args), want)


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"dropout": 0.5, "add_bias_kv": True}], ids=["plain", "bias"])
def test_dropout_of_attention(options: dict[str, Any], path: str) -> None:
    attention = nn.MultiheadAttention(6, 2, batch_first=True, **options).double()
    for need in (False, True):
        main = Lambda(lambda m, x, need=need: m.a(x, x, x, need_weights=need)[0], a=attention)
        params = {n: p.detach().expand(64, *p.shape) for n, p in main.named_parameters()}
        x = torch.randn(1, 1, 3, 6, dtype=D).expand(64, 2, 3, 6)
        with pytest.raises(fh.Refused, match=r'randomness="different"'):
            fh.evaluate(main, params, x, path, many=True)
        ys = fh.evaluate(main, params, x, path, many=True, randomness="different").flatten(0, 1)
        assert len({tuple(y.flatten().tolist()) for y in ys}) > 120  # every network and input its own mask
        with torch.no_grad():
            main.eval()
            want = main(x[0])[0]
            main.train()
        torch.testing.assert_close(ys.mean(0), want, rtol=0, atol=5 * float(ys.std(0).max()) / len(ys) ** 0.5)


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "self": lambda: Lambda(lambda m, x: m.a(x, x, x), a=nn.MultiheadAttention(6, 2, batch_first=True)),
    "keys elsewhere": lambda: Lambda(
        lambda m, x: m.a(x, x.sin(), x.sin(), need_weights=False)[0], a=nn.MultiheadAttention(6, 2)
    ),
    "three inputs": lambda: Lambda(
        lambda m, x: m.a(x, x.sin(), x.cos(), average_attn_weights=False),
        a=nn.MultiheadAttention(6, 2, add_bias_kv=True, add_zero_attn=True, bias=False),
    ),
    "one sequence": lambda: Lambda(
        lambda m, x: m.a(x[0], x[0], x[0], attn_mask=~CAUSAL[:3, :3]), a=nn.MultiheadAttention(6, 2)
    ),
    "padded and masked": lambda: Lambda(
        lambda m, x: m.a(x, x, x, torch.tensor([[0, 0, 1], [0, 1, 1]]).bool(), attn_mask=~CAUSAL[:3, :3])[0],
        a=nn.MultiheadAttention(6, 2, batch_first=True),
    ),
}


@pytest.mark.parametrize("kind", ["full", "low rank", "scaled"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_projections_are_linear_layers_to_the_path(name: str, kind: str) -> None:
    main = ATTENTIONS[name]().double()
    hyper = hypernet(kind, fh.param_spec(main))
    phi, cond, x = random_phi(hyper), torch.randn(B, 2, dtype=D), torch.randn(B, N, 3, 6, dtype=D)
    want = model_results(hyper, main, None, phi, cond, x, many=True)
    for path in EVERY_PATH:
        model = fh.compose(hyper, main, path, many=True)
        with told(path):
            assert_same(results(model, (phi, cond, x)), want)
            calls = fh.explain(model, phi, cond, x).calls
            linear = [answer for call, _, answer in calls if call == "torch.nn.functional.linear"]
            assert path == "loop" or (len(linear) >= 2 and ("vmap" in linear) == (path == "vmap"))


@pytest.mark.usefixtures("dynamo")
def test_attention_compiles() -> None:
    main = ATTENTIONS["self"]().double()
    hyper = hypernet("full", fh.param_spec(main))
    model = fh.compose(hyper, main, many=True)
    phi, cond, x = hyper.init(), torch.randn(B, 2, dtype=D), torch.randn(B, N, 3, 6, dtype=D)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for got, want in zip(compiled(phi, cond, x), model(phi, cond, x), strict=True):
        torch.testing.assert_close(got, want)
