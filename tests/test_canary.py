"""torch's private parts: the first test to fail when a torch release moves one."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import torch

import functional_hyper

PACKAGE = Path(functional_hyper.__file__).parent


def private(dotted: str) -> bool:
    return any(part.startswith("_") for part in dotted.split(".")[1:])


def names_of(file: Path) -> set[str]:
    """Private torch names that a file uses, dotted: imported ones, and attributes of imported modules."""
    found: set[str] = set()
    modules: dict[str, str] = {}
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch" and not node.level:
            for a in node.names:
                full = f"{node.module}.{a.name}"
                modules[a.asname or a.name] = full
                found.add(full)
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.split(".")[0] == "torch":
                    modules[a.asname or "torch"] = a.name if a.asname else "torch"
    for node in ast.walk(tree):
        parts: list[str] = []
        inner: ast.expr | ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in modules:
            found.add(".".join([modules[inner.id], *parts]))
    return {n for n in found if private(n)}


PRIVATE = sorted((n, f.name) for f in PACKAGE.rglob("*.py") for n in names_of(f))


def resolve(dotted: str) -> object:
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:i]))
        except ImportError:
            continue
        for part in parts[i:]:
            value = getattr(value, part)
        return value
    raise ImportError(dotted)


def test_some_are_found() -> None:
    used = {name for name, _ in PRIVATE}
    assert {"torch._C._functorch._add_batch_dim", "torch._C._functorch._unwrap_batched"} <= used


@pytest.mark.parametrize(("name", "file"), PRIVATE)
def test_every_private_name_exists(name: str, file: str) -> None:
    if name.rpartition(".")[2].startswith("__"):
        return
    assert resolve(name) is not None, f"{name}, used in {file}"


def test_functorchs_parts_live_in_one_file() -> None:
    for name, file in PRIVATE:
        if "functorch" in name:
            assert file == "_functorch.py", f"{name} is used in {file}"


def test_a_batched_tensor_goes_in_and_out() -> None:
    private = importlib.import_module("functional_hyper._functorch")
    x = torch.randn(3, 4, 5)
    with private.new_level(3, "error") as level:
        hidden = private.batched(x, level)
        assert hidden.shape == (4, 5)
        assert private.level_of(hidden) == level
        assert torch.equal(private.physical(hidden, level), x)
        moved = hidden.movedim(0, -1)
        assert torch.equal(private.physical(moved, level), x.movedim(1, -1))
        assert private.physical(torch.ones(2), level) is None
        with private.new_level(2, "error") as inner:
            assert inner == level + 1
            twice = private.batched(torch.ones(2, 7), inner)
            assert private.physical(twice, level) is None
            assert private.level_of(twice) == inner
        out = private.unbatched(hidden * 2, level, 3)
        assert torch.equal(out, 2 * x)
        assert private.unbatched(torch.ones(2), level, 3).shape == (3, 2)
    assert private.level_of(x) < 0
    assert private.is_concrete(x)
    with private.new_level(1, "error") as again:
        assert again == level


def test_an_error_leaves_no_level_open() -> None:
    private = importlib.import_module("functional_hyper._functorch")
    with private.new_level(1, "error") as level:
        pass
    with pytest.raises(KeyError), private.new_level(1, "error"):
        raise KeyError
    with private.new_level(1, "error") as again:
        assert again == level


def test_only_a_vmap_tells_what_it_wraps() -> None:
    private = importlib.import_module("functional_hyper._functorch")
    levels: list[int] = []

    def inside(x: torch.Tensor) -> torch.Tensor:
        levels.append(private.level_of(x))
        assert not private.is_concrete(x)
        return x.sum()

    torch.func.grad(inside)(torch.ones(2))
    torch.vmap(torch.func.grad(inside))(torch.ones(3, 2))
    assert levels == [1, 2]
