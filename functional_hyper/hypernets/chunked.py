"""`chunked`: one small head emits the weights chunk by chunk, told apart by learned chunk embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import initializers
from .._errors import bad
from .._types import Cond, Phi, PyTree
from ..initializers import BiasHyperinit, Initializer, Ordinary
from ..params import ParamSpec, unravel
from ..slots import Draw
from ..weights import Generated, map_leaves
from ._hypernet import Drawn, Hypernet
from ._trunk import Trunk, check_cond, power_of, trunk_of

SMALL = 0.1  # the gain of a slot whose draw is a constant: norm gains are generated around 1, not fixed there


def chunked(
    spec: ParamSpec,
    in_features: int,
    hidden: Sequence[int] = (64,),
    *,
    chunk_size: int | None = None,
    num_chunks: int | None = None,
    by: Literal["layer"] | None = None,
    embedding_dim: int = 8,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    layer_norm: bool = False,
    init: str | Initializer = "ordinary",
) -> Hypernet:
    """A hypernetwork whose one head emits all chunks: ``chunk_c = head(trunk([cond, e_c]))``.

    Weight p is chunk ``p // S``, offset ``p % S``; the last chunk's tail is cut. All chunks share the head's scale, so
    each weight has a fixed gain: the standard deviation that the initialiser wants (0.1 where a default draw is
    constant, as a norm's; around that constant), and a fixed sign, which keeps layers from alike chunks uncorrelated.
    ``init="bias_hyperinit"`` is `with_base` on the ordinary one.

    Args:
        spec: the main network's parameters, P numbers.
        in_features: the width of the cond.
        hidden: widths of the trunk; the last is K.
        chunk_size: S, numbers in a chunk.
        num_chunks: instead, the number of chunks; ``S = ceil(P / num_chunks)``.
        by: instead, "layer": one chunk per parameter, S the largest one's size. Only these weights can be contracted.
        embedding_dim: the width of the learned chunk embeddings.
        activation, layer_norm, init: as for `full`.

    Returns:
        A `Hypernet` with phi ``trunk.*``, ``chunks.weight`` ``(chunks, embedding_dim)``, ``head.chunk`` ``(K + 1, S)``.

    Raises:
        HyperError: not exactly one of `chunk_size`, `num_chunks`, `by`; or a number of chunks that no size gives.

    Ha, Dai, Le, "HyperNetworks" (ICLR 2017); von Oswald et al., "Continual learning with hypernetworks" (ICLR 2020).
    """
    if [chunk_size, num_chunks, by].count(None) != 2 or by not in (None, "layer"):
        got = f"chunk_size={chunk_size}, num_chunks={num_chunks}, by={by!r}"
        raise bad("chunked(...)", "exactly one of chunk_size, num_chunks, by='layer'", got, "name one")
    if min(chunk_size or 1, num_chunks or 1, embedding_dim) < 1:
        raise bad("chunked(...)", "positive sizes", f"{chunk_size or num_chunks}, {embedding_dim}", "give numbers >= 1")
    size = chunk_size or max((s.size for s in spec.slots), default=1)
    if num_chunks:
        size = max(1, math.ceil(spec.size / num_chunks))
        if math.ceil(spec.size / size) != num_chunks:
            mend = f"{math.ceil(spec.size / size)} chunks of {size} hold them"
            raise bad("chunked(num_chunks=...)", f"a number that divides P={spec.size} up", num_chunks, mend)
    trunk = trunk_of("chunked(...)", spec, in_features + embedding_dim, hidden, activation, layer_norm)
    rule = initializers.resolve(init)
    parts = Chunked(spec, trunk, embedding_dim, max(size, 1), by == "layer", rule)
    return parts.rebase(None) if isinstance(rule, BiasHyperinit) else parts.hypernet()


@dataclass(frozen=True)
class Chunked(Drawn):
    """The functions of `chunked` as plain data; ``base.<slot>``, if there is one, is added to what the head emits."""

    spec: ParamSpec
    trunk: Trunk
    embedding_dim: int
    size: int
    by_layer: bool
    initializer: Initializer
    base: dict[str, Tensor] | Literal["draw"] | None = None

    @property
    def count(self) -> int:
        return len(self.spec.slots) if self.by_layer else math.ceil(self.spec.size / self.size)

    @property
    def in_features(self) -> int:
        return self.trunk.in_features - self.embedding_dim

    def draw(self, generator: torch.Generator, dtype: torch.dtype) -> Phi:
        phi = self.trunk.init(generator, dtype)
        phi["chunks.weight"] = Draw("normal", 1.0).sample((self.count, self.embedding_dim), generator, dtype)
        power = power_of(self.trunk, self.initializer, phi, lambda phi, cond: self._features(phi, cond)[..., :-1])
        rows = Draw("uniform", math.sqrt(3 / power)).sample((self.trunk.width, self.size), generator, dtype)
        phi["head.chunk"] = F.pad(rows, (0, 0, 0, 1))  # the constant row starts at 0: it serves every chunk
        if self.base is not None:
            phi["head.chunk"] = torch.zeros_like(phi["head.chunk"])
            for slot in self.spec.slots:
                drawn = initializers.draw_base(slot, self._rule, generator, dtype)
                phi[f"base.{slot.name}"] = drawn if self.base == "draw" else self.base[slot.name].to(drawn)
        return phi

    @property
    def _rule(self) -> Initializer:
        return Ordinary() if isinstance(self.initializer, BiasHyperinit) else self.initializer

    def _features(self, phi: Phi, cond: Tensor) -> Tensor:
        """``(*batch, chunks, K + 1)``."""
        check_cond(cond, self.in_features)
        batch = cond.shape[:-1]
        chunks = phi["chunks.weight"].expand(*batch, -1, -1)
        return self.trunk.with_one(phi, torch.cat([cond.unsqueeze(-2).expand(*batch, self.count, -1), chunks], -1))

    def weights(self, phi: Phi, cond: Cond) -> PyTree:
        features = self._features(phi, cond)
        if self.by_layer:
            return map_leaves(lambda i: Generated(features[..., i, :], self._head(phi, i)), self.spec.template)
        values = unravel(self.spec, (features @ phi["head.chunk"]).flatten(-2)[..., : self.spec.size])
        return map_leaves(lambda i, value: self._scale(phi, i, value), self.spec.template, values)

    def _head(self, phi: Phi, i: int) -> Tensor:
        """The head ``(K + 1, *shape)`` of slot i in its own chunk."""
        slot = self.spec.slots[i]
        head = phi["head.chunk"][:, : slot.size].reshape(self.trunk.width + 1, *slot.shape)
        scaled = head * self._gain(i, head)
        return torch.cat([scaled[:-1], scaled[-1:] + self._around(phi, i)])

    def _scale(self, phi: Phi, i: int, value: Tensor) -> Tensor:
        """Values of unit variance as slot i's weights: times its gain, around its base."""
        return value * self._gain(i, value) + self._around(phi, i)

    def _around(self, phi: Phi, i: int) -> Any:
        slot = self.spec.slots[i]
        return self._rule.rows(slot, 1.0)[1].mean if self.base is None else phi[f"base.{slot.name}"]

    def _gain(self, i: int, like: Tensor) -> Tensor:
        """``(*shape)``: what makes values of unit variance slot i's, with a sign of its own for every weight."""
        slot = self.spec.slots[i]
        start = sum(s.size for s in self.spec.slots[:i])
        return signs(start, slot.size, like).reshape(slot.shape) * (self._rule.rows(slot, 1.0)[0] or SMALL)

    def __repr__(self) -> str:
        based = ", with base" if self.base is not None else ""
        kind = "by layer" if self.by_layer else f"{self.count} x {self.size}"
        return f"chunked(in_features={self.in_features}, hidden={self.trunk.hidden}, {kind}{based})"


def signs(start: int, size: int, like: Tensor) -> Tensor:
    """Fixed signs without a pattern for weights `start` to `start + size` ``(size,)``.

    Chunks whose features are alike are alike themselves; with signs of their own, the layers that they make are
    uncorrelated, as independent draws would be. A hash of the position: nothing to store, the same on every device.
    """
    p = torch.arange(start, start + size, device=like.device)
    for factor in (0x45D9F3B, 0x119DE1F3):
        p = ((p ^ (p >> 16)) * factor) & 0xFFFFFFFF
    return (1 - 2 * ((p >> 15) & 1)).to(like.dtype)
