"""Estimate the time of a rendering: counted floating-point operations over a measured or a published throughput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stableanimator_cli.cards import Card
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.engine.device import dtype_name
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.engine.throughput import MATRIX_TIME, Call, throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """``flops`` of a rendering, ``flops_per_second`` of the device, the ``share`` of that which is reached.

    ``measured``: the date of the probe of this device. None for the published rate of a card, with its ``source``.
    """

    flops: float
    flops_per_second: float
    share: float = MATRIX_TIME
    measured: str | None = None
    source: str | None = None

    @property
    def seconds(self) -> float:
        return self.flops / (self.flops_per_second * self.share)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 1)}

    def describe(self) -> str:
        work, rate = f"{self.flops / 1e12:.3g} TFLOP", f"{self.flops_per_second / 1e12:.3g} TFLOP/s"
        how = (
            f"at {rate}, measured on this device on {self.measured}" if self.source is None
            else f"at {self.share:.0%} of {rate} ({self.source})"
        )  # fmt: skip
        return f"about {_clock(self.seconds)}: an estimate from {work} {how}"


def estimate_duration(
    estimator: MemoryEstimator, config: AnimateConfig, calls: Mapping[str, int], *, refined_steps: int,
    card: Card | None = None,
) -> Duration:  # fmt: skip
    """Time of a rendering on one device, without loading weights and without the detectors; of ``card`` if given.

    ``calls`` by network as ``count_calls`` gives them; ``refined_steps``: denoising steps with face optimisation.
    Calls with cached deep features count as full ones.
    """
    work = estimator.work(config)
    chunk = min(config.decode.chunk, estimator.frames)
    chunks = -(-estimator.frames // chunk)
    times = {
        **calls,
        "decoder": calls["vae_decode"],
        "face": refined_steps * config.refine.iterations * chunks,
    }
    total: Counter[Call] = Counter()
    flops = 0.0
    for name, counter in work.items():
        flops += times[name] * counter.total
        total.update({call: times[name] * count for call, count in counter.calls.items()})
    if card is not None:
        rate = card.flops_per_second(dtype_name(estimator.dtype))
        return Duration(flops=flops, flops_per_second=rate, share=card.share, source=card.source)
    speed = throughput(total, estimator.device, estimator.dtype)
    return Duration(flops=flops, flops_per_second=speed.flops_per_second, measured=speed.measured)


def _clock(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} s"
