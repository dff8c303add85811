"""What a spec knows of each parameter is what torch's own layers do with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import functional_hyper as fh

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 5),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "conv2d": lambda: nn.Conv2d(4, 6, (3, 2)),
    "conv2d, groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "conv_transpose1d": lambda: nn.ConvTranspose1d(4, 6, 3),
    "conv_transpose2d, groups": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "bilinear": lambda: nn.Bilinear(3, 4, 5),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "lstm, projected": lambda: nn.LSTM(3, 4, proj_size=2),
    "gru": lambda: nn.GRU(3, 4),
    "rnn": lambda: nn.RNN(3, 4),
    "lstm cell": lambda: nn.LSTMCell(3, 4),
    "attention": lambda: nn.MultiheadAttention(6, 2),
    "attention, kdim": lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=5, add_bias_kv=True),
    "embedding": lambda: nn.Embedding(5, 4),
    "embedding bag": lambda: nn.EmbeddingBag(5, 4),
    "layer norm": lambda: nn.LayerNorm(6),
    "rms norm": lambda: nn.RMSNorm(6),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "batch norm": lambda: nn.BatchNorm2d(6),
    "instance norm": lambda: nn.InstanceNorm1d(6, affine=True),
    "prelu": lambda: nn.PReLU(4),
    "encoder layer": lambda: nn.TransformerEncoderLayer(6, 2, 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_draws_are_torchs_own(name: str) -> None:
    torch.manual_seed(0)
    slots = fh.param_spec(LAYERS[name]()).slots
    samples: dict[str, list[torch.Tensor]] = {s.name: [] for s in slots}
    for _ in range(max(20, 6000 // min(s.size for s in slots))):
        for n, p in LAYERS[name]().named_parameters():
            samples[n].append(p.detach().flatten())
    for slot in slots:
        values = torch.cat(samples[slot.name])
        n, std = len(values), slot.draw.std
        assert abs(values.mean().item() - slot.draw.mean) <= 5 * std / math.sqrt(n) + 1e-6, slot
        if std == 0:
            assert values.std() == 0, slot
            continue
        assert values.std().item() == pytest.approx(std, rel=5 / math.sqrt(n)), slot
        kurtosis = (values - values.mean()).pow(4).mean().item() / values.var().item() ** 2
        assert (kurtosis < 2.4) == (slot.draw.law == "uniform"), slot


@pytest.mark.parametrize("law", ["uniform", "normal", "constant"])
def test_a_draw_samples_what_it_says(law: Any) -> None:
    draw = type(fh.param_spec(nn.Linear(2, 2)).slots[0].draw)(law, 0.7)
    values = draw.sample((20000,), torch.Generator().manual_seed(0), torch.float64)
    assert values.mean().item() == pytest.approx(draw.mean, abs=0.02)
    assert values.std().item() == pytest.approx(draw.std, rel=0.02, abs=1e-12)
    assert torch.equal(values, draw.sample((20000,), torch.Generator().manual_seed(0), torch.float64))


# layer: {parameter: (kind, is a bias, fan in, fan out, receptive field)}
KNOWN = [
    (nn.Linear(7, 5), {"weight": ("linear", False, 7, 5, 1), "bias": ("linear", True, 7, 5, 1)}),
    (nn.Conv2d(4, 6, 3, groups=2), {"weight": ("conv", False, 2, 3, 9), "bias": ("conv", True, 2, 3, 9)}),
    (nn.ConvTranspose1d(4, 6, 3), {"weight": ("conv", False, 4, 6, 3), "bias": ("conv", True, 4, 6, 3)}),
    (nn.LayerNorm(6), {"weight": ("norm", False, 1, 1, 1), "bias": ("norm", True, 1, 1, 1)}),
    (nn.Embedding(5, 4), {"weight": ("embedding", False, 1, 4, 1)}),
    (nn.PReLU(4), {"weight": ("other", False, 1, 1, 1)}),
    (nn.LSTM(3, 4), {"weight_ih_l0": ("linear", False, 3, 4, 1), "weight_hh_l0": ("linear", False, 4, 4, 1)}),
    (
        nn.MultiheadAttention(6, 2),
        {"in_proj_weight": ("linear", False, 6, 6, 1), "in_proj_bias": ("linear", True, 6, 6, 1)},
    ),
]


@pytest.mark.parametrize(
    ("layer", "expected"), KNOWN, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_kinds_and_fans(layer: nn.Module, expected: dict[str, tuple[str, bool, int, int, int]]) -> None:
    slots = {s.name: s for s in fh.param_spec(nn.Sequential(layer)).slots}
    for name, want in expected.items():
        s = slots[f"0.{name}"]
        assert (s.kind, s.is_bias, s.fan_in, s.fan_out, s.receptive) == want


def test_a_pytree_goes_by_shape() -> None:
    tree = {"w": torch.zeros(4, 3), "k": torch.zeros(4, 3, 5), "b": torch.zeros(4), "g": torch.zeros(())}
    slots = {s.name: s for s in fh.param_spec(tree).slots}
    assert (slots["w"].kind, slots["w"].fan_in, slots["w"].fan_out) == ("linear", 3, 4)
    assert slots["w"].draw.std == pytest.approx(1 / math.sqrt(3 * 3))
    assert (slots["k"].kind, slots["k"].fan_in, slots["k"].receptive) == ("conv", 3, 5)
    assert slots["b"].is_bias
    assert slots["b"].draw.std == slots["g"].draw.std == 0


def test_pairs_of_weight_and_bias() -> None:
    paired = lambda *args, **kw: {s.name: s.paired for s in fh.param_spec(*args, **kw).slots}
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
    assert paired(net) == {"0.weight": True, "0.bias": True, "1.weight": False}
    assert paired(net, include="*.weight") == {"0.weight": False, "1.weight": False}
    assert paired(nn.LSTM(2, 3)) == dict.fromkeys(["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"], True)
