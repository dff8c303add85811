"""Main networks, as pure functions, that are easy to get silently wrong: they mix their batch or handle their weights.

`@network(w="OI", b="O")` declares the generated weights; sizes are letters, so that a case runs with all sizes
different, where a wrong axis is an error, and with all the same, where it is a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DISTINCT = {"B": 3, "N": 4, "I": 5, "O": 2, "L": 6}
EQUAL = dict.fromkeys(DISTINCT, 3)

Refusable = Literal["never", "by others", "by all"]


@dataclass(frozen=True, eq=False)
class Network:
    """One main network ``f(x, **weights)`` with the shapes of its weights.

    `refusable`: "never"; "by others" where a path other than `loop` may refuse it; "by all" where `loop` may, too.
    `tolerance`: where it computes in another dtype than it returns.
    """

    name: str
    function: Callable[..., Any]
    weights: dict[str, str]
    inputs: str = "NI"
    refusable: Refusable = "never"
    integer: bool = False
    tolerance: float | None = None

    def main(self, params: dict[str, Tensor], *x: Any) -> Any:
        return self.function(*x, **params)

    def template(self, sizes: dict[str, int]) -> dict[str, Tensor]:
        return {n: torch.zeros([sizes[c] for c in s], dtype=torch.float64) for n, s in self.weights.items()}

    def x(self, sizes: dict[str, int]) -> Tensor:
        g = torch.Generator().manual_seed(7)
        shape = [sizes[c] for c in "B" + self.inputs]
        if self.integer:
            return torch.randint(sizes["O"], shape, generator=g)
        return torch.randn(shape, generator=g, dtype=torch.float64)


@dataclass
class Collection:
    networks: list[Network] = field(default_factory=list)

    def __call__(
        self,
        inputs: str = "NI",
        refusable: Refusable = "never",
        integer: bool = False,
        tolerance: float | None = None,
        **weights: str,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def add(f: Callable[..., Any]) -> Callable[..., Any]:
            name = f.__name__.strip("_")
            assert name not in [n.name for n in self.networks], name
            self.networks.append(
                Network(name, f, weights or {"w": "OI", "b": "O"}, inputs, refusable, integer, tolerance)
            )
            return f

        return add

    def lines(
        self, refusable: Refusable = "never", tolerance: float | None = None, **functions: Callable[..., Any]
    ) -> None:
        """Networks of one line, on x and the weight w ``(O, I)``."""
        for name, f in functions.items():
            self(refusable=refusable, tolerance=tolerance, w="OI")(_named(f, name))


def _named(f: Callable[..., Any], name: str) -> Callable[..., Any]:
    def named(x: Tensor, w: Tensor) -> Any:
        return f(x, w)

    named.__name__ = name
    return named


MIXING = Collection()
"""What a batch of one network's inputs means is that network's business."""


def mixing(refusable: Refusable = "never", **functions: Callable[[Tensor], Any]) -> None:
    """Functions of a linear layer's outputs ``(N, O)``."""
    for name, f in functions.items():

        def whole(x: Tensor, w: Tensor, b: Tensor, f: Callable[[Tensor], Any] = f) -> Any:
            return f(F.linear(x, w, b))

        whole.__name__ = name
        MIXING(refusable=refusable)(whole)


