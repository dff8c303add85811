"""Every annotated shape and type of the package holds while other tests run: checked by jaxtyping and beartype.

The package itself stays plain: its annotations are checked here only, since a decorated function recompiles.
"""

import subprocess
import sys
from pathlib import Path

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every type checker

RUN = """
import sys
import pytest
from jaxtyping import install_import_hook
sys.path.insert(0, "tests")
install_import_hook("functional_hyper", "test_shapes.check")
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", *sys.argv[1:]]))
"""


def run_checked(*args: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, "-c", RUN, *args], cwd=root, capture_output=True, text=True, check=False)


def test_annotations_hold():
    done = run_checked("tests/test_module.py")
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def test_a_wrong_shape_would_be_noticed():
    code = RUN.replace("import pytest\n", "").split("sys.exit")[0] + (
        "import torch, functional_hyper as fh\n"
        "fh.unravel(fh.param_spec(torch.nn.Linear(3, 2)), torch.zeros(2, 8, dtype=torch.int64))\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert "TypeCheckError" in done.stderr
