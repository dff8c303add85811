"""Networks of torchvision, torch and the literature that nobody here wrote: every path agrees or refuses."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_PATH, assert_same, definition, random_phi, results, told
from test_any_module import Lambda
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import functional_hyper as fh

torchvision = pytest.importorskip("torchvision")
models: Any = torchvision.models

B, N, D = 2, 2, torch.float64
TOLERANCE = 1e-8
OTHERS = tuple(path for path in EVERY_PATH if path != "loop")

# ------------------------------------------------------------------------------------------------ small variants


def vgg11_narrow() -> nn.Module:
    """vgg11 of torchvision with a sixteenth of its channels, and the classifier that fits them."""
    widths = [w if w == "M" else w // 16 for w in models.vgg.cfgs["A"]]
    with torch.device("meta"):  # its own classifier has a hundred million weights
        net = models.VGG(models.vgg.make_layers(widths), num_classes=3, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier[0] = nn.Linear(32, 8)
    net.classifier[3] = nn.Linear(8, 8)
    net.classifier[6] = nn.Linear(8, 3)
    net.features.to_empty(device="cpu")
    for module in net.features:
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return net.eval()


def with_statistics(net: nn.Module) -> nn.Module:
    """Eval mode, with running statistics that matter."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


class UNet(nn.Module):
    """Two scales down and up, with skips."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.enter, self.down = self.block(2, width), self.block(width, 2 * width)
        self.bottom = self.block(2 * width, 4 * width)
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.right = self.block(4 * width, width)
        self.leave, self.out = self.block(2 * width, width), nn.Conv2d(width, 1, 1)

    @staticmethod
    def block(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(2, o), nn.SiLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        a = self.enter(x)
        b = self.down(F.max_pool2d(a, 2))
        y = self.right(torch.cat([self.up(self.bottom(F.avg_pool2d(b, 2))), b], 1))
        y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.leave(torch.cat([y, a], 1)))


class Siren(nn.Module):
    """Sitzmann et al. 2020, with their initialisation."""

    def __init__(self, *widths: int, omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        for n, layer in enumerate(self.layers):
            bound = 1 / widths[n] if n == 0 else (6 / widths[n]) ** 0.5 / omega
            nn.init.uniform_(layer.weight, -bound, bound)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.sin(self.omega * layer(x))
        return last(x)


def stateful(cell: nn.Module) -> nn.Module:
    return Lambda(lambda m, x, h, c: m.cell(x, (h, c)), cell=cell)


def attend(attention: nn.Module, **options: Any) -> nn.Module:
    return Lambda(lambda m, q, k, v: m.a(q, k, v, **options), a=attention)


CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False, False, True], [False, True, True]])

# ------------------------------------------------------------------------------------------------ the networks


@dataclass(frozen=True)
class Known:
    """One network.

    Args:
        make: the module.
        shapes: of its inputs, as one network gets them.
        include: the parameters to generate, where they are too many; the others stay the module's own.
        structured: the weights to generate as factors; None leaves that out.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    include: tuple[str, ...] | None = None
    structured: tuple[str, ...] | None = ("*",)


IMAGE = ((N, 3, 32, 32),)
SEQUENCE = ((N, 3, 4),)
SOME_OF_RESNET = ("conv1.weight", "bn1.*", "layer1.0.conv1.weight", "layer2.0.downsample.*", "layer4.1.bn2.*", "fc.*")
SOME_OF_MOBILENET = ("features.0.*", "features.1.*", "features.4.block.2.*", "classifier.*")
SOME_OF_SQUEEZENET = ("features.0.*", "features.3.*", "features.12.expand3x3.*", "classifier.1.*")


