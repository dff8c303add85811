"""What the tests of `fh.ode` share: methods, a small network with weights, states, times, a field."""

import torch
from torch import nn

import functional_hyper as fh

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAMS = ("explicit_adams", "implicit_adams")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
PATHS = (*fh.PATHS, "auto")
B, D = 4, 2


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, D)).double()


def draw(main: nn.Module, seed: int = 0, structured: bool = False):
    generator = torch.Generator().manual_seed(seed)
    hyper = fh.full(fh.param_spec(main), in_features=3, hidden=(4,))
    phi = hyper.init(generator, dtype=torch.float64)
    cond = torch.randn(B, 3, generator=generator, dtype=torch.float64)
    return hyper.weights(phi, cond) if structured else fh.unravel(hyper.spec, hyper.apply(phi, cond))


def states(many: bool, seed: int = 1) -> torch.Tensor:
    shape = (B, 3, D) if many else (B, D)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(T: int = 4) -> torch.Tensor:
    return torch.linspace(0.0, 1.0, T, dtype=torch.float64)


def driven(net, t, y, push):
    """Time, a control per network, and physics beside the main network."""
    return net(y) - 0.3 * y + torch.cos(t) * push.view(-1, *[1] * (y.dim() - 1))
