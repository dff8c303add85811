"""Kernels of a shared base and embedding tables stay in their factors where that pays, and are right everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_PATH, assert_same, define, hypernet, model_results, random_phi
from torch import Tensor, nn

import functional_hyper as fh

B, N, D = 3, 2, torch.float64
FACTORS = ("contracted", "auto")


def answers(hyper: fh.Hypernet, main: nn.Module, path: str, x: Tensor, **how: Any) -> set[str]:
    """What answered each call of the main network."""
    told = fh.explain(fh.compose(hyper, main, path, **how), hyper.init(), torch.zeros(B, 2, dtype=D), x)
    return {answer for _, _, answer in told.calls}


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(16, 12, 5, padding=2), (16, 2)),
    "2d": (lambda: nn.Conv2d(8, 9, 3, padding=1), (8, 2, 2)),
    "3d": (lambda: nn.Conv3d(3, 4, 2, padding=1), (3, 1, 1, 1)),
    "strided, dilated": (lambda: nn.Conv2d(8, 9, 3, stride=2, padding=(2, 1), dilation=(2, 1), bias=False), (8, 2, 2)),
    "same": (lambda: nn.Conv1d(16, 12, 5, padding="same"), (16, 2)),
    "circular": (lambda: nn.Conv1d(16, 20, 5, padding=2, padding_mode="circular"), (16, 2)),
    "twice": (lambda: nn.Sequential(nn.Conv1d(16, 12, 5, padding=2), nn.Tanh(), nn.Conv1d(12, 16, 5)), (16, 5)),
}


@pytest.mark.parametrize("path", FACTORS)
@pytest.mark.parametrize("kind", ["low rank", "low rank, frozen base", "scaled rows", "scaled columns", "scaled"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_a_shared_base(name: str, kind: str, path: str) -> None:
    make, shape = CONVOLUTIONS[name]
    main = make().double()
    hyper = hypernet(kind, fh.param_spec(main))
    phi, cond = random_phi(hyper), torch.randn(B, 2, dtype=D)
    for shared in (False, True):
        x = torch.randn(*(() if shared else (B,)), N, *shape, dtype=D)
        how = {"many": not shared, "shared": shared}
        got = model_results(hyper, main, path, phi, cond, x, **how)
        assert_same(got, model_results(hyper, main, None, phi, cond, x, **how))
        kept = kind.startswith("low rank") or kind == "scaled rows"
        assert ("contract_kernel" in answers(hyper, main, path, x, **how)) == kept


@pytest.mark.parametrize("kind", ["low rank", "scaled rows"])
def test_groups_and_large_images(kind: str) -> None:
    """Scales know no groups, an update of low rank does; where pixels are many, dense kernels are cheaper."""
    for main, shape, pays in (
        (nn.Conv1d(8, 8, 5, padding=2, groups=2), (8, 1), kind == "scaled rows"),
        (nn.Conv2d(2, 2, 3), (2, 9, 9), False),
    ):
        main = main.double()
        hyper = hypernet(kind, fh.param_spec(main))
        phi, cond, x = random_phi(hyper), torch.randn(B, 2, dtype=D), torch.randn(B, N, *shape, dtype=D)
        got = model_results(hyper, main, "auto", phi, cond, x, many=True)
        assert_same(got, model_results(hyper, main, None, phi, cond, x, many=True))
        assert ("contract_kernel" in answers(hyper, main, "auto", x, many=True)) == pays


def test_rows_of_few_networks_share_a_kernels_base() -> None:
    main = nn.Conv1d(6, 8, 5, padding=2).double()
    hyper = hypernet("low rank", fh.param_spec(main))
    phi, cond, index = random_phi(hyper), torch.randn(2, 2, dtype=D), torch.tensor([1, 0, 0, 1, 1])
    x = torch.randn(5, 6, 3, dtype=D)
    got = fh.compose(hyper, main, "auto")(phi, cond, x, index)
    assert_same({"y": got}, {"y": define(hyper, main, phi, cond[index], x)})


class Lookup(nn.Module):
    def __init__(self, padding: int | None = None, rows: int = 60) -> None:
        super().__init__()
        self.table, self.padding = nn.Parameter(torch.randn(rows, 3, dtype=D)), padding

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table, self.padding).tanh()


@pytest.mark.parametrize("path", FACTORS)
@pytest.mark.parametrize("kind", ["full", "chunked by layer", "low rank", "scaled rows", "scaled columns", "scaled"])
def test_embedding_tables_are_never_formed(kind: str, path: str) -> None:
    rows = 20_000  # tables of a few numbers are written down sooner
    for main in (Lookup(None, rows), Lookup(7, rows), Lookup(-1, rows), nn.Embedding(rows, 3, padding_idx=7).double()):
        hyper = hypernet(kind, fh.param_spec(main))
        phi, cond = random_phi(hyper), torch.randn(B, 2, dtype=D)
        for shared, shape in ((False, (2,)), (False, (2, 1)), (True, (2,))):
            ids = torch.randint(rows, (*(() if shared else (B,)), N, *shape))
            ids[0, 0], ids[-1, -1] = 7, rows - 1
            how = {"many": not shared, "shared": shared}
            got = model_results(hyper, main, path, phi, cond, ids, **how)
            assert_same(got, model_results(hyper, main, None, phi, cond, ids, **how))
            assert "embedding" in answers(hyper, main, path, ids, **how)
            assert "materialize" not in answers(hyper, main, path, ids, **how)


@pytest.mark.parametrize("path", FACTORS)
def test_many_lookups_take_the_table(path: str) -> None:
    main = Lookup()
    hyper = hypernet("full", fh.param_spec(main))
    phi, cond, ids = random_phi(hyper), torch.randn(B, 2, dtype=D), torch.randint(60, (B, N, 50))
    got = model_results(hyper, main, path, phi, cond, ids, many=True)
    assert_same(got, model_results(hyper, main, None, phi, cond, ids, many=True))
    assert "embedding" not in answers(hyper, main, path, ids, many=True)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_ids_out_of_range_are_an_error(path: str) -> None:
    for kind in ("full", "low rank"):
        hyper = hypernet(kind, fh.param_spec(Lookup()))
        with pytest.raises(IndexError):
            fh.compose(hyper, Lookup(), path)(hyper.init(), torch.randn(B, 2, dtype=D), torch.full((B, 2), 60))


class Mixed(nn.Module):
    """A kernel, a norm's statistics and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(16, 12, 5, padding=2), nn.BatchNorm1d(12)
        self.table = nn.Embedding(60, 3)
        self.register_buffer("ids", torch.tensor([1, 2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean(-1) * self.table(self.ids).sum()


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("kind", ["full", "low rank"])
def test_compiled_and_under_transforms(kind: str) -> None:
    main = Mixed().double().eval()
    hyper = hypernet(kind, fh.param_spec(main))
    arguments = (random_phi(hyper), torch.randn(B, 2, dtype=D), torch.randn(B, N, 16, 2, dtype=D))
    auto, loop = (fh.compose(hyper, main, path, many=True) for path in ("auto", "loop"))
    want = loop(*arguments)
    torch.testing.assert_close(torch.compile(auto, backend="eager", fullgraph=True)(*arguments), want)
    phi, cond, x = arguments
    slopes = [torch.func.jvp(lambda x, f=f: f(phi, cond, x), (x,), (x.cos(),))[1] for f in (auto, loop)]
    torch.testing.assert_close(*slopes)

    def own(f: Any) -> dict[str, Tensor]:
        """Each sample's own gradient of phi."""
        one = torch.func.grad(lambda phi, cond, x: f(phi, cond[None], x[None]).square().sum())
        return {f"d {name}": slope for name, slope in torch.func.vmap(one, (None, 0, 0))(*arguments).items()}

    assert_same(own(auto), own(loop))
