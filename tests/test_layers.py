"""The package keeps its shape: imports point down, files stay small, and nothing heavy comes with the package."""

from __future__ import annotations

import ast
import subprocess
import sys
import token
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from readme_tables import check

import functional_hyper

PACKAGE = Path(functional_hyper.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    0: ["_types", "_errors", "_text", "_functorch"],
    1: ["slots", "params", "initializers"],
    2: ["weights", "hypernets"],
    3: ["paths"],
    4: ["evaluate", "compose", "ode", "regularizers"],
    5: ["study", "check", "as_module"],  # and whatever is named nowhere else
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}


def floor_of(module: tuple[str, ...]) -> int:
    return FLOOR.get(module[0], 5)


def name_of(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {name_of(f): f for f in FILES}


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """Modules of the package that a file imports, wherever in the file."""
    package = file.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            bases = [((), a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "functional_hyper"]
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                root = package[: len(package) - node.level + 1]
            elif parts[0] == "functional_hyper":
                root, parts = (), parts[1:]
            else:
                continue
            bases = [(root, [*parts, a.name]) for a in node.names]
        else:
            continue
        for root, parts in bases:
            full = (*root, *parts)
            yield full if full in MODULES else full[:-1]


@pytest.mark.parametrize("file", [f for f in FILES if name_of(f)], ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    own = floor_of(name_of(file))
    for target in imports(file):
        assert target, f"{file.name} imports the package itself"
        assert floor_of(target) <= own, f"{file.name} on floor {own} imports {'.'.join(target)}"


def test_imports_are_not_cyclic() -> None:
    graph = {name: {t for t in imports(file) if t != name} for name, file in MODULES.items()}
    for name in graph:  # `from . import a` also runs the package's own `__init__`, which is being imported
        graph[name] -= {name[:i] for i in range(len(name))}
    done: set[tuple[str, ...]] = set()

    def visit(name: tuple[str, ...], path: list[tuple[str, ...]]) -> None:
        assert name not in path, " -> ".join(".".join(n) or "functional_hyper" for n in [*path, name])
        if name not in done:
            for target in graph[name]:
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_the_top_only_re_exports() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    docstring, *rest = tree.body
    assert isinstance(docstring, ast.Expr)
    for node in rest:
        if isinstance(node, ast.ImportFrom):
            assert all(a.asname == a.name for a in node.names), f"{ast.unparse(node)} is no explicit re-export"
        else:
            assert ast.unparse(node).startswith("__version__ = ")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 250


def lines_of_code(file: Path) -> int:
    """Without docstrings, comments and blank lines."""
    told = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Expr))
    strings = [n for n in told if isinstance(n.value, ast.Constant) and isinstance(n.value.value, str)]
    empty = (tokenize.COMMENT, tokenize.NL, token.NEWLINE, token.INDENT, token.DEDENT, token.ENDMARKER)
    with file.open() as opened:
        tokens = [t for t in tokenize.generate_tokens(opened.readline) if t.type not in empty]
    lines = {n for t in tokens for n in range(t.start[0], t.end[0] + 1)}
    return len(lines - {n for s in strings for n in range(s.lineno, (s.end_lineno or s.lineno) + 1)})


def test_the_readme_tells_the_size() -> None:
    size = {file: lines_of_code(file) for file in FILES}
    study = sum(n for file, n in size.items() if file.parent.name == "study")
    total = f"about {round(sum(size.values()), -2):,} lines of code, {round(study, -2):,} of them the study"
    check("size", f"The package has {total}: docstrings, comments and blank lines aside.")


def test_tests_and_examples_use_the_public_surface() -> None:
    root = PACKAGE.parent
    public = {"functional_hyper", "functional_hyper.study"}
    for file in [*root.glob("examples/*.py"), *root.glob("tests/*.py")]:
        if file.name == "test_canary.py":  # which is about the private parts
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "functional_hyper":
                assert node.module in public, f"{file.name}: from {node.module}"
            if isinstance(node, ast.Import):
                assert all(a.name in public for a in node.names if a.name.startswith("functional_hyper")), file.name


def test_nothing_heavy_is_imported() -> None:
    code = "import functional_hyper, sys; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"torchvision", "torchdiffeq", "matplotlib", "mlxtend", "scipy", "pandas", "sklearn"}
