"""`auto`: for each weight, contract or materialise.

A weight set of B networks serves N inputs in each of E evaluations. Contraction repeats the head's product, ``2 K O I``
operations, for every input and every evaluation; materialising does it once for each network and then moves the dense
weights through memory in every evaluation, forward and backward. Per network and per number of the weight:

    contract:     N E K                 multiply-adds
    materialise:  K + a + b E           the last two in the time of multiply-adds

so contraction wins where ``(N E - 1) K <= a + b E``. `a` is what writing the weights and differentiating them costs,
`b` what an evaluation costs that reads them. See `python -m functional_hyper.study`.
"""

from __future__ import annotations

from ..weights import Generated, Leaf, materialize, shape_of
from ._path import Choice, Load, Path
from .contracted import TABLE, form_of, keep

ONCE, EACH = 100.0, 16.0  # a and b


def choose(leaf: Leaf, load: Load) -> Choice:
    """The cheaper form of one weight."""
    kept = keep(leaf, load)
    if not isinstance(kept.leaf, Generated):
        return kept
    K = kept.leaf.features.shape[-1]
    repeats = (load.inputs * load.evaluations - 1) * K
    budget = ONCE + EACH * load.evaluations
    sign = "<=" if repeats <= budget else ">"
    why = f"(N E - 1) K = {repeats:g} {sign} {budget:g} with N={load.inputs}, E={load.evaluations}, K={K}"
    if repeats <= budget:
        return Choice(kept.leaf, form_of(kept.leaf), why)
    return Choice(materialize(kept.leaf), f"dense, bmm {tuple(shape_of(kept.leaf))}", why)


PATH = Path("auto", TABLE, choose)
