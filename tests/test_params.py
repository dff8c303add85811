"""Flat vectors and pytrees: `ravel` and `unravel` undo each other, and the spec is plain data."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import functional_hyper as fh

Pair = namedtuple("Pair", "left right")

sizes = st.integers(0, 3)
shapes = st.lists(sizes, max_size=3).map(tuple)
batches = st.lists(sizes, max_size=2).map(tuple)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


def containers(inner: Any) -> Any:
    keys = st.text("abcXYZ_019", min_size=1, max_size=3)
    return (
        st.dictionaries(keys, inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=2).map(tuple)
        | st.builds(Pair, inner, inner)
    )


trees = st.recursive(shapes.map(torch.Size), lambda inner: containers(inner), max_leaves=6)
"""Pytrees whose leaves are shapes, as `torch.Size`, which is no pytree of its own in `is_leaf` below."""


def filled(tree: Any, batch: tuple[int, ...], dtype: torch.dtype, seed: int) -> Any:
    g = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn((*batch, *shape), generator=g).to(dtype)
    return optree.tree_map(draw, tree, is_leaf=lambda t: isinstance(t, torch.Size))


def same(a: Any, b: Any) -> bool:
    if optree.tree_structure(a) != optree.tree_structure(b):
        return False
    pairs = zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
    return all(x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


@given(trees, batches, dtypes, st.integers(0, 99))
def test_ravel_and_unravel_undo_each_other(tree: Any, batch: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    spec = fh.param_spec(filled(tree, (), dtype, 0))
    values = filled(tree, batch, dtype, seed)
    flat = fh.ravel(spec, values)
    assert flat.shape == (*batch, spec.size)
    assert flat.dtype == dtype == spec.dtype
    assert same(fh.unravel(spec, flat), values)
    again = torch.randn(*batch, spec.size).to(dtype)
    assert torch.equal(fh.ravel(spec, fh.unravel(spec, again)), again)
    assert spec.size == sum(leaf.numel() for leaf in optree.tree_leaves(filled(tree, (), dtype, 0)))


@given(trees, batches)
def test_unravel_gives_views(tree: Any, batch: tuple[int, ...]) -> None:
    spec = fh.param_spec(filled(tree, (), torch.float32, 0))
    flat = torch.zeros(*batch, spec.size)
    for leaf in optree.tree_leaves(fh.unravel(spec, flat)):
        assert leaf.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        leaf.fill_(1)
    assert (flat == 1).all()


@given(trees, st.integers(-3, 3).filter(bool))
def test_the_size_is_checked_exactly(tree: Any, off: int) -> None:
    spec = fh.param_spec(filled(tree, (), torch.float32, 0))
    wrong = max(0, spec.size + off)
    if wrong == spec.size:
        return
    with pytest.raises(fh.HyperError, match=rf"unravel\(flat=\.\.\.\).*P={spec.size}.*{wrong}"):
        fh.unravel(spec, torch.zeros(2, wrong))


def test_the_size_of_no_dims_is_an_error() -> None:
    with pytest.raises(fh.HyperError, match="unravel"):
        fh.unravel(fh.param_spec({"a": torch.zeros(())}), torch.tensor(1.0))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def test_flat_order_is_that_of_named_parameters() -> None:
    main = net()
    spec = fh.param_spec(main)
    own = dict(main.named_parameters())
    assert spec.names == tuple(own)
    assert spec.shapes == tuple(tuple(p.shape) for p in own.values())
    flat = fh.ravel(spec, own)
    assert torch.equal(flat, nn.utils.parameters_to_vector(main.parameters()))
    assert list(fh.unravel(spec, flat)) == list(own)


def test_a_pytree_has_its_flatten_order() -> None:
    tree = {"b": torch.tensor([1.0]), "a": [torch.tensor([2.0, 3.0]), Pair(torch.tensor(4.0), torch.tensor(5.0))]}
    spec = fh.param_spec(tree)
    assert spec.names == ("a.0", "a.1.left", "a.1.right", "b")
    assert fh.ravel(spec, tree).tolist() == [2, 3, 4, 5, 1]


# ------------------------------------------------------------------------------------------------ transforms


def test_under_vmap() -> None:
    spec = fh.param_spec(net())
    flat = torch.randn(5, 2, spec.size)
    twice = torch.vmap(torch.vmap(lambda f: fh.ravel(spec, fh.unravel(spec, f))))(flat)
    assert torch.equal(twice, flat)
    assert same(torch.vmap(lambda f: fh.unravel(spec, f))(flat), fh.unravel(spec, flat))


def test_under_grad() -> None:
    spec = fh.param_spec(net())
    weights = fh.unravel(spec, torch.randn(spec.size))
    loss = lambda f: sum((t * weights[n]).sum() for n, t in fh.unravel(spec, f).items())
    grad = torch.func.grad(loss)(torch.randn(spec.size))
    assert torch.equal(grad, fh.ravel(spec, weights))
    back = torch.func.grad(lambda tree: (fh.ravel(spec, tree) * grad).sum())(weights)
    assert same(back, weights)
    assert torch.equal(torch.func.jacfwd(lambda f: fh.ravel(spec, fh.unravel(spec, f)))(grad), torch.eye(spec.size))


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize(
    "tree", [net(), {"b": [torch.zeros(2), torch.zeros(())], "a": Pair(torch.ones(1, 2), torch.ones(1))}]
)
def test_under_compile(tree: Any) -> None:
    spec = fh.param_spec(tree)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(flat: Tensor) -> Any:
        params = fh.unravel(spec, flat)
        return params, fh.ravel(spec, params)

    flat = torch.randn(3, spec.size, requires_grad=True)
    params, again = both(flat)
    assert torch.equal(again, flat)
    assert same(params, fh.unravel(spec, flat))
    again.sum().backward()
    assert torch.equal(flat.grad, torch.ones_like(flat))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the spec


def test_plain_data() -> None:
    spec, other = fh.param_spec(net()), fh.param_spec(nn.Linear(3, 4))
    assert spec == fh.param_spec(net())
    assert hash(spec) == hash(fh.param_spec(net()))
    assert spec != other
    assert len({spec, fh.param_spec(net()), other}) == 2
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec
    assert fh.param_spec(net().double()) != spec
    with pytest.raises(AttributeError):
        spec.dtype = torch.float64  # type: ignore[misc]
    nested = fh.param_spec({"a": [torch.zeros(2)], "b": (torch.zeros(1),)})
    assert nested != fh.param_spec({"a": (torch.zeros(2),), "b": [torch.zeros(1)]})
    assert hash(nested) == hash(pickle.loads(pickle.dumps(nested)))


def test_prints_as_a_table() -> None:
    lines = str(fh.param_spec(net())).splitlines()
    assert [line.split()[0] for line in lines] == [
        "name",
        "0.weight",
        "0.bias",
        "1.weight",
        "2.weight",
        "2.bias",
        "3.weight",
        lines[-1].split()[0],
    ]
    assert "(4, 3)" in lines[1]
    assert "linear" in lines[1]
    assert "P=33" in lines[-1]
    assert repr(fh.param_spec(net())) == lines[-1]


def test_from_the_meta_device() -> None:
    with torch.device("meta"):
        main = net()
    spec = fh.param_spec(main)
    assert spec == fh.param_spec(net())
    phi = fh.full(spec, 2).init()
    assert all(v.device.type == "cpu" for v in phi.values())
    x, cond = torch.randn(3, 3), torch.randn(3, 2)
    for path in fh.PATHS:
        y = fh.compose(fh.full(spec, 2), main, path)(phi, cond, x)
        torch.testing.assert_close(y, fh.compose(fh.full(spec, 2), net(), path)(phi, cond, x))


def test_include_selects_by_pattern() -> None:
    names = lambda include: fh.param_spec(net(), include=include).names
    assert names("*") == fh.param_spec(net()).names
    assert names("0.*") == ("0.weight", "0.bias")
    assert names("*.weight") == ("0.weight", "1.weight", "2.weight", "3.weight")
    assert names(["3.*", "0.b*"]) == ("0.bias", "3.weight")
    assert fh.param_spec(nn.Sequential(nn.Sequential(nn.Linear(1, 1))), include="0*bias").names == ("0.0.bias",)


def test_tied_parameters_are_one_slot_under_the_first_name() -> None:
    main = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    main[1].weight = main[0].weight
    spec = fh.param_spec(main)
    assert spec.names == ("0.weight", "0.bias", "1.bias")
    assert spec.size == 8
    assert fh.param_spec(main, include="1.weight").names == ("0.weight",)


def test_fingerprint_is_of_names_shapes_order_and_dtype():
    spec = fh.param_spec({"a": torch.zeros(2, 3), "b": torch.zeros(4)})
    assert spec.fingerprint == fh.param_spec({"b": torch.ones(4), "a": torch.ones(2, 3)}).fingerprint
    # the same in every process and every release: checkpoints carry it
    assert spec.fingerprint == "d36c682837a1d0b0ae93c04c2224287d54a5f64fc5fe9f7f258499e54a89d299"
    others = [
        {"a": torch.zeros(3, 2), "b": torch.zeros(4)},
        {"a": torch.zeros(2, 3), "c": torch.zeros(4)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(4, 1)},
        {"a": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3).double(), "b": torch.zeros(4).double()},
        {"a (2, 3)\n'b'": torch.zeros(4)},
    ]
    found = {fh.param_spec(other).fingerprint for other in others}
    assert len(found | {spec.fingerprint}) == len(others) + 1
    layers = {"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(2, 1, bias=False)}
    one, other = nn.ModuleDict(layers), nn.ModuleDict(dict(reversed(layers.items())))
    assert fh.param_spec(one).fingerprint != fh.param_spec(other).fingerprint
