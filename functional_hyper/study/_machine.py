"""The machine: its measured peaks, what it is, and whether it is busy."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._measure import interleaved

EVEN = 0.8  # a GEMM's median over its best: less, and something else is running


def peaks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a large product, GB/s of ``a + s b`` on tensors beyond any cache, and how even the product was."""
    halves = device.type == "cpu" and dtype.itemsize < 4  # for which many processors lack instructions
    size = 256 if halves else 4096 if device.type == "cuda" else 1024
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(device, dtype)
    x, y = (torch.ones(2**24, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(x)

    def triad() -> Tensor:
        return torch.add(x, y, alpha=2.0, out=out)

    times = interleaved({"gemm": lambda: a @ a, "triad": triad}, 0.2)
    best = min(times["gemm"].times)
    return {
        "gemm": 2e-9 * size**3 / best,
        "bandwidth": 3e-9 * x.nbytes / min(times["triad"].times),
        "even": best / times["gemm"].median,
    }


def machine(seed: int) -> dict[str, Any]:
    """What it is: processor, cores, threads, versions, date, load. `peaks` and `busy` are added to it."""
    names = ("functional_hyper", "torchdiffeq", "numpy")
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "gpu": gpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "load": load(),
        "peaks": {},
        "busy": [],
    }


def load() -> float:
    """Processes that wanted a core in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def busy(facts: dict[str, Any]) -> list[str]:
    """Why the machine is busy: reasons, none where it is not."""
    reasons = []
    if facts["load"] > 0.5 * facts["cores"]:
        reasons.append(f"load {facts['load']:.1f} on {facts['cores']} cores before the start")
    for name, peak in facts["peaks"].items():
        if peak["even"] < EVEN:
            reasons.append(f"a GEMM ({name}) usually gets {peak['even']:.0%} of its own best")
    return reasons


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
