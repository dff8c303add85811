"""What each path costs, measured: see `python -m functional_hyper.study --help`."""

from ._measure import Record as Record
from ._measure import interleaved as interleaved
from ._measure import measure as measure
from ._measure import peak_bytes as peak_bytes
from ._measure import table as table
