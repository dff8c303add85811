"""How a main network is called with weights that are not its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.func import functional_call
from torch.jit import ScriptFunction, ScriptModule
from torch.nn.modules.batchnorm import _NormBase

from .._errors import Refused, bad
from .._functorch import no_recomputation
from .._types import Main, PyTree
from ..weights import map_leaves

Buffer: TypeAlias = tuple[dict[str, Tensor | None], str, str, Tensor]
"""Where a buffer is held, by which key, under which name, and the buffer."""


class Caller:
    """A main network as a function of its generated weights, given in the template's order.

    A module is never copied: the weights stand in for its parameters during the call, so that its buffers, its other
    parameters, its ties and its mode are the user's own.
    """

    def __init__(self, main: Main, template: PyTree) -> None:
        self.main, self.template = main, template
        modules = list(main.modules()) if isinstance(main, nn.Module) else []
        self.sites = _sites(main, template) if isinstance(main, nn.Module) else []
        named = main.named_modules() if isinstance(main, nn.Module) else []
        plain = [(name, m) for name, m in named if not isinstance(m, ScriptModule)]  # a script's cannot be set
        self.holders = [(m._buffers, k, f"{name}.{k}".lstrip(".")) for name, m in plain for k in m._buffers]
        self.tracking = [m for m in modules if isinstance(m, _NormBase) and m.track_running_stats]
        # under rules it takes another way than without: to packed sequences, which pad with zeros
        self.packing = [m for m in modules if isinstance(m, nn.TransformerEncoder) and m.use_nested_tensor]
        self.scripted = any(isinstance(m, (ScriptModule, ScriptFunction)) for m in [main, *modules])
        # a call leaves attributes behind: nn.utils.weight_norm its weight, a recurrent layer its list of weights
        self.leaving = [vars(m) for m in modules if m._forward_pre_hooks or isinstance(m, nn.RNNBase)]

    def __call__(self, weights: Sequence[Tensor], args: tuple[Any, ...]) -> Any:
        if is_compiling():  # Dynamo knows functional_call; eager saves its 50 microseconds
            if isinstance(self.main, nn.Module):
                return functional_call(self.main, {n: weights[i] for n, i in self.template.items()}, args)
            return self.main(map_leaves(lambda i: weights[i], self.template), *args)
        with no_recomputation(RECOMPUTED):
            if not isinstance(self.main, nn.Module):
                return self.main(map_leaves(lambda i: weights[i], self.template), *args)
            own = [box[key] for box, key, _ in self.sites]
            unpacked: list[nn.TransformerEncoder] = []
            left = [{k: v for k, v in own.items() if isinstance(v, (Tensor, list))} for own in self.leaving]
            try:
                for box, key, i in self.sites:
                    box[key] = weights[i]
                unpacked += [m for m in self.packing if m.use_nested_tensor and torch.is_grad_enabled() and _trains(m)]
                for module in unpacked:
                    module.use_nested_tensor = False
                return self.main(*args)
            finally:
                for module in unpacked:
                    module.use_nested_tensor = True
                for (box, key, _), parameter in zip(self.sites, own, strict=True):
                    box[key] = parameter
                for attributes, before in zip(self.leaving, left, strict=True):
                    attributes.update(before)

    def buffers(self) -> list[Buffer]:
        """Every buffer now: a call may replace them, `to` may move them."""
        return [(box, key, name, now) for box, key, name in self.holders if (now := box[key]) is not None]

    def refuse_packing(self) -> None:
        """A TransformerEncoder that packs padded sequences without looking: no torch call would betray it."""
        for module in self.packing:
            if not (module.mask_check or module.training or torch.is_grad_enabled()):
                want, mend = "no packed sequences", 'enable_nested_tensor=False or mask_check=True; or path="loop"'
                raise bad("main", want, "nn.TransformerEncoder(mask_check=False) without gradients", mend, Refused)

    def refuse_running_statistics(self) -> None:
        """BatchNorm in training would write every network's statistics into the one module's buffers."""
        for module in self.tracking:
            if module.training:
                mend = "call main.eval(), or use track_running_stats=False, GroupNorm or LayerNorm"
                raise bad("main", "no running statistics to update", f"{module} in training", mend, Refused)


# A backward pass that runs the main network again would find other weights in it, or find vmap gone.
RECOMPUTED = "activation checkpointing inside the main network"


def _trains(encoder: nn.TransformerEncoder) -> bool:
    """Whether torch itself would not pack padded sequences, because a weight needs a gradient."""
    return any(p.requires_grad for p in encoder.layers[0].parameters())


def _sites(main: nn.Module, template: dict[str, int]) -> list[tuple[Any, Any, int]]:
    """Every place (container, key) that holds a generated parameter, under any of its names."""
    first = {id(p): template[n] for n, p in main.named_parameters() if n in template}
    sites: list[tuple[Any, Any, int]] = []
    for module in main.modules():
        sites += [(module._parameters, k, first[id(p)]) for k, p in module._parameters.items() if id(p) in first]
    return sites
