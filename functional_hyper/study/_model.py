"""The cost model: operations and numbers moved of one training step, by path, and the time that they would take.

A linear layer ``(O, I)`` of B networks, N inputs each, E evaluations, K features (a head's bias row counts as one).
Forward and backward are three products of equal size: the value, the gradient of either factor.

- Materialising: weights ``6 B K O I`` operations, once; evaluations ``6 E B N O I``.
- Contracted: ``6 E B N K (O I + min(O, I))`` operations; nothing of size ``B O I``.

Moved numbers: every product reads its operands and writes its result. Dense weights are written once and their
gradient is read twice; each evaluation reads them twice, writes their gradient and, but for the first, adds it, two
reads and a write.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..paths import Load
from ..paths.auto import costs

COPIES = {"loop": 2, "vmap": 4, "bmm": 4, "grouped_conv": 0, "broadcast": 0}
"""Further times that dense weights move: gradients that are stacked, or copied from a transposed layout."""


def layer(path: str, O: int, I: int, K: int, B: int, N: int = 1, E: int = 1) -> tuple[float, float]:
    """Operations and numbers moved of one layer with bias, forward and backward, head included."""
    ends = 3 * E * B * N * (O + I)  # x and y and their gradients, each in two of the three products
    bias = 6 * B * K * O, 3 * (B * K + K * O + B * O)
    if path == "contracted":
        between, head = B * N * K * min(O, I), K * O * I
        flops = 6 * E * B * N * K * (O * I + min(O, I))
        moved = E * (3 * head + 8 * between) + 3 * (E - 1) * head + ends
    else:
        dense = B * O * I
        flops = 6 * B * K * O * I + 6 * E * B * N * O * I
        moved = 3 * (K * O * I + B * K) + dense * (3 + 3 * E + 3 * (E - 1) + COPIES[path]) + ends
        if path == "broadcast":  # the products before the sum, written and read; their gradients, twice
            moved += 6 * E * B * N * O * I
    return flops + bias[0], moved + bias[1]


def predicted(
    path: str, layers: Iterable[tuple[int, int]], K: int, B: int, N: int, E: int, peak: dict[str, float]
) -> float:
    """Milliseconds for layers ``(O, I)`` at the machine's peaks: operations, then bytes (of float32)."""
    priced = [layer(path, O, I, K, B, N, E) for O, I in layers]
    return sum(f / peak["gemm"] + 4 * n / peak["bandwidth"] for f, n in priced) / 1e6


def rule(O: int, I: int, K: int, B: int, N: int, E: int) -> float:
    """What contracting costs over what materialising costs, as path="auto" weighs them: it contracts up to 1."""
    contract, materialise = costs(O, I, K, Load(B, N, E))
    return contract / materialise
