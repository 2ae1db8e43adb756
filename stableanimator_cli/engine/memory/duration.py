"""Estimate the time of a rendering: counted floating-point operations over a measured throughput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.engine.throughput import MATRIX_TIME, Call, throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """``flops`` of a rendering, ``flops_per_second`` of the device in a probe of seconds, and ``seconds``."""

    flops: float
    flops_per_second: float

    @property
    def seconds(self) -> float:
        return self.flops / (self.flops_per_second * MATRIX_TIME)

    def to_json(self) -> dict[str, Any]:
        return {"flops": self.flops, "flops_per_second": self.flops_per_second, "seconds": round(self.seconds, 1)}

    def describe(self) -> str:
        return (
            f"about {_clock(self.seconds)}: an estimate from {self.flops / 1e12:.3g} TFLOP at "
            f"{self.flops_per_second / 1e12:.3g} TFLOP/s, measured for some seconds on this device"
        )


def estimate_duration(
    estimator: MemoryEstimator, config: AnimateConfig, calls: Mapping[str, int], *, refined_steps: int
) -> Duration:
    """Time of a rendering on one device, without loading weights and without the detectors.

    ``calls`` by network as ``count_calls`` gives them; ``refined_steps``: denoising steps with face optimisation.
    Calls with cached deep features count as full ones.
    """
    work = estimator.work(config)
    chunk = min(config.decode.chunk, estimator.frames)
    chunks = -(-estimator.frames // chunk)
    times = {
        "unet": calls["unet"],
        "decoder": calls["vae_decode"],
        "face": refined_steps * config.refine.iterations * chunks,
    }
    total: Counter[Call] = Counter()
    flops = 0.0
    for name, counter in work.items():
        flops += times[name] * counter.total
        total.update({call: times[name] * count for call, count in counter.calls.items()})
    return Duration(flops=flops, flops_per_second=throughput(total, estimator.device, estimator.dtype))


def _clock(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} s"
