"""`bind` and `evaluate`: B main networks with B sets of weights, at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor, nn

from . import paths
from ._errors import bad, listed
from ._types import Inputs, Main, PyTree
from .params import leaf_names, numbered
from .paths import Choice, Load, Path
from .paths._main import Caller
from .paths._rules import Log
from .weights import STRUCTURED, Generated, Leaf, batch_of, data_of, map_tensors, materialize, shape_of

UNRAVELED = "one batch dim, then the parameter's own shape: unravel(param_spec(main), theta)"
MANY = 256  # inputs per network that `bind(many=True)` expects where it is not told


def bind(
    main: Main,
    params: PyTree,
    path: str | Path = "auto",
    *,
    many: bool = False,
    shared: bool = False,
    inputs: int | None = None,
    evaluations: int = 1,
    randomness: str = "error",
) -> Bound:
    """B main networks as one function of their inputs, the weights prepared once.

    Args:
        main: an `nn.Module`, or a pure function ``f(params, *x)``; it sees an ordinary batch.
        params: the weights of B networks, leaves ``(B, *shape)`` or structured: a dict by parameter name for a module
            (parameters that it lacks stay the module's own), any pytree for a function.
        path: a name in `PATHS`, "auto", or a `Path`.
        many: x is ``(B, N, ...)``, N inputs for each network; otherwise ``(B, ...)``, one for each.
        shared: x is ``(N, ...)``, the same inputs for every network; the result is ``(B, N, ...)``.
        inputs: the N that "auto" should expect; None is 1, with `many` or `shared` 256.
        evaluations: how many calls "auto" should expect.
        randomness: "error" refuses random numbers in the main network (dropout in training), "different" gives every
            network and input its own.

    Returns:
        ``net(x) -> y``, where x may be a tuple of positional arguments and y any pytree with the batch in front.

    Raises:
        HyperError: extra or tied names, wrong shapes, batch dims, dtypes or devices, an unknown path.
        Refused: on a call, a main network that the path cannot evaluate rightly; the message names the operation.

    Example:
        >>> main = torch.nn.Linear(3, 2)
        >>> net = bind(main, {"weight": torch.zeros(5, 2, 3), "bias": torch.ones(5, 2)})
        >>> net(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    expected = inputs or (MANY if many or shared else 1)
    leaves, template = checked(main, params)
    load = Load(batch_of(leaves[0])[0], expected, evaluations)
    return Bound(Caller(main, template), leaves, paths.resolve(path), many, shared, load, randomness)


def evaluate(
    main: Main,
    params: PyTree,
    x: Inputs,
    path: str | Path = "auto",
    many: bool = False,
    *,
    shared: bool = False,
    randomness: str = "error",
) -> Any:
    """``y[b] = main(x[b])`` with the weights ``params[b]``, for all b at once.

    Args:
        main, params, path, many, shared, randomness: as for `bind`.
        x: ``(B, ...)``; with `many` ``(B, N, ...)``, with `shared` ``(N, ...)``; a tuple is several arguments.

    Returns:
        ``(B, ...)``; with `many` or `shared` ``(B, N, ...)``.

    Example:
        >>> w = torch.randn(5, 2, 3)
        >>> evaluate(lambda p, x: x @ p["w"].T, {"w": w}, torch.randn(5, 3)).shape
        torch.Size([5, 2])
    """
    inputs = count_inputs(x, many, shared)
    return bind(main, params, path, many=many, shared=shared, inputs=inputs, randomness=randomness)(x)


def count_inputs(x: Inputs, many: bool, shared: bool) -> int:
    """N, as the first tensor of x shows it."""
    if not (many or shared):
        return 1
    first = next((a for a in optree.tree_leaves(x) if isinstance(a, Tensor)), None)  # type: ignore[arg-type]
    at = 0 if shared else 1
    return max(1, first.shape[at]) if first is not None and first.dim() > at else 1


class Bound:
    """``net(x)``: B main networks with their weights, ready. Made by `bind`."""

    def __init__(
        self,
        caller: Caller,
        leaves: Sequence[Leaf],
        path: Path,
        many: bool,
        shared: bool,
        load: Load,
        randomness: str,
    ) -> None:
        if randomness not in ("error", "different"):
            raise bad("bind(randomness=...)", "'error' or 'different'", repr(randomness), "name one")
        if load.inputs < 1 or load.evaluations < 1:
            raise bad("bind(inputs=..., evaluations=...)", "numbers >= 1", (load.inputs, load.evaluations), "omit them")
        self.caller, self.path, self.many, self.shared = caller, path, many or shared, shared
        self.networks = load.networks
        if caller.scripted:  # a script's calls cannot be seen from outside: placeholders would reach its arithmetic
            leaves = [materialize(leaf) for leaf in leaves]
        if not self.networks:  # nothing to batch over: one network of zeros gives the result its shape
            leaves = [torch.cat([dense, dense.new_zeros(1, *dense.shape[1:])]) for dense in map(materialize, leaves)]
        with torch.enable_grad():  # weights prepared under no_grad would later give no gradients, without a word
            self.choices: list[Choice] = [path.prepare(leaf, load) for leaf in leaves]
            self.run = path.bind(caller, [c.leaf for c in self.choices], randomness, shared)

    def __call__(self, x: Inputs, log: Log | None = None) -> Any:
        self.caller.refuse_running_statistics()
        keep: Callable[[Tensor], Tensor] = (lambda a: a) if self.shared else self._checked
        args = tuple([map_tensors("net(x=...)", keep, a) for a in (x if isinstance(x, tuple) else (x,))])
        return map_tensors("main", self._out, self.run(args, log))

    def _checked(self, x: Tensor) -> Tensor:
        if x.dim() < (2 if self.many else 1) or x.shape[0] != self.networks:
            want = f"({self.networks}, {'N, ' if self.many else ''}...), one row for each network"
            mend = "many=True takes (B, N, ...), shared=True (N, ...), index= many rows for few networks"
            raise bad("net(x=...)", want, tuple(x.shape), mend)
        x = x if self.many else x.unsqueeze(1)
        return x if self.networks else torch.cat([x, x.new_zeros(1, *x.shape[1:])])

    def _out(self, y: Tensor) -> Tensor:
        y = y if self.networks else y[:0]
        if self.many:
            return y
        if y.dim() < 2 or y.shape[1] != 1:
            want, got = "outputs with the batch in front, (1, ...) for one input", tuple(y.shape[1:])
            raise bad("main", want, got, "many=True passes outputs of any shape")
        return y.squeeze(1)

    def __repr__(self) -> str:
        return f"Bound({self.networks} networks, path={self.path.name!r})"


def checked(main: Main, params: PyTree) -> tuple[list[Leaf], PyTree]:
    """The leaves of B networks and the template that holds their positions; an error at the door for bad ones."""
    call = "bind(params=...)"
    if isinstance(main, nn.Module):
        own = dict(main.named_parameters())
        if not isinstance(params, Mapping):
            raise bad(call, "a dict by parameter name", type(params).__name__, "unravel(spec, theta) makes it")
        extra = [n for n in params if n not in own]
        if extra:
            aliases = dict(main.named_parameters(remove_duplicate=False))
            tied = [n for n in extra if n in aliases]
            mend = f"{listed(tied)} is tied: name it as named_parameters() does" if tied else "param_spec(main).names"
            raise bad(call, f"names among {listed(own)}", f"extra: {listed(extra)}", mend)
        names, leaves = list(params), list(params.values())
        template: PyTree = {n: i for i, n in enumerate(names)}
        shapes: list[tuple[int, ...] | None] = [tuple(own[n].shape) for n in names]
        absent = [n for n, p in own.items() if p.is_meta and n not in params]
        if absent:
            raise bad(call, "weights for every parameter on the meta device", f"missing: {listed(absent)}", "add them")
    else:
        if not callable(main):
            raise bad("bind(main=...)", "an nn.Module or a function f(params, x)", type(main).__name__, "pass either")
        names, leaves = leaf_names(params), optree.tree_leaves(params)
        template = numbered(params)
        shapes = [None] * len(leaves)
    if not leaves:
        raise bad(call, "at least one parameter", "none", "a network without weights needs no hypernetwork")
    check_leaves(call, names, leaves, shapes)
    return leaves, template


def check_leaves(
    call: str, names: Sequence[str], leaves: Sequence[Any], shapes: Sequence[Any], mend: str = UNRAVELED
) -> None:
    """One batch dim, the same for all; the shapes of the main network; one dtype and one device."""
    like: Tensor | None = None
    networks: int | None = None
    for name, leaf, shape in zip(names, leaves, shapes, strict=True):
        if isinstance(leaf, Generated) and leaf.features is like and leaf.head.shape[1:] == shape:
            continue  # the common case: many heads on the same features
        if not isinstance(leaf, (Tensor, *STRUCTURED)):
            raise bad(call, f"{name} as a tensor or a structured leaf", type(leaf).__name__, "unravel(spec, theta)")
        batch, data = batch_of(leaf), data_of(leaf)
        if len(batch) != 1 or (shape is not None and shape_of(leaf) != tuple(shape)):
            want = "(B, *shape)" if shape is None else f"(B, {', '.join(map(str, shape))})"
            raise bad(call, f"{name} of shape {want}", (*batch, *shape_of(leaf)), mend)
        like = data if like is None else like
        networks = batch[0] if networks is None else networks
        if batch[0] != networks:
            raise bad(call, f"B={networks} networks in every leaf", f"{name}: {batch[0]}", "give one B")
        if (data.dtype, data.device) != (like.dtype, like.device):
            got = f"{name}: {data.dtype} on {data.device}"
            raise bad(call, f"{like.dtype} on {like.device} in every leaf", got, "convert with .to(...)")
