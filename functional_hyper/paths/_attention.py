"""Attention of B networks: one batch of sequences to `scaled_dot_product_attention`, one open book to the rules."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The networks join the batch; vmap would call the fused kernel once for each network.

    query ``(B, N, H, L, E)``, or ``(B, N, L, E)`` without heads. Fewer dims take the plain form, which vmap batches;
    so does dropout, whose random numbers vmap must see.
    """
    dims = query.dim()
    if dims == 4 and enable_gqa:  # one input with heads
        parts = [t if t is None else t.unsqueeze(1) for t in (query, key, value, attn_mask)]
        y = attention(*parts, dropout_p, is_causal, scale, enable_gqa)  # type: ignore[arg-type]
        return y if y is NotImplemented else y.squeeze(1)
    if dropout_p or dims not in (4, 5):
        return NotImplemented
    if any(t.dim() != dims or t.shape[1] != query.shape[1] for t in (key, value)):
        return NotImplemented
    given = [query, key, value]
    if attn_mask is not None:
        if attn_mask.dim() > dims:
            return NotImplemented
        missing = dims - attn_mask.dim()
        given.append(attn_mask.reshape(attn_mask.shape[0], *[1] * missing, *attn_mask.shape[1:]))
    B, N = max(t.shape[0] for t in given), query.shape[1]
    if any(t.shape[1] not in (1, N) for t in given):
        return NotImplemented
    # a mask that is the same for all stays small
    joined = [t[0] if t.shape[:2] == (1, 1) and i == 3 else join(t, B, N) for i, t in enumerate(given)]
    y = F.scaled_dot_product_attention(*joined, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)  # type: ignore[arg-type]
    return y.unflatten(0, (B, N))


def join(t: Tensor, B: int, N: int) -> Tensor:
    return t.expand(B, N, *t.shape[2:]).flatten(0, 1)


def opened(function: Callable[..., Any]) -> FunctionType:
    """A Python function of torch that does not offer itself to the rules, as what it calls still does."""
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


heads = opened(F.multi_head_attention_forward)
"""`F.multi_head_attention_forward`, its projections and its product each a call that the path may answer."""
