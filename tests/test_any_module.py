"""Main networks as modules: every path is right or refuses by name, whatever layers they are made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_PATH, assert_same, hypernet, mlp, model_results, random_phi, results, told
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import functional_hyper as fh

B, N, D = 3, 4, torch.float64
KINDS = ("dense", "full", "low rank", "scaled")


class Lambda(nn.Module):
    """A module of modules with a forward of its own, ``forward(modules, *x)``."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *x: Any) -> Any:
        return self.function(self, *x)


class Gain(nn.Module):
    """A parameter without dims, a list and a dict of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.list = nn.ParameterList([torch.ones(4, 5), torch.ones(4)])
        self.dict = nn.ParameterDict({"shift": torch.zeros(1, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.linear(x, *self.list).tanh() + self.dict["shift"]


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    net[4].weight = net[0].weight
    return net


def decoder_tied() -> nn.Module:
    return Lambda(lambda m, x: F.linear(m.a(x).tanh(), m.a.weight.t()), a=nn.Linear(5, 4))


def moved_statistics(norm: Any) -> nn.Module:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm.eval()


def hooked() -> nn.Module:
    net: Any = mlp(5, 4, 2)
    net[0].register_forward_hook(lambda m, x, y: y + m.weight.sum())
    return net


def of_parameters(m: Any, x: Tensor) -> Any:
    return {"y": m.net(x), "decay": sum(p.square().sum() for p in m.parameters())}


def self_attention(first: bool) -> nn.Module:
    attention = nn.MultiheadAttention(4, 2, batch_first=first)
    return Lambda(lambda m, x: m.a(x.unflatten(-1, (2, -1)), *[x.unflatten(-1, (2, -1))] * 2)[0], a=attention)


def encoder_layer(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, **options)
    return Lambda(lambda m, x: m.layer(x.unflatten(-1, (2, -1))), layer=layer)


def sequence(layer: nn.Module) -> nn.Module:
    return Lambda(lambda m, x: m.layer(x.unflatten(-1, (2, -1)))[0], layer=layer)


def image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 4, 4)), *layers)


Make = Callable[[], nn.Module]

# name: (module, shape of one input or the size of a vocabulary)
RIGHT: dict[str, tuple[Make, tuple[int, ...] | int]] = {
    "mlp": (lambda: mlp(5, 4, 2), (5,)),
    "no bias": (lambda: mlp(5, 4, 2, bias=False), (5,)),
    "in-place relu": (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), (5,)),
    "more dims": (lambda: mlp(5, 4, 2), (2, 3, 5)),
    "one layer used twice": (lambda: Lambda(lambda m, x: m.a(m.a(x).sin()), a=nn.Linear(5, 5)), (5,)),
    "tied": (tied, (5,)),
    "tied decoder": (decoder_tied, (5,)),
    "residual": (lambda: Lambda(lambda m, x: x + m.a(x) - x.mean(0), a=nn.Linear(5, 5)), (5,)),
    "of its parameters": (lambda: Lambda(of_parameters, net=mlp(5, 4)), (5,)),
    "zero dims, lists, dicts": (Gain, (5,)),
    "hook": (hooked, (5,)),
    "prelu": (lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.PReLU(4)), (5,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.RMSNorm(4)), (5,)),
    "group norm": (
        lambda: image(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)),
        (32,),
    ),
    "instance norm": (lambda: image(nn.InstanceNorm2d(2, affine=True)), (32,)),
    "batch norm, eval": (lambda: nn.Sequential(nn.Linear(5, 4), moved_statistics(nn.BatchNorm1d(4))), (5,)),
    "batch norm, untracked": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        (5,),
    ),
    "convolutions": (
        lambda: image(nn.Conv2d(2, 4, 3, groups=2, stride=2, padding=1), nn.ConvTranspose2d(4, 2, 2)),
        (32,),
    ),
    "circular convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, -1)), nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular")),
        (12,),
    ),
    "embedding": (lambda: nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 2)), 2),
    "attention": (lambda: self_attention(True), (8,)),
    "attention, sequence first": (lambda: self_attention(False), (8,)),
    "encoder layer": (lambda: encoder_layer(batch_first=True), (8,)),
    "encoder layer, norm first": (lambda: encoder_layer(norm_first=True), (8,)),
    "encoder layer, eval": (lambda: encoder_layer(batch_first=True).eval(), (8,)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 4)), (5,)),
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Linear(5, 4)), (5,)),
    "spectral norm, eval": (lambda: parametrizations.spectral_norm(nn.Linear(5, 4)).eval(), (5,)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map="cayley"), (5,)),
    "dropout, eval": (lambda: nn.Sequential(nn.Dropout(), nn.Linear(5, 4)).eval(), (5,)),
}
MAY_REFUSE: dict[str, tuple[Make, tuple[int, ...] | int]] = {
    "embedding bag": (lambda: nn.EmbeddingBag(6, 4), 2),
    "lstm": (lambda: sequence(nn.LSTM(4, 3, batch_first=True, bidirectional=True)), (8,)),
    "gru": (lambda: sequence(nn.GRU(4, 3)), (8,)),
    "rnn": (lambda: sequence(nn.RNN(4, 3)), (8,)),
    "lstm cell": (lambda: Lambda(lambda m, x: m.layer(x)[0], layer=nn.LSTMCell(5, 3)), (5,)),
    "gru cell": (lambda: Lambda(lambda m, x: m.layer(x), layer=nn.GRUCell(5, 3)), (5,)),
    "bilinear": (lambda: Lambda(lambda m, x: m.layer(x, x.flip(0)), layer=nn.Bilinear(5, 5, 3)), (5,)),
}
EVERY = RIGHT | MAY_REFUSE


@cache
def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    make, shape = EVERY[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of what is tested here
        main = make().double()
    if isinstance(shape, int):
        return main, torch.randint(6, (B, N, shape))
    return main, torch.randn(B, N, *shape, dtype=D)


SLOW = ("embedding bag",)
"""Right on every path, by vmap's slow fallback, of which torch warns."""


@cache
def problem(name: str, kind: str) -> tuple[fh.Hypernet, Any, dict[str, Tensor]]:
    """The hypernetwork, the arguments of the model, and what they must give."""
    main, x = build(name)
    hyper = hypernet("full" if kind == "dense" else kind, fh.param_spec(main))
    arguments = (random_phi(hyper, 5), torch.randn(B, 2, dtype=D), x)
    return hyper, arguments, model_results(hyper, main, None, *arguments, many=True)


def model(hyper: fh.Hypernet, kind: str, main: Any, path: str) -> Callable[..., Any]:
    if kind != "dense":
        return fh.compose(hyper, main, path, many=True)
    return lambda phi, cond, x: fh.evaluate(main, fh.unravel(hyper.spec, hyper.apply(phi, cond)), x, path, many=True)


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("name", EVERY)
def test_right_or_refused(name: str, path: str) -> None:
    main, _ = build(name)
    before = {k: v.clone() for k, v in main.state_dict().items()}
    for kind in KINDS:
        hyper, arguments, want = problem(name, kind)
        with told(kind), warnings.catch_warnings():
            if name in SLOW:
                warnings.simplefilter("ignore")
            try:
                got = results(model(hyper, kind, main, path), arguments)
            except fh.Refused as refused:
                if name not in MAY_REFUSE or path == "loop" or "loop" not in str(refused):
                    raise
                continue
            assert_same(got, want)
    assert all(torch.equal(v, before[k]) for k, v in main.state_dict().items())
    for module in main.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):
                value.detach().numpy()  # an error for a tensor that a transform has left behind
