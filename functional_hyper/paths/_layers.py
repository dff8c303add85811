"""Layers that functorch has no rule for, or a slow one, in terms of calls that every path answers.

Each function has the signature of the torch call it stands for, and is entered with the path's rules still in force, so
that the `F.linear` inside is the path's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._attention import heads

State = tuple[Tensor, ...]


def lstm_gates(gates: Tensor, state: State) -> State:
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_gates(x: Tensor, h: Tensor, state: Tensor) -> Tensor:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    z, n = (xz + hz).sigmoid(), torch.tanh(xn + (xr + hr).sigmoid() * hn)
    return n + z * (state - n)


def lstm_step(x: Tensor, state: State, w: Tensor, b: Any, project: Any) -> State:
    h, c = lstm_gates(x + F.linear(state[0], w, b), state)
    return (h if project is None else F.linear(h, project)), c


def gru_step(x: Tensor, state: State, w: Tensor, b: Any, project: Any) -> State:
    return (gru_gates(x, F.linear(state[0], w, b), state[0]),)


def rnn_step(activation: Callable[[Tensor], Tensor]) -> Callable[..., State]:
    return lambda x, state, w, b, project: (activation(x + F.linear(state[0], w, b)),)


def cell(step: Callable[..., State]) -> Callable[..., Any]:
    """`torch.gru_cell` and its like: one step of one layer."""

    def one(input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
        lstm = step is lstm_step
        state = step(F.linear(input, w_ih, b_ih), tuple(hx) if lstm else (hx,), w_hh, b_hh, None)
        return state if lstm else state[0]

    return one


def layers(step: Callable[..., State]) -> Callable[..., Any]:
    """`torch.lstm` and its like: several layers, one or two directions, over a whole sequence."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 9 or not isinstance(args[2], Sequence):
            return NotImplemented  # a packed sequence
        input, hx, weights, biases, depth, dropout, train, bidirectional, batch_first = args
        sides, each = 1 + bidirectional, 4 if biases else 2
        states = tuple(hx) if step is lstm_step else (hx,)
        each += len(weights) > each * depth * sides  # a projection
        x = input.transpose(0, 1) if batch_first else input
        ends: list[State] = []
        for layer in range(depth):
            outs = []
            for side in range(sides):
                at = layer * sides + side
                w_ih, w_hh, *more = weights[at * each : (at + 1) * each]
                b_ih, b_hh = more[:2] if biases else (None, None)
                project = more[-1] if each in (3, 5) else None
                out, end = scan(step, F.linear(x, w_ih, b_ih), tuple(s[at] for s in states), w_hh, b_hh, project, side)
                outs.append(out)
                ends.append(end)
            x = torch.cat(outs, -1)
            if dropout and train and layer < depth - 1:
                x = F.dropout(x, dropout, True)
        last = [torch.stack(parts) for parts in zip(*ends, strict=True)]
        return (x.transpose(0, 1) if batch_first else x, *last)

    return run


def scan(step: Any, x: Tensor, state: State, w: Tensor, b: Any, project: Any, backwards: int) -> tuple[Tensor, State]:
    """One direction of one layer; x ``(T, N, ...)`` is what the layer makes of its input."""
    outs: list[Tensor] = []
    for row in reversed(x.unbind(0)) if backwards else x.unbind(0):
        state = step(row, state, w, b, project)
        outs.append(state[0])
    return torch.stack(outs[::-1] if backwards else outs), state


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    y = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [d for d in range(v.dim()) if d != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


tanh, relu = rnn_step(torch.tanh), rnn_step(torch.relu)
PARTS: dict[Any, Callable[..., Any]] = {
    torch.lstm_cell: cell(lstm_step),
    torch.gru_cell: cell(gru_step),
    torch.rnn_tanh_cell: cell(tanh),
    torch.rnn_relu_cell: cell(relu),
    torch.lstm: layers(lstm_step),
    torch.gru: layers(gru_step),
    torch.rnn_tanh: layers(tanh),
    torch.rnn_relu: layers(relu),
    F.bilinear: bilinear,
    torch._weight_norm: weight_norm,
    F.multi_head_attention_forward: heads,
}
"""torch function -> the same in parts."""
