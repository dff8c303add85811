"""Every code block of the README and every docstring example runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import functional_hyper

README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(m.name for m in pkgutil.walk_packages(functional_hyper.__path__, "functional_hyper."))


def test_readme_blocks_run_in_order():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)


def test_readme_opens_with_the_essentials():
    first = "\n".join(README.read_text().splitlines()[:40])
    for part in ("w_b = h(phi, cond_b)", "make demo", "make test", "import functional_hyper as fh"):
        assert part in first


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert result.failed == 0
