"""Predators and prey in nine environments: one generated vector field each, then adaptation to environments never seen.

The system and the protocol of Kirchmeyer, Yin, Dona, Baskiotis, Rakotomamonjy, Gallinari, "Generalizing to New Physical
Systems via Context-Informed Dynamics Model" (ICML 2022): dx/dt = x/2 - beta x y, dy/dt = delta x y - y/2, where beta
and delta in {0.5, 0.75, 1} make nine environments with four training trajectories each. The weights of environment e
are theta_0 + W xi_e with a context xi_e of two numbers. For a new environment only a new context is learned, from one
trajectory.
"""

import argparse
from itertools import product

import checkpoints
import pictures
import torch
from dynamics import Phi, fit, options, simulate, solver
from torch import Tensor, nn

import functional_hyper as fh
from functional_hyper import ode

SEEN = torch.tensor(list(product([0.5, 0.75, 1.0], repeat=2)))  # (beta, delta)
UNSEEN = torch.tensor(list(product([0.625, 1.125], repeat=2)))
TIMES = torch.arange(0, 10, 0.5)
SEGMENT = 4  # intervals


def trajectories(environments: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` trajectories of each environment, ``(T, B, count, 2)``."""
    y0 = 1 + torch.rand(len(environments), count, 2, generator=generator)
    beta, delta = environments.T.unsqueeze(-1)

    def rhs(t: Tensor, y: Tensor) -> Tensor:
        prey, predators = y.unbind(-1)
        met = prey * predators
        return torch.stack([0.5 * prey - beta * met, delta * met - 0.5 * predators], -1)

    return simulate(rhs, y0, TIMES)


def segments(y: Tensor, length: int) -> Tensor:
    """Every stretch of `length` intervals, ``(length + 1, B, count * stretches, 2)``."""
    return y.unfold(0, length + 1, 1).permute(4, 1, 2, 0, 3).flatten(2, 3).contiguous()


class Model:
    """Trajectories from contexts."""

    def __init__(self, args: argparse.Namespace) -> None:
        layers: list[nn.Module] = [nn.Linear(2, 64), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(64, 64), nn.SiLU()]
        self.main = nn.Sequential(*layers, nn.Linear(64, 2)).to(args.device)
        # no hidden layers: the features are the context itself; the base is theta_0
        self.by_context = fh.with_base(fh.full(fh.param_spec(self.main), in_features=2, hidden=()))
        self.by_id = fh.with_embedding(self.by_context, len(SEEN))
        self.args = args

    def __call__(self, weights: object, y0: Tensor, t: Tensor, training: bool = False) -> Tensor:
        return ode.solve(self.main, weights, y0, t, many=True, **solver(self.args, training))


def train(model: Model, phi: Phi, y: Tensor, args: argparse.Namespace) -> None:
    """All short segments of the trajectories at once: their loss is far better conditioned than that of the whole."""
    ids, target, times = torch.arange(len(SEEN), device=args.device), segments(y, SEGMENT), TIMES.to(args.device)

    def loss(generator: torch.Generator) -> Tensor:
        got = model(model.by_id.weights(phi, ids), target[0], times[: SEGMENT + 1], training=True)
        return (got - target)[1:].square().mean()

    fit("lotka_volterra", phi, loss, args, lr=3e-3, minutes=args.minutes, spec=model.by_context.spec)


def adapt(model: Model, phi: Phi, y: Tensor, rounds: int) -> Tensor:
    """Contexts ``(B, 2)`` of new environments from trajectories ``(T, B, count, 2)``; phi stays as it is.

    A context of two numbers has local optima: every new environment starts from each of the learned contexts, all at
    once as so many networks, and keeps the one that fits best.
    """
    frozen, times, B = {name: value.detach() for name, value in phi.items()}, TIMES.to(y.device), y.shape[1]
    starts = frozen["embedding.weight"]
    contexts = starts.repeat(B, 1).requires_grad_()
    target = y.repeat_interleave(len(starts), 1)
    optimizer = torch.optim.Adam([contexts], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
    errors = torch.zeros(())
    for _ in range(rounds):
        optimizer.zero_grad()
        errors = (model(model.by_context.weights(frozen, contexts), target[0], times) - target).square().mean((0, 2, 3))
        errors.sum().backward()
        optimizer.step()
        schedule.step()
    best = errors.detach().view(B, -1).nan_to_num(torch.inf).argmin(1)
    return contexts.detach().view(B, -1, 2)[torch.arange(B), best]


def report(title: str, environments: Tensor, got: Tensor, want: Tensor) -> float:
    """Prints the errors of every environment; returns the mean squared error over all."""
    print(f"{title}\n  beta   delta  MSE       relative error")
    for e, (beta, delta) in enumerate(environments.tolist()):
        error = (got - want)[:, e]
        relative = (error.abs() / want[:, e].abs()).mean()
        print(f"  {beta:.3f}  {delta:.3f}  {error.square().mean():.2e}  {relative:.2%}")
    mse = (got - want).square().mean().item()
    print(f"  all           {mse:.2e}")
    return mse


def plot(args: argparse.Namespace, shown: list[tuple[str, Tensor, Tensor]], contexts: Tensor, adapted: Tensor) -> None:
    """Phase portraits, true (lines) against predicted (dots), and contexts against the true parameters."""
    figure, axes = pictures.panels("Predators and prey, each environment with its own generated field", len(shown) + 2)
    for axis, (title, got, want) in zip(axes, shown, strict=False):
        for e in range(want.shape[1]):
            color = f"C{e}"
            axis.plot(*want[:, e, 0].T.cpu(), color=color, linewidth=1)
            axis.plot(*got[:, e, 0].T.cpu(), ".", color=color)
        axis.set(title=title, xlabel="prey", ylabel="predators")
    for axis, name, column in zip(axes[len(shown) :], ("beta", "delta"), (0, 1), strict=True):
        for points, parameters, marker in ((contexts, SEEN, "o"), (adapted, UNSEEN, "*")):
            dots = axis.scatter(*points.T.cpu(), c=parameters[:, column], s=90, marker=marker, vmin=0.5, vmax=1.125)
        axis.set(title=f"contexts, coloured by {name} (stars: adapted)", xlabel="xi 1", ylabel="xi 2")
        figure.colorbar(dots, ax=axis)
    pictures.save(figure, args.out / "lotka_volterra.png")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains, tests, adapts; returns the two errors."""
    args = options(__doc__, "lotka_volterra", minutes=4).parse_args(arguments)
    checkpoints.make_writable(args.out)
    generator = torch.Generator().manual_seed(args.seed)
    sets = [(SEEN, 4), (SEEN, 32), (UNSEEN, 1), (UNSEEN, 32)]
    learned, tested, one, unseen = (trajectories(e, n, generator).to(args.device) for e, n in sets)
    model = Model(args)
    phi = model.by_id.init(generator, device=args.device)
    with torch.no_grad():  # contexts that start close to each other come to lie as the parameters do
        phi["embedding.weight"].mul_(0.1)
    train(model, phi, learned, args)
    contexts = phi["embedding.weight"].detach()
    adapted = adapt(model, phi, one, rounds=args.steps or 300)
    with torch.no_grad():
        predicted = [
            model(model.by_context.weights(phi, c), y[0], TIMES.to(args.device))
            for c, y in ((contexts, tested), (adapted, unseen))
        ]
    errors = {
        "test": report("nine training environments, 32 test trajectories each", SEEN, predicted[0], tested),
        "adaptation": report("four new environments, adapted from one trajectory each", UNSEEN, predicted[1], unseen),
    }
    plot(args, [("seen", predicted[0], tested), ("unseen", predicted[1], unseen)], contexts, adapted)
    return errors


if __name__ == "__main__":
    main()
