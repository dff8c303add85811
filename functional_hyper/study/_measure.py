"""Agreement, times, memory, operations: what is compared runs in one process, in turn, so that drift hits all alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import optree
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ._records import Record

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

Functions = dict[str, Callable[[], Any]]
TURN = 0.05  # seconds of one function before the next has its turn
LONG = 1.5  # seconds: a function that takes longer has fewer turns, and its operations are not counted
COMPILED = " compiled"  # ends the name of what torch.compile made


def interleaved(functions: Functions, seconds: float) -> dict[str, Measurement]:
    """Times of each function, about `seconds` of them: short runs of each, in turn, by `torch.utils.benchmark`.

    The first calls of a run are not counted: what another path left in the caches and with the allocator is no part
    of a training step, which follows a step of its own kind.
    """
    from torch.utils.benchmark import Measurement, Timer  # whose import looks for compilers

    if not functions:
        return {}
    threads = torch.get_num_threads()
    timers = {name: Timer("f()", globals={"f": f}, num_threads=threads) for name, f in functions.items()}
    once = {name: timer.blocked_autorange(min_run_time=0.0).mean for name, timer in timers.items()}
    turn = min(TURN, seconds / 5)
    turns = int(seconds * len(functions) / sum(took + max(took, turn) for took in once.values()))
    found: dict[str, list[Measurement]] = {name: [] for name in functions}
    for n in range(max(5, turns)):
        for name, timer in timers.items():
            if once[name] < LONG or n < 3:
                found[name].append(timer.blocked_autorange(min_run_time=turn))
    return {name: Measurement.merge(runs)[0] for name, runs in found.items()}


def peak_bytes(f: Callable[[], Any], device: torch.device | None = None) -> int:
    """The most bytes that are allocated at once while f runs, beyond those allocated before."""
    f()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        f()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        f()
    assert p.profiler is not None
    assert p.profiler.kineto_results is not None
    events = [e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, held)
    return peak


class Counter(TorchDispatchMode):
    """Counts operations and the bytes that operators read and write.

    Operations by torch's own formulas (`FlopCounterMode` itself hooks into modules, which vmap does not bear); beside
    products, multiplications and sums count, of which `broadcast` is made. A view moves no bytes, an expanded tensor
    those that it has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        result = func(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in func._schema.returns]
        if any(a is not None and not a.is_write for a in aliases):
            return result
        packet = func._overloadpacket
        if packet is torch.ops.aten.convolution_backward:  # torch's own formula forgets the groups
            y, x, w, _, *how = args
            once = flop_registry[torch.ops.aten.convolution](x, w, None, *how[:4], out_val=y)
            self.flops += once * sum(how[-1][:2])
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        elif packet in (torch.ops.aten.mul, torch.ops.aten.sum):
            self.flops += max(args[0].numel(), result.numel())
        tensors = [t for t in optree.tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]  # type: ignore[arg-type]
        self.bytes += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
        return result


def count(f: Callable[[], Any]) -> tuple[int, int]:
    """Operations, and bytes read and written, of one run."""
    with Counter() as counter:
        f()
    return counter.flops, counter.bytes


def difference(got: Any, want: Any) -> float | None:
    """The largest relative difference of two lists of tensors, each in norm; None where they are not the same lists.

    A tensor with less than a hundredth of the whole norm is held to that hundredth: some gradients are zero but for
    rounding.
    """
    ours, theirs = ([t for t in optree.tree_leaves(tree) if isinstance(t, Tensor)] for tree in (got, want))
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return None
    norms = [t.detach().double().norm().item() for t in theirs]
    least = 0.01 * sum(n * n for n in norms) ** 0.5
    apart = [(a.detach().double() - b.detach().double()).norm().item() for a, b in zip(ours, theirs, strict=True)]
    ratios = [
        0.0 if d == 0 else d / max(n, least) if max(n, least) > 0 else float("inf")
        for d, n in zip(apart, norms, strict=True)
    ]
    return max(ratios, default=0.0)


def tolerance(dtype: torch.dtype) -> float:
    """Half of a number's digits, ``sqrt(eps)``: sums in another order lose some of them, a wrong rule the first."""
    return torch.finfo(dtype).eps ** 0.5


def measure(
    workload: str,
    functions: Functions,
    seconds: float,
    reference: Callable[[], Any] | None = None,
    peak: dict[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    **settings: Any,
) -> list[Record]:
    """A record for each function: first its agreement with the reference, then what it costs.

    A function that raises has a record that says so; one that disagrees is measured, and its record's note says that.
    """
    device = device or torch.device("cpu")
    want = None if reference is None else reference()
    errors: dict[str, float | None] = {}  # of those that run
    notes = dict.fromkeys(functions, "")
    for name, f in functions.items():
        try:
            got = f()
        except Exception as error:  # whatever it is: the comparison goes on, and says what came
            first = (str(error).strip().splitlines() or [""])[0]
            notes[name] = f"{type(error).__name__}: {first}"[:200]
            continue
        errors[name] = None if want is None else difference(got, want)
        if (errors[name] or 0.0) > tolerance(dtype):
            notes[name] = f"differs from the loop by {errors[name]:.1e}, more than {tolerance(dtype):.1e}"
    want = got = None
    times = interleaved({name: functions[name] for name in errors}, seconds)
    settings |= {"dtype": str(dtype).removeprefix("torch."), "device": device.type, "threads": torch.get_num_threads()}
    build = partial(Record, workload, settings=settings)
    counted: dict[str, tuple[int, int]] = {}
    records = []
    for name in functions:
        path, compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
        if name not in errors:
            records.append(build(path, compiled, note=notes[name]))
            continue
        middle = 1e3 * times[name].median
        if not compiled and middle < 1e3 * LONG:
            counted[path] = count(functions[name])
        flops, traffic = counted.get(path, (None, None))
        records.append(
            build(
                path,
                compiled,
                middle,
                1e3 * times[name].iqr,
                len(times[name].times),
                peak_bytes(functions[name], device) / 2**20,
                None if flops is None else flops / 1e9,
                None if traffic is None else traffic / 1e9,
                None if flops is None or peak is None else flops / 1e6 / middle / peak["gemm"],
                None if traffic is None or peak is None else traffic / 1e6 / middle / peak["bandwidth"],
                errors[name],
                notes[name],
            )
        )
    return records
