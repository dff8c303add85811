"""Settings that every test shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from digit_files import write_digits
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # the examples are small; threads only make their times uneven

common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", **common)
settings.register_profile("ci", derandomize=True, **common)
settings.load_profile("ci" if os.environ.get("CI", "").lower() in ("1", "true") else "default")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def dynamo() -> Iterator[None]:
    """For a test that compiles: it starts without compiled code, and leaves none."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def mnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four MNIST files, of few and random digits."""
    return write_digits(tmp_path_factory.mktemp("digits"))
