"""Paths, one a file. To add one: a file with a `PATH`, and a line here; the tests pick it up from `PATHS`."""

from collections.abc import Mapping
from types import MappingProxyType

from .._errors import bad
from . import auto, bmm, broadcast, contracted, grouped_conv, loop, vmap
from ._path import Choice as Choice
from ._path import Load as Load
from ._path import Path as Path
from ._path import linear as linear

PATHS: Mapping[str, Path] = MappingProxyType(
    {module.PATH.name: module.PATH for module in (loop, vmap, grouped_conv, bmm, broadcast, contracted)}
)
"""The single paths by name; ``auto`` chooses among their forms for each weight."""


EVERY = {**PATHS, "auto": auto.PATH}


def resolve(path: str | Path) -> Path:
    """A path by name, or itself."""
    if isinstance(path, Path):
        return path
    if not isinstance(path, str) or path not in EVERY:
        raise bad("path=", f"one of {', '.join(EVERY)}, or a Path", repr(path), "functional_hyper.PATHS lists them")
    return EVERY[path]
