"""Every code block of the README and every docstring example runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from readme_tables import check

import functional_hyper
from functional_hyper import ode

README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(m.name for m in pkgutil.walk_packages(functional_hyper.__path__, "functional_hyper."))


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the README's blocks define, run in order."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    return names


def test_readme_blocks_run_in_order(names: dict[str, Any]):
    assert names["ys"].shape == (11, 16, 2)


@pytest.mark.filterwarnings("ignore")
def test_the_torchode_recipe_solves_each_sample_by_itself(names: dict[str, Any]):
    pytest.importorskip("torchode", reason="torchode is not installed")
    controls, y0, t = torch.rand(4, 3), torch.randn(4, 2), torch.linspace(0, 1, 6)
    got = names["torchode_recipe"](controls, y0, t.expand(4, -1))
    weights = names["dynamics"].weights(names["theta"], controls)
    want = ode.solve(names["field"], weights, y0, t, method="dopri5", rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(got.movedim(1, 0), want, rtol=2e-3, atol=2e-3)
    slopes = [torch.autograd.grad(ys.square().sum(), list(names["theta"].values())) for ys in (got, want)]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_the_readme_shows_what_explain_prints(names: dict[str, Any]):
    explained = names["fh"].explain(names["model"], names["phi"], names["images"], names["images"])
    check("explain", f"```text\n{explained}\n```")


def test_readme_opens_with_the_essentials():
    first = "\n".join(README.read_text().splitlines()[:40])
    for part in ("w_b = h(phi, cond_b)", "make demo", "make test", "import functional_hyper as fh"):
        assert part in first


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert result.failed == 0
