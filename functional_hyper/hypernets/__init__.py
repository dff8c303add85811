"""Hypernetworks, one constructor a file. To add one: a file whose function returns a `Hypernet`, and a line here."""

from ._hypernet import Hypernet as Hypernet
from .base import with_base as with_base
from .chunked import chunked as chunked
from .embedding import with_embedding as with_embedding
from .encoder import with_encoder as with_encoder
from .full import full as full
from .low_rank import low_rank as low_rank
from .scaled import scaled as scaled
