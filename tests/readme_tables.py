"""Tables of the README that are computed: ``<!-- name -->`` and ``<!-- /name -->`` stand around each.

`FH_WRITE_TABLES=1 pytest tests/test_layer_table.py` writes them anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the heading."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "| --- " * len(rows[0]) + "|", *rest])


def check(name: str, want: str) -> None:
    """Whether the README has this text between its markers; writes it there where asked to."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, _, rest = README.read_text().partition(start)
    have, found, after = rest.partition(end)
    assert found, f"the README has no {start.strip()} and {end.strip()}"
    if os.environ.get("FH_WRITE_TABLES"):
        README.write_text(before + start + want + end + after)
    else:
        assert have == want, "FH_WRITE_TABLES=1 writes the table anew"
