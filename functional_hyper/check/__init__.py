"""Diagnostics for a hypernetwork that does not train: pure functions, each returning a `Table` that prints."""

from ._gradients import gradient_flow as gradient_flow
from ._gradients import sensitivity as sensitivity
from ._table import Table as Table
from ._weights import dead_heads as dead_heads
from ._weights import diversity as diversity
from ._weights import update as update
from ._weights import weight_scale as weight_scale
