"""What a solve depends on: the tensors it is given, and those that it must not depend on unseen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import optree
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .._errors import Refused, bad
from ..weights import Leaf


def tensors_of(leaves: Iterable[Leaf]) -> list[Tensor]:
    """The tensors that leaves are made of, each once."""
    return distinct(t for w in leaves for t in ([w] if isinstance(w, Tensor) else w.factors.values()))


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor once, by identity."""
    return list({id(p): p for p in tensors}.values())


def parameters_of(*owners: Any) -> list[Tensor]:
    """The parameters that the modules among `owners` train themselves, each once."""
    modules = [m for m in optree.tree_leaves(list(owners), none_is_leaf=True) if isinstance(m, nn.Module)]  # type: ignore[arg-type]
    return distinct(p for m in modules for p in m.parameters() if p.requires_grad)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a pytree of arguments that require grad, each once."""
    return distinct(a for a in optree.tree_leaves(tree, none_is_leaf=True) if isinstance(a, Tensor) and a.requires_grad)


def refuse_captured(gradient: str, out: Tensor, given: Sequence[Tensor]) -> None:
    """Refuse a result that depends on a tensor which requires grad and is none of `given`.

    Autograd's graph is walked from the result to its leaves, not beyond what was given. Nodes are Python objects only
    while somebody holds them, so `seen` keeps them and their identities alive.
    """
    known = {(edge.node, edge.output_nr) for edge in map(get_gradient_edge, given)}
    todo: list[Any] = [out.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            got = f"a field that captures one of shape {tuple(leaf.shape)}, or what is computed from it"
            mend = 'pass it through args=, or use gradient="direct"'
            raise bad(f'solve(gradient="{gradient}")', "every tensor that requires grad", got, mend, Refused)
        for edge in node.next_functions:
            if edge[0] is not None and edge[0] not in seen and edge not in known:
                seen.add(edge[0])
                todo.append(edge[0])
