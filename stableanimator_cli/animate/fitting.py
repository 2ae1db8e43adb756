"""Whether a run fits: its memory predicted, and settings chosen so that it does (``--max-memory``)."""

from __future__ import annotations

from stableanimator_cli.animate.driving import open_driving
from stableanimator_cli.animate.validate import size_of
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.memory.fit import Choice, fit_to_limit
from stableanimator_cli.engine.memory.render import MemoryEstimator, RenderMemory
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import ModelFolder


def predicted(config: AnimateConfig, model: ModelFolder, device: DevicePlan, frames: int) -> RenderMemory:
    """Memory of a run over ``frames`` frames, anchor included."""
    return _prediction(config, model, device, frames).of(config)


def chosen(
    config: AnimateConfig, model: ModelFolder, device: DevicePlan, reporter: Reporter
) -> tuple[AnimateConfig, tuple[Choice, ...]]:
    """The settings that ``--max-memory`` picks and what each does to the result; unchanged if none is given.

    The motion is counted for it and nothing detected, so that the same command picks the same whenever it is given.
    Raises ``OutOfMemory`` where nothing fits.
    """
    if config.device.max_memory is None:
        return config, ()
    driving = open_driving(
        config.motion,
        kind=config.motion_kind,
        frames=config.frames,
        fps=config.fps,
        size=size_of(config),
        resize=config.resize,
        reporter=NullReporter(),
        model=model,
        planned=True,
    )
    frames = len(driving.skeletons) + (config.windows.anchor == "reference")
    found, choices = fit_to_limit(config, _prediction(config, model, device, frames))
    for choice in choices:
        reporter.info(f"to fit: {choice}")
    return found, choices


def _prediction(config: AnimateConfig, model: ModelFolder, device: DevicePlan, frames: int) -> MemoryEstimator:
    size = size_of(config)
    return MemoryEstimator(model=model, device=device.device, dtype=device.dtype, size=size, frames=frames)
