"""The learning rate as a function of the step: linear warmup, then constant or cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from stableanimator_cli.config.train import StageConfig


def learning_rate(stage: StageConfig, step: int) -> float:
    """Learning rate of step ``step`` of a stage, counted from 0. Warmup ends with step ``warmup - 1``.

    ``cosine`` decays to ``final_lr_factor`` times the learning rate at the end of the stage.
    """
    warmup = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    if stage.schedule == "constant" or stage.steps is None:
        return stage.lr * warmup
    progress = min(1.0, max(0, step - stage.warmup) / max(1, stage.steps - stage.warmup))
    final = stage.final_lr_factor
    return stage.lr * warmup * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def short_warmups(stages: Sequence[StageConfig]) -> Iterator[str]:
    """One warning per stage that ends within its warmup, so that it never has its learning rate."""
    for stage in stages:
        if stage.steps is None or stage.steps >= stage.warmup:
            continue
        highest = learning_rate(stage, stage.steps - 1)
        shorter = stage.steps // 10
        remedy = f"--warmup {shorter}" if len(stages) == 1 else f"warmup = {shorter} in its table [[stage]]"
        yield (
            f"stage {stage.name!r}: the warmup of {stage.warmup} steps is longer than its {stage.steps} steps. Its "
            f"highest learning rate is {highest:.3g} instead of {stage.lr:.3g}; {remedy} reaches it"
        )
