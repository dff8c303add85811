"""Flat parameter vectors and per-sample pytrees: `param_spec`, `ravel`, `unravel`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import optree
import torch
from torch import Tensor, nn

from ._errors import bad, listed
from ._text import aligned
from ._types import Flat, PyTree
from .slots import Slot, describe


@dataclass(frozen=True, repr=False)
class ParamSpec:
    """Names, shapes and order of the generated parameters; `size` is P, the numbers in all.

    Plain data: hashable, picklable, equal to another by value. `template` has the pytree's structure with each leaf's
    position in `slots`; `flat` says that it is a dict by name, as a module's is.
    """

    slots: tuple[Slot, ...]
    dtype: torch.dtype
    template: PyTree = field(hash=False)

    # Derived once: torch.compile cannot trace cached_property, and every call of a model asks for them.
    size: int = field(init=False, compare=False)
    names: tuple[str, ...] = field(init=False, compare=False)
    shapes: tuple[tuple[int, ...], ...] = field(init=False, compare=False)
    flat: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "size", sum(slot.size for slot in self.slots))
        put(self, "names", tuple(slot.name for slot in self.slots))
        put(self, "shapes", tuple(slot.shape for slot in self.slots))
        put(self, "flat", isinstance(self.template, dict) and tuple(self.template) == self.names)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of names, shapes, order and dtype: the same in every process, for checkpoints to carry."""
        lines = [str(self.dtype), *(f"{slot.name!r} {tuple(slot.shape)}" for slot in self.slots)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"ParamSpec({len(self.slots)} parameters, P={self.size}, {self.dtype})"

    def __str__(self) -> str:
        head = ("name", "shape", "kind", "fan in", "fan out", "taps", "draw", "offset")
        offsets = accumulate((s.size for s in self.slots), initial=0)
        rows = [
            (s.name, tuple(s.shape), s.kind, s.fan_in, s.fan_out, s.receptive, s.draw, offset)
            for s, offset in zip(self.slots, offsets, strict=False)  # the last offset is P
        ]
        return "\n".join([*aligned([head, *rows]), repr(self)])


def param_spec(main: nn.Module | PyTree, include: str | Sequence[str] | None = None) -> ParamSpec:
    """The spec of a main network's parameters: what a hypernetwork must generate.

    Args:
        main: an `nn.Module` (on any device, meta too), or a pytree of tensors (dict, list, tuple, namedtuple) as a pure
            function `f(params, x)` takes it. A module's order is `named_parameters()`, a tied parameter being one slot
            under its first name; a pytree's is its flatten order (dict keys sorted).
        include: for a module, glob patterns of parameter names (`*` crosses dots); what no pattern selects stays in
            the module and trains there.

    Raises:
        HyperError: a pattern without a match, mixed or non-floating dtypes, or leaves that are not tensors.

    Example:
        >>> param_spec(torch.nn.Linear(3, 2))
        ParamSpec(2 parameters, P=8, torch.float32)
    """
    if isinstance(main, nn.Module):
        named = _select(main, include)
        modules = dict(main.named_modules())
        owners = {n: modules[n.rpartition(".")[0]] for n in named}
        template: PyTree = {name: i for i, name in enumerate(named)}
    else:
        if include is not None:
            raise bad("param_spec(include=...)", "an nn.Module to select from", type(main).__name__, "pass a sub-tree")
        if callable(main):
            raise bad(
                "param_spec(main=...)",
                "an nn.Module or a pytree of tensors",
                f"the function {getattr(main, '__name__', main)}",
                "pass the parameters that the function takes",
            )
        leaves = optree.tree_leaves(main)
        named = dict(zip(leaf_names(main), leaves, strict=True))
        if len(named) != len(leaves):
            raise bad("param_spec(main=...)", "leaves of different names", listed(leaf_names(main)), "rename a key")
        owners = {}
        template = numbered(main)
    dtype = _one_dtype(named)
    slots = [describe(name, tuple(t.shape), owners.get(name)) for name, t in named.items()]
    return ParamSpec(_paired(slots), dtype, template)


def _select(main: nn.Module, include: str | Sequence[str] | None) -> dict[str, Tensor]:
    """The module's parameters by first name, those that a pattern selects by any of their names."""
    named: dict[str, Tensor] = dict(main.named_parameters())
    if include is None:
        return named
    patterns = [include] if isinstance(include, str) else list(include)
    aliases: dict[int, list[str]] = {}
    for name, p in main.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(p), []).append(name)
    hits = {pat: [n for n, p in named.items() if any(fnmatchcase(a, pat) for a in aliases[id(p)])] for pat in patterns}
    for pattern, found in hits.items():
        if not found:
            raise bad(
                "param_spec(include=...)", "patterns that match a parameter", repr(pattern), f"names: {listed(named)}"
            )
    chosen = {n for found in hits.values() for n in found}
    return {n: p for n, p in named.items() if n in chosen}


