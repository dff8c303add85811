"""What keeps a path honest where vmap alone would be wrong or silent: each guard ends in a clear refusal or a mend."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

from .._errors import Refused, bad
from ..weights import Leaf, map_tensors, materialize
from ._main import RECOMPUTED, Buffer, Caller


def call_name(func: Any) -> str:
    """A torch function's public name."""
    if func is None or isinstance(func, str):
        return func or "the main network"
    return resolve_name(func) or getattr(func, "__name__", str(func))


def changed() -> Refused:
    """The refusal of a main network that writes into its weights: into factors without effect, or into the caller's."""
    mend = "compute a new tensor instead, such as w.clamp(...)"
    return bad("main", "weights that are only read", "an in-place change of a weight", mend, Refused)


def updated(func: Any, name: str) -> Refused:
    """The refusal of a main network that writes into a buffer: there is one, and each network has its own value."""
    got = f"{call_name(func)} that changes the buffer {name}" if func else f"another {name} after the call"
    return bad("main", "buffers that are only read", got, 'call main.eval(), or use path="loop"', Refused)


@contextmanager
def kept(buffers: Sequence[Buffer], undo: bool = False) -> Iterator[None]:
    """Every buffer is itself again after the call, and where the caller wants to `undo`, has its values again.

    Raises:
        Refused: a buffer was replaced, or changed in a way that no call betrayed.
    """
    before = versions(t for *_, t in buffers)
    values = [t.clone() for *_, t in buffers] if undo else []
    touched: list[str] = []
    try:
        yield
    finally:
        now = versions(t for *_, t in buffers)
        for i, (box, key, name, buffer) in enumerate(buffers):
            if box[key] is not buffer or now[i] != before[i]:
                box[key] = buffer
                touched.append(name)
            if undo and not torch.equal(buffer, values[i]):  # batch norm's own update leaves the version as it was
                buffer.copy_(values[i])
    if touched and not undo:
        raise updated(None, touched[0])


def writes(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that a torch call changes in place, as its name and arguments tell."""
    kwargs = kwargs or {}
    found: list[Any] = [kwargs.get("out")]
    if func is F.embedding:
        if (args[3] if len(args) > 3 else kwargs.get("max_norm")) is not None:
            found.append(args[1] if len(args) > 1 else kwargs["weight"])
    elif args and (may_write(func) or kwargs.get("inplace") is True):
        found.append(args[0])
    return [t for one in found for t in (one if isinstance(one, (tuple, list)) else [one]) if isinstance(t, Tensor)]


OPERATORS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
IN_PLACE = frozenset(f"__{name}__" for name in ("setitem", *OPERATORS))


@cache
def may_write(func: Any) -> bool:
    """Whether a torch function may write into a positional argument, as its name says; asked at every call."""
    name = getattr(func, "__name__", "")
    ends = name.endswith("_") and (not name.startswith("_") or name.startswith("_foreach_"))
    return ends or name in IN_PLACE or func is F.embedding


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each tensor was changed in place."""
    return [-1 if t.is_inference() else t._version for t in tensors]


def own_error(error: Exception) -> Exception:
    """A main network's own error; a refusal where autograd found a forbidden write or a forbidden recomputation."""
    text = str(error)
    if RECOMPUTED in text:
        return recomputed()
    return changed() if isinstance(error, RuntimeError) and FORBIDDEN_WRITE.search(text) else error


FORBIDDEN_WRITE = re.compile(r"Output \d+ of \w+ is a view and .*modified in-?place", re.DOTALL)


def row(args: tuple[Any, ...], b: int) -> tuple[Any, ...]:
    """The inputs of network b."""
    return tuple([map_tensors("net(x=...)", lambda a: a[b], arg) for arg in args])


def judge(
    caller: Caller, leaves: Sequence[Leaf], rows: Iterable[tuple[Any, ...]], call: Any, error: Exception
) -> Exception:
    """What an exception under vmap means: the main network's own error, if a plain call raises too, else a refusal.

    Args:
        caller, leaves: the main network and its weights.
        rows: every network's inputs.
        call: the torch function that was on when the error came.
        error: what came.
    """
    dense = [materialize(leaf) for leaf in leaves]
    for b, one in enumerate(rows):
        try:
            # a judgement draws no random numbers and leaves no trace
            with torch.random.fork_rng(devices=[]), kept(caller.buffers(), undo=True):
                caller([weight[b] for weight in dense], one)
        except Exception as own:
            return own_error(own)
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    random = "randomness" in first
    mend = 'pass randomness="different", or call main.eval()' if random else 'use path="loop"'
    return bad("main", "calls that vmap can batch", f"{call_name(call)} ({first})", mend, Refused)


def recomputed() -> Refused:
    """The refusal of activation checkpointing inside the main network."""
    return bad("main", "one pass through its layers", RECOMPUTED, "checkpoint around the model instead", Refused)


def embedding(
    input: Any, weight: Any, padding_idx: int | None = None, max_norm: float | None = None, *args: Any, **kwargs: Any
) -> Any:
    """vmap forgets that a padding row gets no gradient: cut the row off here."""
    if padding_idx is None or max_norm is not None:
        return NotImplemented
    row = torch.arange(weight.shape[0], device=weight.device) == padding_idx % weight.shape[0]
    return F.embedding(input, torch.where(row.unsqueeze(1), weight.detach(), weight), None, max_norm, *args, **kwargs)


def _zeros(t: Any) -> Any:
    return torch.zeros(t.shape, dtype=t.dtype, device=t.device) if isinstance(t, Tensor) else t


def norm_of(func: Callable[..., Any]) -> Callable[..., Any]:
    """vmap promotes where a norm's kernel refuses mixed dtypes: ask the kernel, on zeros."""

    def norm(*args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if len({t.dtype for t in tensors}) > 1 and not torch.is_autocast_enabled(tensors[0].device.type):
            func(*map(_zeros, args), **{k: _zeros(t) for k, t in kwargs.items()})
        return NotImplemented

    return norm


MENDS: dict[Any, Callable[..., Any]] = {
    F.embedding: embedding,
    **{f: norm_of(f) for f in (F.layer_norm, F.group_norm, F.instance_norm, F.batch_norm, F.rms_norm)},
}
"""Calls that vmap gets wrong, in terms of calls that it gets right; for every path."""