def assigned(y: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out[0] = y[-1]
    out[1:] = out[1:] + y[:-1]
    return out


mixing(
    subtract_its_mean=lambda y: y - y.mean(0),
    divide_by_its_size=lambda y: y / y.shape[0],
    sort=lambda y: y.sort(0).values,
    cumsum=lambda y: y.cumsum(0),
    roll=lambda y: y.roll(1, 0),
    flip=lambda y: y.flip(0),
    softmax_over_the_batch=lambda y: y.softmax(0),
    log_softmax=lambda y: F.log_softmax(y, 1),
    gram_matrix=lambda y: y @ y.T,
    covariance=lambda y: y.T @ y,
    flatten_and_view=lambda y: y.reshape(-1).view(y.shape[1], -1),
    statistics_of_all=lambda y: (y - y.mean()) / y.std(),
    variance=lambda y: y / (1 + y.var(0, keepdim=True)),
    batch_statistics=lambda y: F.batch_norm(y, None, None, training=True),
    maximum=lambda y: y - y.amax(0),
    reorder_by_value=lambda y: y[y[:, 0].argsort()],
    differences=lambda y: y.diff(dim=0),
    median=lambda y: y - y.median(0).values,
    logsumexp=lambda y: y - y.flatten().logsumexp(0),
    distances=lambda y: (y[:, None] - y[None]).square().sum(-1),
    one_number=lambda y: y.sum(),
    row_by_row=lambda y: torch.stack([(i + 1) * row for i, row in enumerate(y)]),
    repeat=lambda y: y.repeat(2, 1),
    positions=lambda y: y + torch.arange(y.shape[0])[:, None],
    own_row_number=lambda y: y * torch.ones(len(y)).cumsum(0)[:, None],
    assign_into_zeros=assigned,
    first_row_only=lambda y: y[0],
    transpose_the_batch=lambda y: y.T,
    pad_the_batch=lambda y: F.pad(y, (0, 0, 1, 2)),
    in_place_activation=lambda y: F.relu_(y),
    in_place_sum=lambda y: y.add_(y.mean(0)).mul_(2),
    outer_product=lambda y: torch.einsum("no,mo->nm", y, y),
    topk=lambda y: y.topk(2, 0).values,
    gather_rows=lambda y: y.gather(0, torch.zeros(1, y.shape[1], dtype=torch.int64)),
    where_positive=lambda y: torch.where(y > 0, y, y.mean()),
    constant=lambda y: torch.ones(y.shape),
    integers=lambda y: y.argmax(1),
)
mixing(
    refusable="by others",
    branch_on_the_data=lambda y: y if y.sum() > 0 else 2 * y,
    read_a_number=lambda y: y * float(y.mean()),
    select_by_mask=lambda y: y[y > 0].sum(),
    nonzero=lambda y: (y > 0).nonzero().sum(0),
    unique=lambda y: (y > 99).unique(),
    python_list=lambda y: torch.tensor(y.tolist()),
    numpy=lambda y: torch.from_numpy(y.detach().numpy() * 2),
    zeros_filled_in_place=lambda y: torch.zeros(y.shape, dtype=y.dtype).add_(y),
)


@MIXING(v="OI", w="OI", b="O")
def self_attention_over_the_batch(x: Tensor, v: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q, k = F.linear(x, v, b), F.linear(x, w)
    return F.scaled_dot_product_attention(q[None], k[None], q[None])[0]


@MIXING(inputs="N")
def a_single_number_for_input(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return w.sum(1) * x[:, None] + b


@MIXING(inputs="NLI", w="OI", b="O")
def more_dims(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w, b).cumsum(1)


@MIXING(inputs="NILL", w="OILL", b="O")
def convolution(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(x, w, b, padding=1)


@MIXING(inputs="NIL", w="OIO", b="O", v="OL")
def linear_after_convolution(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return F.linear(F.conv1d(x, w, padding="same"), v, b)  # vmap's convolution has the network axis elsewhere


@MIXING(inputs="NOL", w="OIL", b="I")
def transposed_convolution(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv_transpose1d(x, w, b, stride=2)


@MIXING(inputs="NIL", w="II", b="I")
def group_norm_between(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.group_norm(F.linear(x.mT, w, b).mT, 1, b, b)


@MIXING(inputs="NI", w="I", b="I")
def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:], w, b)


@MIXING(inputs="NL", integer=True, w="OI", b="OI")
def embedding_of_integers(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.embedding(x, w) + F.embedding(x, b, padding_idx=0).flip(0)


@MIXING(inputs="NL", integer=True, w="OI", b="OI")
def embedding_of_few(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return w[x].mean(1) @ b.T
