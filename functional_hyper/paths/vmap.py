"""`vmap`: the empty table. Calls are functorch's own, but for the few that every path answers: `_common`, `_layers`."""

from ._path import Path

PATH = Path("vmap", {})
