"""Leaf types: what they mean, and that a hypernetwork hands on its structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import EVERY_PATH, KINDS, Encoder, assert_same, define, definition, hypernet, mlp, random_phi, results
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import functional_hyper as fh

D = torch.float64
B = 3


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D)


def generated(O: int, I: int, B: int = B) -> fh.Generated:
    return fh.Generated(randn(B, 4), randn(4, O, I))


def low_rank(O: int, I: int, B: int = B) -> fh.LowRank:
    return fh.LowRank(randn(O, I), randn(B, O, 2), randn(B, I, 2), 1.5)


def scaled(sides: str) -> Callable[..., fh.Scaled]:
    def make(O: int, I: int, B: int = B) -> fh.Scaled:
        return fh.Scaled(randn(O, I), randn(B, O) if "r" in sides else None, randn(B, I) if "c" in sides else None)

    return make


LEAVES: dict[str, Callable[..., Any]] = {
    "generated": generated,
    "low rank": low_rank,
    "rows": scaled("r"),
    "columns": scaled("c"),
    "both": scaled("rc"),
}


def meaning(leaf: Any, b: int) -> Tensor:
    """Network b's weight, written out from the formula."""
    match leaf:
        case fh.Generated(h, head):
            return sum((h[b, k] * head[k] for k in range(h.shape[1])), torch.zeros(head.shape[1:], dtype=D))
        case fh.LowRank(base, u, v, scale):
            return base + scale * torch.outer(u[b, :, 0], v[b, :, 0]) + scale * torch.outer(u[b, :, 1], v[b, :, 1])
        case fh.Scaled(base, row, column):
            row = torch.ones(B, base.shape[0], dtype=D) if row is None else row
            column = torch.ones(B, base.shape[1], dtype=D) if column is None else column
            return torch.diag(row[b]) @ base @ torch.diag(column[b])
    raise AssertionError(leaf)


