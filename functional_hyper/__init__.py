"""Functional hypernetworks for PyTorch: one set of weights per sample, evaluated for the whole batch at once."""

from . import check as check
from . import initializers as initializers
from . import ode as ode
from . import study as study
from ._errors import HyperError as HyperError
from ._errors import Refused as Refused
from .as_module import as_module as as_module
from .compose import Model as Model
from .compose import compose as compose
from .compose import explain as explain
from .evaluate import bind as bind
from .evaluate import evaluate as evaluate
from .hypernets import Hypernet as Hypernet
from .hypernets import chunked as chunked
from .hypernets import full as full
from .hypernets import low_rank as low_rank
from .hypernets import scaled as scaled
from .hypernets import with_base as with_base
from .hypernets import with_embedding as with_embedding
from .hypernets import with_encoder as with_encoder
from .params import ParamSpec as ParamSpec
from .params import param_spec as param_spec
from .params import ravel as ravel
from .params import unravel as unravel
from .paths import PATHS as PATHS
from .paths import Path as Path
from .paths import linear as linear
from .regularizers import output_regularizer as output_regularizer
from .weights import Generated as Generated
from .weights import LowRank as LowRank
from .weights import Scaled as Scaled
from .weights import materialize as materialize

__version__ = "0.1.0"
