"""The learning rate of a step: a linear rise, then constant or half a cosine down. A function of the step alone."""

from __future__ import annotations

import math

from stableanimator_cli.config.train import StageConfig


def learning_rate(stage: StageConfig, step: int) -> float:
    """Rate of step ``step`` (from 0) of a stage of known length. Each stage rises and falls by itself.

    ``cosine`` ends at ``stage.final`` times the rate; the rise ends with step ``warmup - 1``.
    """
    rise = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    if stage.schedule == "constant" or stage.steps is None:
        return stage.lr * rise
    after = max(1, stage.steps - stage.warmup)
    through = min(1.0, max(0, step - stage.warmup) / after)
    return (
        stage.lr
        * rise
        * (stage.final_lr_factor + (1 - stage.final_lr_factor) * 0.5 * (1 + math.cos(math.pi * through)))
    )
