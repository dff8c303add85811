"""torch's private parts, all of them: how a call is taken out of functorch's vmap and put back.

tensordict uses the same four names. `tests/test_canary.py` fails first when a torch release moves one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any

import torch
import torch._C._autograd as _hooks
import torch._C._functorch as _C
from torch import Tensor
from torch._functorch import predispatch
from torch._functorch.vmap import lazy_load_decompositions, vmap_increment_nesting
from torch.compiler import is_compiling, is_exporting

lazy_load_decompositions()


@contextmanager
def _eager_level(size: int, randomness: str) -> Iterator[int]:
    level = _C._vmap_increment_nesting(size, randomness)
    try:
        yield level
    finally:
        _C._vmap_decrement_nesting()


def new_level(size: int, randomness: str) -> AbstractContextManager[int]:
    """``with new_level(B, randomness) as level``: a vmap over B networks."""
    # Dynamo and export know the predispatch functions, here and below; eager saves microseconds.
    return vmap_increment_nesting(size, randomness) if is_compiling() else _eager_level(size, randomness)


def outside(level: int, f: Callable[..., Any], args: Sequence[Any]) -> Any:
    """``f(*args)`` outside of `level`, whose dispatch every call would pay for though no tensor is of that level."""
    if is_compiling() or _C.peek_interpreter_stack().level() != level:  # a transform inside ours is on: stay in both
        return f(*args)
    layer = _C.pop_dynamic_layer_stack()
    try:
        return f(*args)
    finally:
        _C.push_dynamic_layer_stack(layer)


unwrapped = _C.get_unwrapped
"""The tensor one wrapper further in."""


def level_of(tensor: Tensor) -> int:
    """The level of the outermost transform that wraps the tensor; negative where none does. Eager only."""
    return _C.maybe_get_level(tensor)


def batched(tensor: Tensor, level: int) -> Tensor:
    """Hide dim 0 as the network axis of `level`."""
    return predispatch._add_batch_dim(tensor, 0, level) if is_compiling() else _C._add_batch_dim(tensor, 0, level)


def physical(tensor: Tensor, level: int) -> Tensor | None:
    """The tensor with the network axis of `level` in front again; None where its outermost wrapper is another's."""
    inner, dim = _C._unwrap_batched(tensor, level)
    if dim is None:
        return None
    if is_exporting():  # which has no record of the tensor inside
        return predispatch._remove_batch_dim(tensor, level, inner.shape[dim], 0)
    return inner.movedim(dim, 0) if dim else inner


def unbatched(tensor: Tensor, level: int, size: int) -> Tensor:
    """Leave `level`: the network axis in front, expanded where the tensor does not depend on the network."""
    remove = predispatch._remove_batch_dim if is_compiling() else _C._remove_batch_dim
    return remove(tensor, level, size, 0)


def is_concrete(tensor: Tensor) -> bool:
    """Whether the tensor's values can be looked at: no transform wraps it, no compiler traces it."""
    return not is_compiling() and level_of(tensor) < 0


def apart(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a code object of its own: by these Dynamo counts compilations, and allows eight of each."""
    assert isinstance(f, FunctionType)
    return FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)


inside_transform = torch._C._are_functorch_transforms_active
"""Whether a torch.func transform is running."""


@contextmanager
def no_recomputation(message: str) -> Iterator[None]:
    """Refuse new saved-tensor hooks, which activation checkpointing needs; those of a caller outside stay."""
    before = _hooks._saved_tensors_hooks_get_disabled_error_message()
    _hooks._saved_tensors_hooks_disable(message, False)
    try:
        yield
    finally:
        if before is None:
            _hooks._saved_tensors_hooks_enable()
        else:
            _hooks._saved_tensors_hooks_disable(before, False)