def small_groups(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


def resnet18(**options: Any) -> nn.Module:
    return models.resnet18(num_classes=3, **options)


def vision_transformer() -> nn.Module:
    net = models.VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
    nn.init.normal_(net.heads.head.weight, std=0.3)  # torchvision starts it at zero, and hides what comes before
    return net


def known_of_vision() -> dict[str, Known]:
    return {
        "resnet18, group norm": Known(
            lambda: resnet18(norm_layer=small_groups), IMAGE, SOME_OF_RESNET, ("bn1.*", "fc.*")
        ),
        "resnet18, batch norm, eval": Known(
            lambda: with_statistics(resnet18()), IMAGE, SOME_OF_RESNET, ("bn1.*", "fc.*")
        ),
        "mobilenet_v3_small, eval": Known(
            lambda: with_statistics(models.mobilenet_v3_small(num_classes=3, width_mult=0.25)),
            IMAGE,
            SOME_OF_MOBILENET,
            ("features.0.*", "classifier.3.*"),
        ),
        "squeezenet1_1, eval": Known(
            lambda: models.squeezenet1_1(num_classes=3).eval(), IMAGE, SOME_OF_SQUEEZENET, ("classifier.1.*",)
        ),
        "vgg11, eval": Known(vgg11_narrow, IMAGE, None, ("features.0.*", "classifier.*")),
        "vision transformer": Known(vision_transformer, ((N, 3, 16, 16),)),
        "vision transformer, eval": Known(lambda: vision_transformer().eval(), ((N, 3, 16, 16),)),
        "torchvision mlp": Known(
            lambda: torchvision.ops.MLP(5, [6, 4], norm_layer=nn.LayerNorm, inplace=True), ((N, 5),)
        ),
        "torchvision mlp, eval": Known(lambda: torchvision.ops.MLP(5, [6, 4], dropout=0.5).eval(), ((N, 5),)),
    }


def encoder_layers() -> dict[str, Known]:
    def make(training: bool, **options: Any) -> nn.Module:
        return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, **options).train(training)

    return {
        f"encoder layer, norm {'first' if norm_first else 'last'}, {'batch' if batch_first else 'sequence'} first, "
        f"{'train' if training else 'eval'}": Known(
            partial(make, training, norm_first=norm_first, batch_first=batch_first), SEQUENCE
        )
        for norm_first in (False, True)
        for batch_first in (False, True)
        for training in (False, True)
    }


def stacks() -> dict[str, Known]:
    """Whole encoders; eval mode may pack a padded batch into a nested tensor, and return zeros for the padding."""

    def padded(**options: Any) -> nn.Module:
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        net = nn.TransformerEncoder(layer, 2, **options)
        return Lambda(lambda m, x: m.net(x, src_key_padding_mask=PADDED), net=net).eval()

    def causal() -> nn.Module:
        net = nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, batch_first=True)
        mask = torch.zeros(3, 3, dtype=D).masked_fill(CAUSAL, -torch.inf)
        return Lambda(lambda m, x, y: m.net(x, y, tgt_mask=mask), net=net)

    return {
        "encoder, padded, eval": Known(padded, SEQUENCE),
        "encoder, padded, eval, mask unchecked": Known(partial(padded, mask_check=False), SEQUENCE),
        "encoder, padded, eval, never nested": Known(partial(padded, enable_nested_tensor=False), SEQUENCE),
        "transformer, causal": Known(causal, SEQUENCE * 2),
    }


def recurrent() -> dict[str, Known]:
    found = {
        "lstm cell": Known(lambda: nn.LSTMCell(4, 3), ((N, 4),)),
        "lstm cell, with a state": Known(lambda: stateful(nn.LSTMCell(4, 3)), ((N, 4), (N, 3), (N, 3))),
        "gru cell": Known(lambda: nn.GRUCell(4, 3), ((N, 4), (N, 3))),
        "rnn cell": Known(lambda: nn.RNNCell(4, 3), ((N, 4), (N, 3))),
        "rnn cell, relu": Known(lambda: nn.RNNCell(4, 3, nonlinearity="relu"), ((N, 4),)),
    }
    for name, layer in {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}.items():
        deep = {"num_layers": 2, "bidirectional": True}
        found[name] = Known(partial(layer, 4, 3), SEQUENCE)
        found[f"{name}, deep"] = Known(partial(layer, 4, 3, batch_first=True, **deep), SEQUENCE)
        found[f"{name}, deep, one sequence"] = Known(partial(layer, 4, 3, bias=False, **deep), ((3, 4),))
    found["lstm, projected"] = Known(lambda: nn.LSTM(4, 3, proj_size=2), SEQUENCE)
    return found


def others() -> dict[str, Known]:
    MHA, three = partial(nn.MultiheadAttention, 4, 2), SEQUENCE * 3
    return {
        "u-net": Known(UNet, ((N, 2, 8, 8),)),
        "siren": Known(lambda: Siren(2, 8, 8, 1), ((N, 2),)),
        "attention": Known(lambda: attend(MHA()), three),
        "attention, batch first, no weights": Known(lambda: attend(MHA(batch_first=True), need_weights=False), three),
        "attention, causal": Known(lambda: attend(MHA(batch_first=True), attn_mask=CAUSAL), three),
        "attention, padded": Known(lambda: attend(MHA(batch_first=True), key_padding_mask=PADDED), three),
        "attention, padded, eval": Known(lambda: attend(MHA(batch_first=True), key_padding_mask=PADDED).eval(), three),
        "attention, added keys": Known(lambda: attend(MHA(add_bias_kv=True, add_zero_attn=True)), three),
        "attention, other widths": Known(lambda: attend(MHA(kdim=3, vdim=5)), ((2, N, 4), (3, N, 3), (3, N, 5))),
        "attention, eval": Known(lambda: attend(MHA(batch_first=True)).eval(), three),
        "bilinear": Known(lambda: nn.Bilinear(4, 3, 2), ((N, 4), (N, 3))),
        "weight norm": Known(lambda: parametrizations.weight_norm(nn.Linear(4, 3)), ((N, 4),)),
        "weight norm, convolution": Known(lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), ((N, 2, 5, 5),)),
        "weight norm, columns": Known(lambda: parametrizations.weight_norm(nn.Linear(4, 3), dim=1), ((N, 4),)),
    }


