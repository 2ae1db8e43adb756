"""What this machine does at best today: the roof that every other figure of the same run is read against.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009): products for
arithmetic, a copy for memory. The best of several repetitions counts, as a roof is a maximum.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stableanimator_cli.bench.results import Table
from stableanimator_cli.engine.device import DevicePlan

REPEATS = 7
GIGA = 1e9
# Sides large enough to fill a machine and small enough to be done at once: of a product, of a picture, positions of
# attention, and bytes of a copy.
_LARGE = {"side": 8192, "picture": 96, "positions": 9216, "copy": 1 << 30}
_SMALL = {"side": 1024, "picture": 32, "positions": 1024, "copy": 1 << 27}


@dataclass(frozen=True, slots=True)
class Roof:
    """Products in GFLOP/s and copies in GB/s (read and written) that were reached, and the type they were made in."""

    dtype: torch.dtype
    gflops: float
    bandwidth: float

    def percent(self, flops: float, seconds: float) -> float:
        """Per cent of the products' rate that a piece of work reached."""
        return 100 * flops / seconds / GIGA / self.gflops


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Wait for what was asked of the device, before a clock is read."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else (lambda: None)


def best_time(run: Callable[[], object], synchronize: Callable[[], None], repeats: int = REPEATS) -> float:
    """Least seconds of some runs, after one that is not counted."""
    times = []
    for index in range(repeats + 1):
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        if index:
            times.append(time.perf_counter() - started)
    return min(times)


def make_workloads(
    plan: DevicePlan, dtype: torch.dtype, *, small: bool
) -> dict[str, tuple[Callable[[], object], float, float]]:
    """Name to (run, FLOPs, bytes) of the four works: a product, a convolution (channels last), attention, a copy."""
    sizes = _SMALL if small else _LARGE
    side, picture, positions = sizes["side"], sizes["picture"], sizes["positions"]
    like = {"device": plan.device, "dtype": dtype}
    generator = torch.Generator(device="cpu").manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(**like)

    a, b = noise(side, side), noise(side, side)
    x = noise(16, 320, picture, picture).contiguous(memory_format=torch.channels_last)
    weight = noise(320, 320, 3, 3).contiguous(memory_format=torch.channels_last)
    q = noise(16, 5, positions, 64)
    source = torch.empty(sizes["copy"], dtype=torch.uint8, device=plan.device).fill_(1)
    target = torch.empty_like(source)
    return {
        f"product {side}x{side}": (lambda: a @ b, 2.0 * side**3, 0.0),
        f"convolution 3x3, 320 channels, 16x{picture}x{picture}": (
            lambda: F.conv2d(x, weight, padding=1), 2.0 * 9 * 320 * 320 * 16 * picture**2, 0.0,
        ),
        f"attention, {positions} positions, width 64, 80 heads": (
            lambda: F.scaled_dot_product_attention(q, q, q), 4.0 * 80 * positions**2 * 64, 0.0,
        ),
        f"copy of {sizes['copy'] >> 20} MiB": (lambda: target.copy_(source), 0.0, 2.0 * sizes["copy"]),
    }  # fmt: skip


def measure_roof(
    plan: DevicePlan, dtype: torch.dtype, *, small: bool, repeats: int = REPEATS
) -> tuple[Roof, list[dict]]:
    """The roof in one type of number, and a row for each work."""
    settle, rows, rates = synchronizer(plan.device), [], []
    with torch.no_grad():
        for name, (run, flops, moved) in make_workloads(plan, dtype, small=small).items():
            seconds = best_time(run, settle, repeats)
            rates.append((flops + moved) / seconds / GIGA)
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "what": name,
                    "ms": seconds * 1e3,
                    "GFLOP/s": flops / seconds / GIGA if flops else None,
                    "GB/s": moved / seconds / GIGA if moved else None,
                }
            )
    return Roof(dtype, max(rates[:3]), rates[3]), rows


def roofline_table(plan: DevicePlan, dtypes: tuple[torch.dtype, ...]) -> tuple[Table, dict[torch.dtype, Roof]]:
    """The roof of a device in several types of number."""
    found, rows = {}, []
    for dtype in dtypes:
        found[dtype], more = measure_roof(plan, dtype, small=plan.device.type == "cpu")
        rows += more
    note = f"The best of {REPEATS} runs of each; a copy counts bytes read and written."
    return Table(title="Roofline", rows=rows, note=note), found
