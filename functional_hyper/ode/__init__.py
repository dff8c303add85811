"""Neural ODEs whose dynamics are generated: torchdiffeq with one set of weights for each sample."""

from ._grids import union as union
from ._solve import solve as solve
