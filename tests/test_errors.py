"""Bad input: one type of error from every path; it names the argument, what was expected, what came, and the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_PATH, custom, hypernet, mlp
from torch import Tensor, nn

import functional_hyper as fh

B, N = 3, 4
MAIN = mlp(5, 4, 2, dtype=torch.float32)
SPEC = fh.param_spec(MAIN)
FULL = fh.full(SPEC, 2, (4,))


def theta(rows: int = B) -> dict[str, Tensor]:
    return fh.unravel(SPEC, torch.randn(rows, SPEC.size))


def swapped(**changes: Any) -> dict[str, Any]:
    """Good weights, but for the parameters whose names are given with `_` for `.`."""
    return theta() | {name.replace("_", ".", 1): value for name, value in changes.items()}


def without(name: str) -> dict[str, Tensor]:
    return {n: t for n, t in theta().items() if n != name}


def tied() -> nn.Module:
    main = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    main[1].weight = main[0].weight
    return main


def raises(f: Callable[[], Any], *parts: str, kind: type[Exception] = fh.HyperError) -> None:
    with pytest.raises(kind) as caught:
        f()
    message = str(caught.value)
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert not issubclass(kind, fh.HyperError) or ("expected" in message and "; " in message), message


def evaluate(params: Any, x: Any = None, main: Any = MAIN, **how: Any) -> Callable[[str], Any]:
    return lambda path: fh.evaluate(main, params, torch.randn(B, 5) if x is None else x, path, **how)


def model(cond: Any = None, x: Any = None, index: Any = None, hyper: Any = FULL, **how: Any) -> Callable[[str], Any]:
    def run(path: str) -> Any:
        composed = fh.compose(hyper, MAIN, path, **how)
        inputs = torch.randn(B, 5) if x is None else x
        return composed(hyper.init(), torch.randn(B, 2) if cond is None else cond, inputs, index)

    return run


meta = lambda *shape: torch.zeros(*shape, device="meta")

# name: (what is done on each path, parts of the message)
ON_EVERY_PATH: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "weights of another shape": (
        evaluate(swapped(**{"0_weight": torch.zeros(B, 4, 6)})),
        ("0.weight", "(B, 4, 5)", "(3, 4, 6)", "unravel"),
    ),
    "weights of one network": (evaluate(dict(MAIN.named_parameters())), ("0.weight", "(B, 4, 5)", "(4, 5)")),
    "two batch dims": (evaluate({n: t[None] for n, t in theta().items()}), ("0.weight", "(1, 3, 4, 5)")),
    "two numbers of networks": (evaluate(swapped(**{"2_bias": torch.zeros(B + 1, 2)})), ("2.bias", "B=3", "4")),
    "two dtypes": (
        evaluate(swapped(**{"2_bias": torch.zeros(B, 2).double()})),
        ("2.bias", "float64", "float32", ".to("),
    ),
    "two devices": (evaluate(swapped(**{"2_bias": meta(B, 2)})), ("2.bias", "meta", "cpu", ".to(")),
    "an extra key": (evaluate(theta() | {"3.weight": torch.zeros(B, 2)}), ("params", "extra: 3.weight", "0.weight")),
    "a tied key": (
        evaluate({"0.weight": torch.zeros(B, 2, 2), "1.weight": torch.zeros(B, 2, 2)}, torch.zeros(B, 2), tied()),
        ("1.weight", "tied"),
    ),
    "a missing key": (
        evaluate(without("2.bias"), main=mlp(5, 4, 2, device="meta", dtype=torch.float32)),
        ("missing: 2.bias", "meta"),
    ),
    "not a tensor": (evaluate(swapped(**{"0_bias": [0.0]})), ("0.bias", "list", "tensor")),
    "a flat vector": (evaluate(torch.randn(B, SPEC.size)), ("params", "dict", "Tensor", "unravel")),
    "no weights": (evaluate({}), ("params", "at least one", "none")),
    "no main network": (evaluate(theta(), main="mlp"), ("main", "str", "nn.Module")),
    "more rows of x than networks": (
        evaluate(theta(), torch.randn(B + 1, 5)),
        ("x", "(3, ", "(4, 5)", "many=True", "shared=True", "index="),
    ),
    "x without rows": (evaluate(theta(), torch.randn(5, 5)[0, 0]), ("x", "(3, ", "()")),
    "x without its second dim": (evaluate(theta(), torch.randn(B), many=True), ("x", "N", "(3,)")),
    "the second argument of other rows": (
        evaluate(
            {"w": torch.zeros(B, 2, 5)},
            (torch.zeros(B, 5), torch.zeros(B + 1, 2)),
            lambda p, x, y: F.linear(x, p["w"]) + y,
        ),
        ("x", "(3, ", "(4, 2)"),
    ),
    "unknown randomness": (evaluate(theta(), randomness="same"), ("randomness", "'same'", "different")),
    "an output without the batch": (
        evaluate({"w": torch.zeros(B, 2, 5)}, main=lambda p, x: F.linear(x, p["w"]).sum()),
        ("main", "batch in front", "many=True"),
    ),
    "a cond too wide": (model(torch.randn(B, 3)), ("cond", "in_features=2", "(3, 3)", "with_encoder")),
    "a cond of integers": (model(torch.zeros(B, 2, dtype=torch.int64)), ("cond", "int64", "with_embedding")),
    "a cond that is no tensor": (model([0.0, 1.0]), ("cond", "list")),
    "a cond without the batch": (model(torch.randn(2)), ("cond", "(B, 4, 5)", "(4, 5)")),
    "a cond of two batch dims": (model(torch.randn(1, B, 2)), ("cond", "(1, 3, 4, 5)")),
    "more rows of x than of cond": (model(x=torch.randn(B + 1, 5)), ("x", "(3, ", "(4, 5)", "index=")),
    "an index too large": (model(x=torch.randn(2, 5), index=torch.tensor([0, B])), ("index", "[0, 3)", "3")),
    "a negative index": (model(x=torch.randn(2, 5), index=torch.tensor([0, -1])), ("index", "[0, 3)", "-1")),
    "an index of floats": (model(x=torch.randn(2, 5), index=torch.zeros(2)), ("index", "int64", "float32")),
    "an index of two dims": (
        model(x=torch.randn(2, 5), index=torch.zeros(2, 1, dtype=torch.int64)),
        ("index", "(S,)", "(2, 1)"),
    ),
    "an index of other rows": (
        model(x=torch.randn(2, 5), index=torch.zeros(3, dtype=torch.int64)),
        ("x", "(3, ", "(2, 5)"),
    ),
    "an index with many": (
        model(x=torch.randn(B, N, 5), index=torch.zeros(B, dtype=torch.int64), many=True),
        ("index", "many"),
    ),
    "a task id too large": (
        model(torch.tensor([0, 1, 2]), hyper=fh.with_embedding(FULL, 2)),
        ("cond", "[0, 2)", "2", "num_tasks"),
    ),
    "a negative task id": (model(torch.tensor([0, 1, -1]), hyper=fh.with_embedding(FULL, 2)), ("cond", "[0, 2)", "-1")),
    "task ids of floats": (
        model(torch.zeros(B), hyper=fh.with_embedding(FULL, 2)),
        ("cond", "int64", "float32", "long"),
    ),
}


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("name", ON_EVERY_PATH)
def test_one_clear_error_on_every_path(name: str, path: str) -> None:
    f, parts = ON_EVERY_PATH[name]
    raises(lambda: f(path), *parts)


@pytest.mark.parametrize("path", ["grouped_convolution", "", "Loop", None, 3])
def test_an_unknown_path_lists_the_valid_ones(path: Any) -> None:
    for f in (
        lambda: evaluate(theta())(path),
        lambda: fh.compose(FULL, MAIN, path),
        lambda: fh.bind(MAIN, theta(), path),
    ):
        raises(f, "path=", repr(path), *EVERY_PATH)


def test_contracted_wants_factors() -> None:
    own = custom(SPEC, 2)
    for hyper in (own, fh.with_base(own), fh.with_embedding(own, 2, 2)):
        raises(lambda hyper=hyper: fh.compose(hyper, MAIN, "contracted"), "contracted", "factors", "auto")


class Odd(nn.Module):
    """Calls torch in a way that the tests choose."""

    def __init__(self, f: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.f, self.linear = f, nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Any:
        return self.f(self.linear(x))


@pytest.mark.parametrize("path", [p for p in EVERY_PATH if p != "loop"])
@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda y: y * y.sum().item(), "item"),
        (lambda y: y if y.sum() > 0 else -y, "bool"),
        (lambda y: y[y > 0], "getitem"),
        (lambda y: y.nonzero(), "nonzero"),
        (lambda y: torch.tensor(y.tolist()), "tolist"),
        (lambda y: torch.from_numpy(y.detach().numpy()), "numpy"),
    ],
)
def test_what_vmap_cannot_do_is_refused_by_name(f: Callable[[Tensor], Any], name: str, path: str) -> None:
    main = Odd(f)
    hyper = hypernet("full", fh.param_spec(main))
    with pytest.raises(fh.Refused) as caught:
        fh.compose(hyper, main, path, many=True)(hyper.init(), torch.randn(B, 2), torch.randn(B, N, 5))
    for part in ("`main`", name, "loop"):
        assert part in str(caught.value)


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("kind", ["full", "low rank", "scaled"])
@pytest.mark.parametrize(
    "x",
    [
        torch.randn(B, N, 4),
        torch.randn(B, N, 6),
        torch.randn(B, N, 0),
        torch.randn(B, N, 5).double(),
        torch.ones(B, N, 5, dtype=torch.int64),
        torch.ones(B, N, 5, dtype=torch.bool),
        torch.ones(B, N, 5, dtype=torch.complex64),
    ],
    ids=["narrow", "wide", "empty", "double", "integer", "bool", "complex"],
)
@pytest.mark.parametrize(
    "main",
    [MAIN, nn.Sequential(nn.LayerNorm(5)), nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 2, 9))],
    ids=["linear", "norm", "convolution"],
)
def test_what_torch_refuses_every_path_does(main: nn.Module, x: Tensor, kind: str, path: str) -> None:
    """x is the main network's business; what its ordinary layers raise is what every path raises."""
    hyper = hypernet(kind, fh.param_spec(main))

    def run(path: str) -> Any:
        return fh.compose(hyper, main, path, many=True)(hyper.init(), torch.randn(B, 2), x)

    try:
        want = run("loop")
    except Exception as error:
        with pytest.raises(type(error)):
            run(path)
    else:
        torch.testing.assert_close(run(path), want)
