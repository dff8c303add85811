"""The wheel, as a user installs it: into an empty environment, without the checkout in sight."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import functional_hyper as fh

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]]


def pip(*args: object) -> subprocess.CompletedProcess[str]:
    offline = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_RETRIES": "0", "PIP_TIMEOUT": "10"}
    command = [sys.executable, "-m", "pip", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | offline)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's wheel; hatchling makes it, from this environment or else from an index."""
    folder = tmp_path_factory.mktemp("wheel")
    here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    built = pip("wheel", "--no-deps", "--quiet", *here, "--wheel-dir", folder, ROOT)
    if built.returncode and re.search(r"(Could not find a version|No matching distribution).*hatchling", built.stderr):
        pytest.skip("hatchling, which builds the wheel, is neither installed nor to be had from an index")
    assert not built.returncode, built.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds the wheel alone; dependencies are read from this one's folders.

    Those folders are named in a .pth file, whose own .pth files Python does not read: what is installed here in
    editable mode stays out of sight.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    installed = pip("--python", interpreter, "install", "--no-deps", "--no-index", wheel)
    assert not installed.returncode, installed.stderr
    (site,) = {path.parents[1] for path in folder.rglob("functional_hyper/__init__.py")}
    folders = {str(importlib.metadata.distribution(name).locate_file("")) for name in DEPENDENCIES}
    (site / "dependencies.pth").write_text("\n".join(sorted(folders)))
    return interpreter


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    package = {str(p.relative_to(ROOT).as_posix()) for p in (ROOT / "functional_hyper").rglob("*") if p.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    info = {name for name in names if name.startswith(f"functional_hyper-{fh.__version__}.dist-info/")}
    assert names - info == package
    assert "functional_hyper/py.typed" in names
    assert f"functional_hyper-{fh.__version__}.dist-info/licenses/LICENSE" in names


def test_the_first_example_runs_where_only_the_wheel_is(wheel: Path, python: Path, tmp_path: Path) -> None:
    code = """
import functional_hyper, importlib.metadata, pathlib, re, sys
print(functional_hyper.__file__)
readme = importlib.metadata.metadata("functional_hyper").get_payload()
block = re.search(r"^```python\\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)[1]
names = {}
exec(block, names)
print(tuple(names["logits"].shape), *sys.path, sep="\\n")
"""
    # -I: neither PYTHONPATH nor the current folder is searched
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert not done.returncode, done.stderr
    found, shape, *searched = done.stdout.splitlines()
    assert Path(found).is_relative_to(python.parents[1])
    assert shape == "(256, 10)"
    assert str(ROOT) not in searched


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    assert distribution.version == fh.__version__ == PROJECT["version"]
    required = [line for line in distribution.requires or () if "extra ==" not in line]
    assert len(required) == len(PROJECT["dependencies"])
    assert {re.split(r"[<>=]", line)[0] for line in required} == set(DEPENDENCIES)
