"""`as_module`: a composed model as an `nn.Module`, for what wants one: DDP, FSDP, Lightning, torch.export."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ._errors import bad
from ._types import Cond, Inputs, Phi
from .compose import Model


def as_module(model: Model, phi: Phi) -> HyperModule:
    """An `nn.Module` around a model: ``module(cond, x, index=None) -> y``.

    Args:
        model: what `compose` returned.
        phi: where the module's parameters start; copied.

    Returns:
        A module with state-dict keys ``phi.*`` and, where the main network is a module, ``main.*``. The main network's
        generated parameters get no gradient; DistributedDataParallel is told to ignore them.
    """
    return HyperModule(model, phi)


class HyperModule(nn.Module):
    """Made by `as_module`."""

    def __init__(self, model: Model, phi: Phi) -> None:
        super().__init__()
        self.model = model
        self.phi = nn.Module()
        self.names = list(phi)
        for name, value in phi.items():
            _register(self.phi, name, value)
        if isinstance(model.main, nn.Module):
            self.main = model.main
            # DDP reads this name; it waits for a gradient of every parameter it knows
            self._ddp_params_and_buffers_to_ignore = [f"main.{n}" for n in model.hyper.spec.names]

    def forward(self, cond: Cond, x: Inputs, index: Tensor | None = None) -> Any:
        phi: Phi = {name: self.phi.get_parameter(name) for name in self.names}
        return self.model(phi, cond, x, index)


def _register(root: nn.Module, name: str, value: Tensor) -> None:
    """A parameter under a dotted name, as nested modules."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            if parent in root._parameters:
                raise bad("as_module(phi=...)", "names that nest", name, f"{parent} is a parameter itself")
            root.add_module(parent, nn.Module())
        root = root._modules[parent]  # type: ignore[assignment]
    root.register_parameter(leaf, nn.Parameter(value.detach().clone()))
