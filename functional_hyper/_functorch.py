"""torch's private parts, all of them: how a call is taken out of functorch's vmap and put back.

tensordict uses the same four names. `tests/test_canary.py` fails first when a torch release moves one.
"""

from __future__ import annotations

import torch._C._functorch as _C
from torch import Tensor
from torch._functorch import predispatch
from torch._functorch.vmap import lazy_load_decompositions, vmap_increment_nesting
from torch.compiler import is_compiling

lazy_load_decompositions()

new_level = vmap_increment_nesting
"""``with new_level(B, randomness) as level``: a vmap over B networks."""

unwrapped = _C.get_unwrapped
"""The tensor one wrapper further in."""


def level_of(tensor: Tensor) -> int:
    """The level of the outermost transform that wraps the tensor; negative where none does."""
    return _C.maybe_get_level(tensor)


def batched(tensor: Tensor, level: int) -> Tensor:
    """Hide dim 0 as the network axis of `level`."""
    # Dynamo and export know the predispatch wrapper; eager saves its microsecond.
    return predispatch._add_batch_dim(tensor, 0, level) if is_compiling() else _C._add_batch_dim(tensor, 0, level)


def physical(tensor: Tensor, level: int) -> Tensor:
    """The tensor with the network axis of `level` in front again; `tensor` must be wrapped at that very level."""
    inner, dim = _C._unwrap_batched(tensor, level)
    return inner if not dim else inner.movedim(dim, 0)


def unbatched(tensor: Tensor, level: int, size: int) -> Tensor:
    """Leave `level`: the network axis in front, expanded where the tensor does not depend on the network."""
    return predispatch._remove_batch_dim(tensor, level, size, 0)  # type: ignore[no-any-return]


def is_concrete(tensor: Tensor) -> bool:
    """Whether the tensor's values can be looked at: no transform wraps it, no compiler traces it."""
    return not is_compiling() and level_of(tensor) < 0