def _one_dtype(named: dict[str, Tensor]) -> torch.dtype:
    for name, t in named.items():
        if not isinstance(t, Tensor) or not t.is_floating_point():
            got = f"{name}: {t.dtype if isinstance(t, Tensor) else type(t).__name__}"
            raise bad("param_spec(main=...)", "floating tensors", got, "leave it out, or convert it")
    dtypes = {t.dtype: n for n, t in named.items()}
    if len(dtypes) > 1:
        got = ", ".join(f"{n}: {d}" for d, n in dtypes.items())
        raise bad("param_spec(main=...)", "one dtype", got, "convert with .to(dtype), or select with include=")
    return next(iter(dtypes), torch.get_default_dtype())


def _paired(slots: list[Slot]) -> tuple[Slot, ...]:
    names = {s.name for s in slots}
    swap = {True: ("bias", "weight"), False: ("weight", "bias")}
    return tuple(replace(s, paired=s.name.replace(*swap[s.is_bias]) in names - {s.name}) for s in slots)


def numbered(tree: PyTree) -> PyTree:
    """The tree with each leaf's position, in flatten order, in its place."""
    order = iter(range(len(optree.tree_leaves(tree))))
    return optree.tree_map(lambda _: next(order), tree)


def leaf_names(tree: PyTree) -> list[str]:
    """Dotted names of a pytree's leaves, in flatten order; a bare leaf is called `value`."""

    def entry(e: Any) -> str:
        return str(getattr(e, "field", e.entry))

    return [".".join(entry(e) for e in accessor) or "value" for accessor in optree.tree_accessors(tree)]


def leaves_of(call: str, spec: ParamSpec, tree: PyTree) -> list[Any]:
    """The tree's leaves in the spec's order; an error that lists the names where the structure is another."""
    if spec.flat and isinstance(tree, dict) and len(tree) == len(spec.names) and all(n in tree for n in spec.names):
        return [tree[name] for name in spec.names]
    out: list[Any] = [None] * len(spec.slots)

    def put(i: int, leaf: Any) -> None:
        if isinstance(leaf, (dict, list, tuple)):
            raise TypeError("a subtree where the spec has a leaf")
        out[i] = leaf

    try:
        optree.tree_map(put, spec.template, tree)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError):
        got = leaf_names(tree)
        raise unknown(call, spec.names, got) from None
    return out


def unknown(call: str, expected: Iterable[str], got: Iterable[str]) -> Exception:
    """The error for missing and extra names."""
    expected, got = list(expected), list(got)
    missing, extra = [n for n in expected if n not in set(got)], [n for n in got if n not in set(expected)]
    what = f"missing: {listed(missing)}; extra: {listed(extra)}"
    return bad(call, f"the parameters {listed(expected)}", what, "param_spec(main).names lists them")


def ravel(spec: ParamSpec, tree: PyTree) -> Flat:
    """Flat vectors of per-sample parameters; `unravel` undoes it.

    Args:
        spec: P and the order.
        tree: the spec's pytree with leaves ``(*batch, *shape)``.

    Returns:
        ``(*batch, P)``.

    Raises:
        HyperError: missing or extra names, a leaf of another shape, or leaves of different batch dims.
    """
    leaves = leaves_of("ravel(tree=...)", spec, tree)
    rows, batch = [], None
    for slot, leaf in zip(spec.slots, leaves, strict=True):
        dims = leaf.dim() - len(slot.shape)
        if dims < 0 or tuple(leaf.shape[dims:]) != slot.shape or (batch is not None and leaf.shape[:dims] != batch):
            lead = "*batch" if batch is None else ", ".join(map(str, batch))
            want = f"{slot.name} of shape ({', '.join(filter(None, [lead, *map(str, slot.shape)]))})"
            raise bad("ravel(tree=...)", want, tuple(leaf.shape), "every leaf has the same batch dims in front")
        batch = leaf.shape[:dims]
        rows.append(leaf.flatten(dims) if slot.shape else leaf.unsqueeze(-1))
    return torch.cat(rows, -1) if rows else torch.empty(0, dtype=spec.dtype)


def unravel(spec: ParamSpec, flat: Flat) -> PyTree:
    """The per-sample parameter pytree of flat vectors: views, no copies.

    Args:
        spec: P and the order.
        flat: ``(*batch, P)``, any leading dims.

    Returns:
        The spec's pytree with leaves ``(*batch, *shape)``.

    Raises:
        HyperError: the last dim is not P.

    Example:
        >>> spec = param_spec(torch.nn.Linear(3, 2))
        >>> unravel(spec, torch.zeros(5, 8))["weight"].shape
        torch.Size([5, 2, 3])
    """
    if flat.dim() == 0 or flat.shape[-1] != spec.size:
        mend = "param_spec of the same main network gives P"
        raise bad("unravel(flat=...)", f"(*batch, P) with P={spec.size}", tuple(flat.shape), mend)
    pieces = flat.split([s.size for s in spec.slots], -1) if spec.slots else ()
    views = [p.unflatten(-1, s.shape) if s.shape else p.squeeze(-1) for p, s in zip(pieces, spec.slots, strict=True)]
    return optree.tree_map(lambda i: views[i], spec.template)
