"""Roofline of this machine, the upper limit of every other measurement of the run.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009): products for
arithmetic, a copy for memory. The best of several repetitions counts, as a roof is a maximum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stableanimator_cli.bench.results import Table
from stableanimator_cli.engine.device import DevicePlan, dtype_name

REPEATS = 7
GIGA = 1e9
# Side of a product and of an image, attention positions and bytes of a copy: large enough to fill the device.
LARGE = {"side": 8192, "image": 96, "positions": 9216, "copy": 1 << 30}
SMALL = {"side": 1024, "image": 32, "positions": 1024, "copy": 1 << 27}
TINY = {"side": 256, "image": 8, "positions": 256, "copy": 1 << 24}  # no roof, but shows that it can be measured


@dataclass(frozen=True, slots=True)
class Roof:
    """Products in GFLOP/s and copies in GB/s (read and written) that were reached, and the type they were made in."""

    dtype: torch.dtype
    gflops: float
    bandwidth: float

    def percent(self, flops: float, seconds: float) -> float:
        """Percentage of the products' rate that some work reached."""
        return 100 * flops / seconds / GIGA / self.gflops

    def least_seconds(self, flops: float, moved: float) -> float:
        """Seconds that so many FLOPs, or bytes moved, take at least."""
        return max(flops / (self.gflops * GIGA), moved / (self.bandwidth * GIGA))


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has finished its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else (lambda: None)


def best_time(run: Callable[[], object], synchronize: Callable[[], None], repeats: int = REPEATS) -> float:
    """Minimum seconds of some runs, after a warm-up."""
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
    plan: DevicePlan, dtype: torch.dtype, sizes: Mapping[str, int]
) -> dict[str, tuple[Callable[[], object], float, float]]:
    """Name to (run, FLOPs, bytes) of the four works: a product, a convolution (channels last), attention, a copy."""
    side, image, positions = sizes["side"], sizes["image"], sizes["positions"]
    like = {"device": plan.device, "dtype": dtype}
    generator = torch.Generator(device="cpu").manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(**like)

    a, b = noise(side, side), noise(side, side)
    x = noise(16, 320, image, image).contiguous(memory_format=torch.channels_last)
    weight = noise(320, 320, 3, 3).contiguous(memory_format=torch.channels_last)
    q = noise(16, 5, positions, 64)
    source = torch.empty(sizes["copy"], dtype=torch.uint8, device=plan.device).fill_(1)
    target = torch.empty_like(source)
    return {
        f"product {side}x{side}": (lambda: a @ b, 2.0 * side**3, 0.0),
        f"convolution 3x3, 320 channels, 16x{image}x{image}": (
            lambda: F.conv2d(x, weight, padding=1), 2.0 * 9 * 320 * 320 * 16 * image**2, 0.0,
        ),
        f"attention, {positions} positions, width 64, 80 heads": (
            lambda: F.scaled_dot_product_attention(q, q, q), 4.0 * 80 * positions**2 * 64, 0.0,
        ),
        f"copy of {sizes['copy'] >> 20} MiB": (lambda: target.copy_(source), 0.0, 2.0 * sizes["copy"]),
    }  # fmt: skip


def measure_roof(
    plan: DevicePlan, dtype: torch.dtype, sizes: Mapping[str, int], repeats: int = REPEATS
) -> tuple[Roof, list[dict]]:
    """The roof in one type of number, and a row for each work."""
    synchronize, rows, rates = synchronizer(plan.device), [], []
    with torch.no_grad():
        for name, (run, flops, moved) in make_workloads(plan, dtype, sizes).items():
            seconds = best_time(run, synchronize, repeats)
            rates.append((flops + moved) / seconds / GIGA)
            rows.append(
                {
                    "dtype": dtype_name(dtype),
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
        found[dtype], more = measure_roof(plan, dtype, SMALL if plan.device.type == "cpu" else LARGE)
        rows += more
    note = f"The best of {REPEATS} runs of each; a copy counts bytes read and written."
    return Table(title="Roofline", rows=rows, note=note), found
