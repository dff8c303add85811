"""`as_module`: a composed model as an `nn.Module`, for what wants one: DDP, FSDP, Lightning, torch.export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._errors import bad
from ._types import Cond, Inputs, Phi
from .compose import Model


def as_module(model: Model, phi: Phi) -> HyperModule:
    """An `nn.Module` around a model: ``module(cond, x, index=None) -> y``.

    Each tensor of phi is kept as a vector ``(n,)`` and viewed in its own shape where the model runs. FSDP2's
    `fully_shard` cuts a parameter along its first dim, which of a head ``(K + 1, O, I)`` gives K + 1 devices something
    to hold; of a vector the same numbers in the same order go evenly to any number of devices, a scalar too, and the
    gathered vector is the head without a copy. Optimisers that work number by number (SGD, Adam, AdamW) see no
    difference; those that need matrices do.

    Args:
        model: what `compose` returned.
        phi: where the module's parameters start; copied.

    Returns:
        A module with state-dict keys ``phi.*`` and, where the main network is a module, ``main.*``. Its state dict is
        one of vectors, and loads them or tensors in phi's own shapes; `phi_dict` gives phi back. The main network's
        generated parameters get no gradient; DistributedDataParallel is told to ignore them.

    Example:
        >>> import functional_hyper as fh
        >>> main = torch.nn.Linear(3, 2)
        >>> model = fh.compose(fh.full(fh.param_spec(main), in_features=4), main)
        >>> phi = model.hyper.init()
        >>> module = fh.as_module(model, phi)
        >>> module(torch.zeros(5, 4), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
        >>> all(torch.equal(value, phi[name]) for name, value in module.phi_dict().items())
        True
    """
    return HyperModule(model, phi)


class HyperModule(nn.Module):
    """Made by `as_module`."""

    def __init__(self, model: Model, phi: Phi) -> None:
        super().__init__()
        self.model = model
        self.phi = nn.Module()
        self.shapes = {name: value.shape for name, value in phi.items()}
        for name, value in phi.items():
            _register(self.phi, name, value)
        if isinstance(model.main, nn.Module):
            self.main = model.main
            # DDP reads this name; it waits for a gradient of every parameter it knows
            self._ddp_params_and_buffers_to_ignore = [f"main.{n}" for n in model.hyper.spec.names]
        self.register_load_state_dict_pre_hook(_flatten)

    def forward(self, cond: Cond, x: Inputs, index: Tensor | None = None) -> Any:
        phi: Phi = {}
        for name, shape in self.shapes.items():
            value = self.phi.get_parameter(name)
            if hasattr(value, "full_tensor"):
                raise bad("module(...)", "whole parameters", f"a share of phi.{name}", "fully_shard the module itself")
            phi[name] = value.view(shape)
        return self.model(phi, cond, x, index)

    @torch.no_grad()
    def phi_dict(self) -> Phi:
        """Phi in its own names and shapes, apart from the module, as `model(phi, ...)` and `save_file` take it.

        Where `fully_shard` has cut the parameters, they are gathered: every process must call it, and have the memory.
        """
        return {
            name: _gathered(self.phi.get_parameter(name)).clone().view(shape).requires_grad_()
            for name, shape in self.shapes.items()
        }


def _gathered(value: Any) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _flatten(module: HyperModule, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded: tensors in phi's own shapes become the vectors that the module holds."""
    for name, shape in module.shapes.items():
        key = f"{prefix}phi.{name}"
        if key in state and state[key].shape == shape:
            state[key] = state[key].reshape(-1)


def _register(root: nn.Module, name: str, value: Tensor) -> None:
    """A parameter under a dotted name, as nested modules; a vector."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            if parent in root._parameters:
                raise bad("as_module(phi=...)", "names that nest", name, f"{parent} is a parameter itself")
            root.add_module(parent, nn.Module())
        root = root._modules[parent]  # type: ignore[assignment]
    root.register_parameter(leaf, nn.Parameter(value.detach().reshape(-1).clone()))
