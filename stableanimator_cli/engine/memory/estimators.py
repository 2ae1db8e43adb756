"""The memory estimator of a model's backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.engine.memory.segments import SegmentMemoryEstimator
from stableanimator_cli.records import ModelFolder

ESTIMATORS: Mapping[str, type[MemoryEstimator]] = {
    "UNet": MemoryEstimator,
    "Transformer": SegmentMemoryEstimator,
}
"""By the kind of network that denoises (``BackboneFacts.denoiser``)."""


def estimator_of(model: ModelFolder, **fields: Any) -> MemoryEstimator:
    """The estimator of ``model``; ``fields`` are the others of ``MemoryEstimator``."""
    return ESTIMATORS[model.facts.denoiser](model=model, **fields)
