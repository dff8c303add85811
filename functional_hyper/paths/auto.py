"""`auto`: for each weight, contract or materialise.

A weight set of B networks serves N inputs in each of E evaluations. Contraction repeats the head's product, ``K O I``
multiply-adds, for every input of every evaluation, with ``K min(O, I)`` numbers in between that go through memory,
reads the head, ``K O I`` numbers, in each, and makes more calls where there are several evaluations or inputs.
Materialising does the product once for each network, and then moves the ``B O I`` dense weights through memory in every
evaluation, forward and backward. Divided by ``B O I``, in the time of a multiply-add:

    contract:     N E K (1 + m / max(O, I)) + h (E - 1) K / B + c (E - 1 + [N > 1]) / (B O I)
    materialise:  K + a + b E

Contract where the first is no more than the second. `m` is what a number in between costs, `h` one of the head, `c` the
further calls, `a` a dense weight once (written, its gradient read), `b` a dense weight in each evaluation (read, its
gradient added to): far more where all of them do not fit the cache. The constants are set by times on 2 cores of three
kinds; ``python -m functional_hyper.study --workloads layers`` scores them on yours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from .. import weights
from .._errors import Hidden
from .._functorch import is_concrete
from ..weights import STRUCTURED, Generated, Leaf, batch_of, data_of, group, materialize, shape_of
from . import loop
from ._main import Caller
from ._path import Choice, Load, Path
from ._rows import WASTE, sorts
from ._rules import Log
from .contracted import TABLE, contracted, keep

BETWEEN, HEAD, CALLS, ONCE, EACH, FAR = 25.0, 120.0, 3e6, 20.0, 20.0, 65.0  # m, h, c, a, b, and b beyond the cache
CACHED = 2**20  # dense weights of all networks that stay in a cache between evaluations
COPY = 100.0  # what a dense weight costs that is copied to the rows that use it


def choose(leaf: Leaf, load: Load) -> Choice:
    """The cheaper form of one weight."""
    if load.networks == 1:
        return Choice(materialize(leaf), "dense", "one network is called as it is")
    if not isinstance(leaf, Generated) or leaf.head.dim() != 3:
        return keep(leaf, load)
    K, O, I = leaf.head.shape
    contract, materialise = costs(O, I, K, load)
    if contract <= materialise:
        return Choice(leaf, contracted(O, I), _reason(contract, "<=", materialise, load, K))
    return Choice(materialize(leaf), "dense, bmm", _reason(contract, ">", materialise, load, K))


def costs(O: int, I: int, K: int, load: Load) -> tuple[float, float]:
    """What contracting and what materialising a weight ``(O, I)`` costs, from K features: see above."""
    B, N, E = max(1, load.networks), load.inputs, load.evaluations
    calls = CALLS * (E - 1 + (N > 1)) / max(1, B * O * I)
    contract = N * E * K * (1 + BETWEEN / max(1, O, I)) + HEAD * (E - 1) * K / B + calls
    return contract, K + ONCE + (EACH if B * O * I <= CACHED else FAR) * E


def _reason(contract: float, sign: str, materialise: float, load: Load, K: int) -> str:
    if is_compiling():  # a size that varies is a symbol there, which has no digits
        return "decided while compiling"
    numbers = f"B={load.networks}, N={load.inputs}, E={load.evaluations}, K={K}"
    return f"contracting costs {contract:.0f} {sign} dense {materialise:.0f}, with {numbers}"


def gather(leaf: Leaf, index: Tensor) -> Leaf:
    """The networks of S rows: their rows grouped where C networks are written down more cheaply than S contract.

    A group's products cost ``C (K + c)`` for the weights and ``C M`` where groups of at most M rows are padded,
    ``1.5 S`` where rows are sorted; ``S K`` the contraction of gathered features, ``S c`` the copying of dense weights.
    """
    S, C = len(index), batch_of(leaf)[0]
    if len(shape_of(leaf)) != 2 or not isinstance(leaf, (Tensor, Generated)) or not is_concrete(index) or not S * C:
        return weights.gather(leaf, index)
    most = int(index.bincount(minlength=C).max())
    K = leaf.features.shape[-1] if isinstance(leaf, Generated) else 0
    apart = S * K if isinstance(leaf, Generated) else S * COPY
    rows = min(C * most, WASTE * S) if sorts(data_of(leaf), shape_of(leaf)) else C * most
    together = C * (K + COPY if K else 0) + rows
    return group(materialize(leaf), index) if together < apart else weights.gather(leaf, index)


class Auto(Path):
    """Factors where they pay; dense weights after all where the main network's own transforms must see them.

    One network alone has nothing to batch.
    """

    def bind(self, caller: Caller, leaves: Sequence[Leaf], randomness: str, shared: bool) -> Callable[..., Any]:  # type: ignore[override]
        if batch_of(leaves[0])[0] == 1:
            return loop.PATH.bind(caller, leaves, randomness, shared)
        bound = super().bind(caller, leaves, randomness, shared)
        if not any(isinstance(leaf, STRUCTURED) for leaf in leaves):
            return bound

        def evaluate(args: tuple[Any, ...], log: Log | None = None) -> Any:
            try:
                return bound(args, log)
            except Hidden:
                if log is not None:
                    log.clear()
                    log.written.extend(leaf for leaf in leaves if isinstance(leaf, STRUCTURED))
                return super(Auto, self).bind(caller, [*map(materialize, leaves)], randomness, shared)(args, log)

        return evaluate


PATH = Auto("auto", TABLE, choose, gather)