@pytest.mark.parametrize("name", LEAVES)
def test_materialize_is_the_formula(name: str) -> None:
    leaf = LEAVES[name](4, 5)
    dense = fh.materialize(leaf)
    assert dense.shape == (B, 4, 5) == (*leaf.batch, *leaf.shape)
    want = torch.stack([meaning(leaf, b) for b in range(B)])
    torch.testing.assert_close(dense, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(fh.materialize(leaf.transposed()), want.mT, rtol=1e-12, atol=1e-13)
    index = torch.tensor([2, 0, 0, 1])
    torch.testing.assert_close(fh.materialize(leaf.gather(index)), want[index], rtol=1e-12, atol=1e-13)
    assert fh.materialize(dense) is dense


def test_more_batch_dims_and_other_shapes() -> None:
    for shape in [(), (4,), (4, 5), (4, 5, 2, 2)]:
        leaf = fh.Generated(randn(2, B, 6), randn(6, *shape))
        want = torch.einsum("abk,k...->ab...", leaf.features, leaf.head)
        torch.testing.assert_close(fh.materialize(leaf), want, rtol=1e-12, atol=1e-13)
    kernel = fh.LowRank(randn(4, 5, 3), randn(2, B, 4, 1), randn(2, B, 15, 1))
    want = kernel.base + (kernel.u @ kernel.v.mT).view(2, B, 4, 5, 3)
    torch.testing.assert_close(fh.materialize(kernel), want, rtol=1e-12, atol=1e-13)
    rows = fh.Scaled(randn(4, 5, 3), randn(2, B, 4), None)
    torch.testing.assert_close(fh.materialize(rows), rows.base * rows.row[..., None, None], rtol=1e-12, atol=1e-13)  # type: ignore[index]


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("name", LEAVES)
@settings(max_examples=12)
@given(sizes=st.tuples(*[st.integers(1, 4)] * 3), many=st.booleans())
def test_a_users_own_leaves_on_every_path(name: str, path: str, sizes: tuple[int, int, int], many: bool) -> None:
    N, O, I = sizes
    torch.manual_seed(0)
    leaf, x, bias = LEAVES[name](O, I), randn(B, N, I) if many else randn(B, I), randn(B, O)
    fields = {k: v for k, v in vars(leaf).items() if isinstance(v, Tensor)}
    main = nn.Linear(I, O, dtype=D)

    def rebuilt(fields: Any) -> Any:
        return type(leaf)(**{k: fields.get(k, v) for k, v in vars(leaf).items()})

    def by_leaf(fields: Any, bias: Tensor, x: Tensor) -> Any:
        return fh.evaluate(main, {"weight": rebuilt(fields), "bias": bias}, x, path, many=many)

    def by_meaning(fields: Any, bias: Tensor, x: Tensor) -> Any:
        return definition(main, {"weight": rebuilt(fields).materialize(), "bias": bias}, x, many)

    assert_same(results(by_leaf, (fields, bias, x)), results(by_meaning, (fields, bias, x)))


EXPECTED = {
    "full": fh.Generated,
    "chunked by layer": fh.Generated,
    "low rank": fh.LowRank,
    "scaled": fh.Scaled,
    "chunked by size": Tensor,
    "custom": Tensor,
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_hypernetworks_hand_their_factors_on(kind: str) -> None:
    main = mlp(5, 4, 2)
    plain = hypernet(kind, fh.param_spec(main))
    wrapped = [plain, fh.with_embedding(plain, B, 2), fh.with_encoder(plain, Encoder(2, D))]
    wrapped += [] if kind in ("low rank", "scaled") else [fh.with_base(plain)]
    conds = [randn(B, 2), torch.arange(B), randn(B, 2, 3), randn(B, 2)]
    for hyper, cond in zip(wrapped, conds, strict=False):
        leaves = hyper.weights(random_phi(hyper), cond)
        assert list(leaves) == list(hyper.spec.names)
        assert isinstance(leaves["0.weight"], EXPECTED[kind])
        assert isinstance(leaves["2.weight"], EXPECTED[kind])


def test_one_set_of_features_for_all_heads() -> None:
    main = mlp(5, 4, 2)
    hyper = fh.full(fh.param_spec(main), 2, (4,))
    phi = hyper.init()
    leaves = hyper.weights(phi, randn(B, 2))
    assert len({id(leaf.features) for leaf in leaves.values()}) == 1
    assert leaves["0.weight"].features.shape == (B, 5)
    assert (leaves["0.weight"].features[:, -1] == 1).all()
    assert leaves["0.weight"].head is phi["head.0.weight"]
    assert phi["head.0.weight"].shape == (5, 4, 5)
    assert phi["head.0.weight"].is_contiguous()


NAMES = {
    "full": {"trunk.0.weight", "trunk.0.bias", "head.weight", "head.bias"},
    "chunked by size": {"trunk.0.weight", "trunk.0.bias", "chunks.weight", "head.chunk"},
    "low rank": {
        *("trunk.0.weight", "trunk.0.bias", "head.weight.u", "head.weight.v", "head.bias.delta"),
        *("base.weight", "base.bias"),
    },
    "low rank, frozen base": {"trunk.0.weight", "trunk.0.bias", "head.weight.u", "head.weight.v", "head.bias.delta"},
    "scaled": {
        *("trunk.0.weight", "trunk.0.bias", "head.weight.row", "head.weight.column", "head.bias.delta"),
        *("base.weight", "base.bias"),
    },
}


@pytest.mark.parametrize("kind", NAMES)
def test_wrappers_never_rename_inner_keys(kind: str) -> None:
    hyper = KINDS[kind](fh.param_spec(nn.Linear(3, 2)), 2)
    assert set(hyper.init()) == NAMES[kind]
    assert set(fh.with_embedding(hyper, 3).init()) == NAMES[kind] | {"embedding.weight"}
    encoder = Encoder(2, torch.float32)
    encoded = fh.with_encoder(hyper, encoder)
    phi = encoded.init()
    assert set(phi) == NAMES[kind] | {"encoder.linear.weight", "encoder.linear.bias"}
    assert torch.equal(phi["encoder.linear.weight"], encoder.linear.weight)
    assert phi["encoder.linear.weight"] is not encoder.linear.weight
    if kind == "full":
        assert set(fh.with_base(hyper).init()) == NAMES[kind]
    if kind == "chunked by size":
        assert set(fh.with_base(hyper).init()) == NAMES[kind] | {"base.weight", "base.bias"}


def test_a_given_base_is_where_it_starts() -> None:
    main = mlp(5, 4, 2)
    spec = fh.param_spec(main)
    start = nn.utils.parameters_to_vector(main.parameters()).detach()
    cond = randn(B, 2)
    for kind in ("full", "chunked by size", "chunked by layer", "custom"):
        for base in (start, dict(main.named_parameters())):
            hyper = fh.with_base(KINDS[kind](spec, 2), base)
            phi = {
                n: torch.zeros_like(v) if n == "map" else v for n, v in hyper.init().items()
            }  # a custom one is not 0
            assert torch.equal(hyper.apply(phi, cond), start.expand(B, -1)), kind
    for hyper in (fh.low_rank(spec, 2, base=start), fh.scaled(spec, 2, base=dict(main.named_parameters()))):
        phi = hyper.init()
        assert not any(n.startswith("base.") for n in phi)  # the caller's, frozen
        assert torch.equal(hyper.apply(phi, cond), start.expand(B, -1))


def test_a_chunk_is_a_number_of_weights() -> None:
    """Weight p is chunk ``p // S``, offset ``p % S``, the tail cut."""
    spec = fh.param_spec({"w": torch.zeros(7, dtype=D)})
    hyper = fh.chunked(spec, 2, (3,), chunk_size=3, embedding_dim=2)
    phi = random_phi(hyper)
    assert phi["chunks.weight"].shape == (3, 2)
    assert phi["head.chunk"].shape == (4, 3)
    cond = randn(1, 2)
    theta = hyper.apply(phi, cond)
    phi["chunks.weight"] = phi["chunks.weight"].clone()
    phi["chunks.weight"][1] += 1
    moved = (hyper.apply(phi, cond) - theta).squeeze(0).ne(0)
    assert moved.tolist() == [False] * 3 + [True] * 3 + [False]


@pytest.mark.parametrize("path", EVERY_PATH)
def test_unconditional(path: str) -> None:
    """One learned embedding, B = 1, many inputs."""
    main = mlp(5, 4, 2)
    hyper = fh.with_embedding(fh.full(fh.param_spec(main), 3), 1)
    phi, cond, x = random_phi(hyper), torch.zeros(1, dtype=torch.int64), randn(1, 9, 5)
    got = fh.compose(hyper, main, path, many=True)(phi, cond, x)
    assert_same({"y": got}, {"y": define(hyper, main, phi, cond, x, many=True)})
