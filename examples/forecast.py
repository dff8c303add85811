"""Forecasts of driven, damped pendulums of unknown and known kinds: a vector field generated for each pendulum.

Every pendulum has its own length, damping and drive. Five ways to forecast it, each trained as long as the others:

- shared: one vector field for all, the weakest baseline;
- inputs, wide: one vector field that reads the controls as further inputs, with a main network as large as that of the
  hypernetworks, and with as many trained numbers as they have: the strong baselines;
- controls: a hypernetwork generates each pendulum's vector field from its known controls;
- support: a hypernetwork generates it from the pendulum's first observations, the controls unknown.

The training sees short segments of the trajectories, many of them at once; the error is the root mean square of the
angle over a whole horizon of 5 s, for controls as in training and beyond their range: shorter, so faster, pendulums
that are driven harder.
"""

import argparse
import math
from collections.abc import Callable

import checkpoints
import pictures
import torch
from dynamics import Phi, fit, options, simulate, solver
from torch import Tensor, nn

import functional_hyper as fh
from functional_hyper import ode

LOW, HIGH = torch.tensor([0.5, 0.0, 0.0]), torch.tensor([1.5, 0.5, 1.0])  # length, damping, drive
STEP, SUPPORT, HORIZON, SEGMENT = 0.125, 20, 40, 5  # intervals: 2.5 s observed, 5 s forecast
RATE = 2.0  # of the drive, rad/s
SCALE = torch.tensor([1.0, 3.0])  # of angles and speeds in the loss
ARMS = ("shared", "inputs", "wide", "controls", "support")


def pendulums(count: int, generator: torch.Generator, beyond: float = 0.0) -> tuple[Tensor, Tensor]:
    """Controls ``(count, 3)`` in [-1, 1], or up to `beyond` outside, and trajectories ``(T, count, 2)``."""
    u = 2 * torch.rand(count, 3, generator=generator) - 1
    if beyond:
        u[:, 0], u[:, 2] = -1 - beyond * u[:, 0].abs(), 1 + beyond * u[:, 2].abs()
    length, damping, drive = (LOW + (HIGH - LOW) * (u + 1) / 2).T
    y0 = (2 * torch.rand(count, 2, generator=generator) - 1) * torch.tensor([2.0, 1.0])

    def rhs(t: Tensor, y: Tensor) -> Tensor:
        angle, speed = y.unbind(-1)
        return torch.stack([speed, -9.81 / length * angle.sin() - damping * speed + drive * (RATE * t).cos()], -1)

    return u, simulate(rhs, y0, STEP * torch.arange(SUPPORT + HORIZON + 1))


def field(
    net: Callable[[Tensor], Tensor], t: Tensor, y: Tensor, started: Tensor, controls: Tensor | None = None
) -> Tensor:
    """What the main network reads: angle on the circle, speed, the drive's phase, the controls if they are inputs."""
    angle, speed = y.unbind(-1)
    phase = RATE * (started + t)
    seen = torch.stack([angle.sin(), angle.cos(), speed / 3, phase.cos(), phase.sin()], -1)
    return net(seen if controls is None else torch.cat([seen, controls], -1)) * SCALE.to(y)


