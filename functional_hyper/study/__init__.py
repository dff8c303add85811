"""What each path costs, measured: see `python -m functional_hyper.study --help`."""

from ._command import main as main
from ._layers import layer_functions as layer_functions
from ._layers import scores as scores
from ._layers import summary as summary
from ._measure import Record as Record
from ._measure import interleaved as interleaved
from ._measure import measure as measure
from ._measure import peak_bytes as peak_bytes
from ._measure import table as table
from ._workloads import call_functions as call_functions
from ._workloads import solve_functions as solve_functions
from ._workloads import step_functions as step_functions
