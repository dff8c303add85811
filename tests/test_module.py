"""`as_module`, `index=` and `explain`: what surrounds a composed model."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import functional_hyper as fh


@pytest.fixture
def main() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3)).double()


def perturbed(hyper: fh.Hypernet) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    phi = hyper.init(generator)
    return {
        k: (v.detach() + 0.1 * torch.randn(v.shape, generator=generator, dtype=v.dtype)).requires_grad_()
        for k, v in phi.items()
    }


def test_module_computes_the_model_and_trains(main: nn.Module):
    hyper = fh.full(fh.param_spec(main, include="2.*"), 4)
    phi, model = perturbed(hyper), fh.compose(hyper, main)
    module = fh.as_module(model, phi)
    cond, x = torch.randn(6, 4).double(), torch.randn(6, 5).double()
    before = {k: v.detach().clone() for k, v in phi.items()}
    torch.testing.assert_close(module(cond, x), model(phi, cond, x))
    module(cond, x).square().sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert (module(cond, x) - model(phi, cond, x)).abs().max() > 0
    assert all(torch.equal(before[k], v) for k, v in phi.items()), "the caller's phi is not the module's"
    assert main[0].weight.grad is not None, "what is not generated trains in the main network"
    assert main[2].weight.grad is None


def test_module_state_dict_round_trip(main: nn.Module):
    hyper = fh.low_rank(fh.param_spec(main), 4)
    phi = perturbed(hyper)
    module = fh.as_module(fh.compose(hyper, main), phi)
    state = module.state_dict()
    assert {k for k in state if k.startswith("phi.")} == {f"phi.{k}" for k in phi}
    assert {k for k in state if not k.startswith("phi.")} == {f"main.{k}" for k in main.state_dict()}
    other = fh.as_module(fh.compose(hyper, main), hyper.init())
    other.load_state_dict(state)
    cond, x = torch.randn(2, 4).double(), torch.randn(2, 5).double()
    torch.testing.assert_close(other(cond, x), module(cond, x))


def test_module_refuses_names_that_cannot_nest(main: nn.Module):
    spec = fh.param_spec(main)
    phi = {"a": torch.zeros(1), "a.b": torch.zeros(1)}
    hyper = fh.Hypernet(spec, lambda *_, **__: phi, lambda phi, cond: cond @ torch.ones(4, spec.size))
    with pytest.raises(fh.HyperError, match="names that nest"):
        fh.as_module(fh.compose(hyper, main), phi)


INDICES = {
    "few networks": [0, 2, 1, 1, 2] * 40,
    "one network": [1] * 30,
    "an unused network": [3, 0, 3, 3],
    "each its own": [2, 0, 1, 3],
    "none": [],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("make", [fh.full, fh.low_rank, fh.scaled], ids=lambda f: f.__name__)
@pytest.mark.parametrize("path", [*fh.PATHS, "auto"])
def test_index_is_one_network_for_each_row(main: nn.Module, path: str, make, index: list[int]):
    hyper = make(fh.param_spec(main), 4)
    phi, rows = perturbed(hyper), torch.tensor(index, dtype=torch.long)
    cond, x = torch.randn(4, 4).double(), torch.randn(len(index), 5).double().requires_grad_()
    leaves = [*phi.values(), x]
    got = fh.compose(hyper, main, path)(phi, cond, x, rows)
    want = fh.compose(hyper, main, "loop")(phi, cond[rows], x)
    assert got.shape == (len(index), 3)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (got, want)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("many_inputs", [False, True])
def test_rows_of_a_few_large_and_many_small_groups(dtype: torch.dtype, many_inputs: bool):
    """Where padding would waste most of the work, rows are sorted; float64 has no kernel for it and is padded."""
    main = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)
    hyper = fh.full(fh.param_spec(main), 4)
    phi, cond = hyper.init(), torch.randn(20, 4, dtype=dtype)
    index = torch.tensor([7] * 600 + list(range(20)) * 3)[torch.randperm(660)]
    x = torch.randn(660, *([5] if many_inputs else []), 8, dtype=dtype).requires_grad_()
    auto, loop = fh.compose(hyper, main), fh.compose(hyper, main, "bmm")
    assert fh.explain(auto, phi, cond, x, index).weights[0][1] == "dense, rows grouped by network"
    leaves = [*phi.values(), x]
    with torch.profiler.profile() as seen:
        got, want = auto(phi, cond, x, index), loop(phi, cond, x, index)
    assert ("aten::_grouped_mm" in {e.key for e in seen.key_averages()}) == (dtype == torch.float32)
    torch.testing.assert_close(got, want)
    slopes = [torch.autograd.grad(y.square().mean(), leaves, create_graph=True) for y in (got, want)]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs)
    curved = [torch.autograd.grad(torch.cat([s.flatten() for s in found]).square().sum(), leaves) for found in slopes]
    for ours, theirs in zip(*curved, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    for transform in (torch.func.jvp, jacobian_product):
        one, two = [transform(lambda x, m=m: m(phi, cond, x, index), (x,), (torch.ones_like(x),)) for m in (auto, loop)]
        torch.testing.assert_close(one, two)


def jacobian_product(f, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]):
    with forward_ad.dual_level():
        y = f(*[forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)])
        return tuple(forward_ad.unpack_dual(y))


def test_auto_groups_many_rows_of_few_networks(main: nn.Module):
    hyper = fh.full(fh.param_spec(main), 4)
    cond, index = torch.randn(3, 4).double(), torch.arange(300) % 3
    model = fh.compose(hyper, main)
    explained = fh.explain(model, hyper.init(), cond, torch.randn(300, 5).double(), index)
    assert {name: form for name, form, _ in explained.weights}["0.weight"] == "dense, rows grouped by network"


def test_explain_tells_form_and_rule(main: nn.Module):
    hyper = fh.full(fh.param_spec(main), 4, hidden=(6,))
    args = (hyper.init(), torch.randn(6, 4).double(), torch.randn(6, 5).double())
    text = str(fh.explain(fh.compose(hyper, main), *args))
    assert "contracted, head first" in text
    assert ", N=1, E=1, K=7" in text
    assert "torch.nn.functional.linear" in text
    many = fh.explain(fh.compose(hyper, main, evaluations=1000), *args)
    assert many.weights[0][1].startswith("dense")
    assert any(answer == "vmap" for _, _, answer in fh.explain(fh.compose(hyper, main, "vmap"), *args).calls)


def test_module_loads_phi_in_its_own_shapes(main: nn.Module):
    hyper = fh.full(fh.param_spec(main), 4)
    phi = perturbed(hyper)
    module = fh.as_module(fh.compose(hyper, main), hyper.init())
    holder = nn.ModuleDict({"hyper": module})  # under a prefix
    given = {f"hyper.phi.{name}": value for name, value in phi.items()}
    found = holder.load_state_dict(given, strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("hyper.main.") for name in found.missing_keys)
    assert set(given) == {f"hyper.phi.{name}" for name in phi}, "the caller's dict is as it was"
    assert all(value.dim() == phi[name.removeprefix("hyper.phi.")].dim() for name, value in given.items())
    back = module.phi_dict()
    assert list(back) == list(phi)
    assert all(torch.equal(value, phi[name]) and value.is_leaf and value.requires_grad for name, value in back.items())
    back["trunk.0.bias"].data.zero_()
    assert torch.equal(module.phi_dict()["trunk.0.bias"], phi["trunk.0.bias"]), "apart from the module"
    wrong = {"phi.trunk.0.bias": torch.zeros(3)}
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict(wrong, strict=False)