class SetEncoder(nn.Module):
    """The mean of what a small network makes of consecutive observations: ``(B, 21, 5)`` -> ``(B, 16)``."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.all = nn.Linear(64, 16)

    def forward(self, seen: Tensor) -> Tensor:
        pairs = torch.cat([seen[:, :-1], 8 * (seen[:, 1:] - seen[:, :-1])], -1)
        return self.all(self.each(pairs).mean(1))


class Arm:
    """One way to forecast: ``arm(phi, u, y, starts (N,), length)`` -> states ``(length + 1, B, N, 2)``."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        width = 210 if name == "wide" else 48  # 210: as many trained numbers as the hypernetworks
        self.name, self.inputs = name, name in ("inputs", "wide")
        layers = [nn.Linear(8 if self.inputs else 5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
        self.main = nn.Sequential(*layers, nn.Linear(width, 2)).to(args.device)
        spec = fh.param_spec(self.main)
        self.one = name in ("shared", "inputs", "wide")  # one network for all pendulums
        if self.one:
            self.hyper = fh.with_embedding(fh.with_base(fh.full(spec, in_features=1, hidden=())), 1)
        else:
            self.hyper = fh.with_base(
                fh.full(spec, in_features=3 if name == "controls" else 16, hidden=(64, 16), activation="silu")
            )
        if name == "support":
            self.hyper = fh.with_encoder(self.hyper, SetEncoder())
        self.args = args

    def cond(self, u: Tensor, y: Tensor) -> Tensor:
        if self.one:
            return torch.zeros(1, dtype=torch.long, device=u.device)
        if self.name == "controls":
            return u
        now = RATE * STEP * torch.arange(SUPPORT + 1, device=y.device).expand(y.shape[1], -1)
        angle, speed = y[: SUPPORT + 1].permute(2, 1, 0)
        return torch.stack([angle.sin(), angle.cos(), speed / 3, now.cos(), now.sin()], -1)

    def __call__(self, phi: Phi, u: Tensor, y: Tensor, starts: Tensor, length: int, training: bool = False) -> Tensor:
        B, N = len(u), len(starts)
        y0 = y[starts].transpose(0, 1)
        args = [(STEP * starts).expand(B, N)]
        if self.inputs:
            args.append(u.unsqueeze(1).expand(B, N, -1))
        if self.one:  # its inputs are all segments of all pendulums
            y0, *args = [a.flatten(0, 1).unsqueeze(0) for a in (y0, *args)]
        weights = self.hyper.weights(phi, self.cond(u, y))
        t = STEP * torch.arange(length + 1, device=u.device)
        how = solver(self.args, training)
        return ode.solve(self.main, weights, y0, t, many=True, field=field, args=tuple(args), **how).view(-1, B, N, 2)


def train(arm: Arm, phi: Phi, u: Tensor, y: Tensor, args: argparse.Namespace) -> None:
    """Segments side by side from a random first one, all at once; pendulums in random batches."""
    scale = SCALE.to(u)
    first = SUPPORT if arm.name == "support" else 0  # a forecast does not overlap what it was made from
    side_by_side = SEGMENT * torch.arange((len(y) - 1 - first) // SEGMENT - 1, device=u.device) + first

    def loss(generator: torch.Generator) -> Tensor:
        starts = side_by_side + int(torch.randint(SEGMENT, (), generator=generator))
        rows = torch.randperm(len(u), generator=generator)[: args.batch].to(u.device)
        got = arm(phi, u[rows], y[:, rows], starts, SEGMENT, training=True)
        want = torch.stack([y[starts + k][:, rows] for k in range(SEGMENT + 1)]).transpose(1, 2)
        return ((got - want)[1:] / scale).square().mean()

    fit(arm.name, phi, loss, args, lr=3e-3, minutes=args.minutes, spec=arm.hyper.spec)


def errors(arm: Arm, phi: Phi, u: Tensor, y: Tensor) -> Tensor:
    """The angle's root mean square error at each time of the forecast."""
    with torch.no_grad():
        got = arm(phi, u, y, torch.tensor([SUPPORT], device=u.device), HORIZON)[:, :, 0]
        return (got - y[SUPPORT:])[..., 0].square().mean(1).sqrt()


def plot(args: argparse.Namespace, curves: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Forecast error against horizon."""
    figure, axes = pictures.panels("Forecasts of driven, damped pendulums", 2)
    axes[1].sharey(axes[0])
    for axis, k, title in zip(axes, (0, 1), ("controls as in training", "shorter, driven harder"), strict=True):
        for name, curve in curves.items():
            axis.semilogy(STEP * torch.arange(1, HORIZON + 1), curve[k][1:].cpu(), label=name)
        axis.set(title=title, xlabel="horizon (s)", ylabel="angle RMSE")
    axes[0].legend()
    pictures.save(figure, args.out / "forecast.png")


def main(arguments: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Trains the arms and compares them; returns their errors, as in training and beyond."""
    parser = options(__doc__, "forecast", minutes=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="each is trained for --minutes")
    parser.add_argument("--batch", type=int, default=128, help="pendulums a step")
    args = parser.parse_args(arguments)
    checkpoints.make_writable(args.out)
    generator = torch.Generator().manual_seed(args.seed)
    sets = [pendulums(n, generator, beyond) for n, beyond in ((1024, 0.0), (256, 0.0), (256, 0.3))]
    learned, tested, beyond = [(u.to(args.device), y.to(args.device)) for u, y in sets]
    found, curves = {}, {}
    for name in args.arms:
        torch.manual_seed(args.seed)  # the encoder's start is drawn by torch itself
        arm = Arm(name, args)
        phi = arm.hyper.init(torch.Generator().manual_seed(args.seed), device=args.device)
        train(arm, phi, *learned, args)
        curves[name] = errors(arm, phi, *tested), errors(arm, phi, *beyond)
        found[name] = tuple(math.sqrt(curve[1:].square().mean()) for curve in curves[name])
    print(f"angle RMSE over {STEP * HORIZON:g} s\n  arm        as in training  beyond")
    for name, (inside, outside) in found.items():
        print(f"  {name:9}  {inside:14.4f}  {outside:.4f}")
    plot(args, curves)
    return found


if __name__ == "__main__":
    main()
