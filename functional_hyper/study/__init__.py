"""What each path costs, measured: `compare` on your network, `python -m functional_hyper.study` on a grid."""

from ._command import claims as claims
from ._command import main as main
from ._command import scores as scores
from ._command import summary as summary
from ._compare import compare as compare
from ._compare import steps as steps
from ._grid import KINDS as KINDS
from ._grid import cases as cases
from ._grid import linear_layers as linear_layers
from ._machine import machine as machine
from ._measure import count as count
from ._measure import interleaved as interleaved
from ._measure import measure as measure
from ._measure import peak_bytes as peak_bytes
from ._model import layer as layer
from ._model import predicted as predicted
from ._model import rule as rule
from ._records import Record as Record
from ._records import Records as Records
from ._records import describe as describe
from ._records import table as table
from ._workloads import call_functions as call_functions
from ._workloads import solve_functions as solve_functions
from ._workloads import step_functions as step_functions
