"""`vmap`: the empty table. Every call is functorch's own."""

from ._path import Path

PATH = Path("vmap", {})