NETWORKS = known_of_vision() | encoder_layers() | stacks() | recurrent() | others()

REFUSED = {"encoder, padded, eval": "_nested_tensor_from_mask_left_aligned"}
"""Network -> the operation that every path but `loop` refuses without gradients: functorch has neither a batching rule
for it nor a fallback. With gradients, and for all others, every path agrees with the loop."""

# ------------------------------------------------------------------------------------------------ the comparison


@cache
def build(name: str) -> tuple[nn.Module, fh.ParamSpec, dict[str, Tensor], tuple[Tensor, ...]]:
    """The module, what is generated, weights near its own for B networks, and their inputs."""
    known = NETWORKS[name]
    torch.manual_seed(1)
    main = known.make().double()
    spec = fh.param_spec(main, include=known.include)
    own = dict(main.named_parameters())
    params = {n: own[n].detach() + 0.1 * torch.randn(B, *own[n].shape, dtype=D) for n in spec.names}
    return main, spec, params, tuple(torch.randn(B, *shape, dtype=D) for shape in known.shapes)


def stay(main: nn.Module, spec: fh.ParamSpec) -> tuple[Tensor, ...]:
    """The parameters that are the module's own: they have a gradient, too."""
    return tuple(p for n, p in main.named_parameters() if n not in spec.names)


def dense_results(name: str, path: str | None) -> dict[str, Tensor]:
    main, spec, params, x = build(name)
    how = definition if path is None else partial(fh.evaluate, path=path)
    return results(lambda params, x: how(main, params, x, many=True), (params, x), stay(main, spec))


@cache
def looped(name: str) -> dict[str, Tensor]:
    return dense_results(name, "loop")


def structured_results(name: str, path: str) -> dict[str, Tensor]:
    main, _, _, x = build(name)
    spec = fh.param_spec(main, include=NETWORKS[name].structured)
    hyper = fh.full(spec, 2, (3,))
    cond = torch.linspace(-1, 1, 2 * B, dtype=D).reshape(B, 2)
    return results(fh.compose(hyper, main, path, many=True), (random_phi(hyper), cond, x))


def refused(name: str) -> Any:
    """The context that expects the refusal of the table."""
    got = rf'got {re.escape(REFUSED[name])} \(Batching rule not implemented .*use path="loop"'
    return pytest.raises(fh.Refused, match=got)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loop_is_the_definition(name: str) -> None:
    assert_same(looped(name), dense_results(name, None), TOLERANCE)


@pytest.mark.parametrize("path", OTHERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_dense_weights(name: str, path: str) -> None:
    main, *_ = build(name)
    before = {k: v.clone() for k, v in main.state_dict().items()}
    assert_same(dense_results(name, path), looped(name), TOLERANCE)
    assert all(torch.equal(v, before[k]) for k, v in main.state_dict().items())


@pytest.mark.parametrize("path", ["contracted", "auto"])
@pytest.mark.parametrize("name", [n for n in NETWORKS if NETWORKS[n].structured])
def test_structured_weights(name: str, path: str) -> None:
    with told("as factors"):
        assert_same(structured_results(name, path), structured_results(name, "loop"), TOLERANCE)


WITHOUT_GRADIENTS = [n for n in NETWORKS if "eval" in n and ("encoder" in n or "attention" in n)]


@pytest.mark.parametrize("path", OTHERS)
@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_fast_kernels_of_inference(name: str, path: str) -> None:
    """Without gradients torch's own attention may take another route in eval mode."""
    main, _, params, x = build(name)
    run = partial(fh.evaluate, main, params, x, many=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = run("loop")
        if "mask unchecked" in name:  # only the loop would pack the batch, and pad it with zeros
            with pytest.raises(fh.Refused, match=r"no packed sequences.*enable_nested_tensor=False"):
                run(path)
            return
        if name in REFUSED:
            with refused(name):
                run(path)
            return
        torch.testing.assert_close(run(path), want, rtol=TOLERANCE, atol=1e-12)
