"""Processes that share the denoising of one video: how many, their start, and a lost one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.diffusion.guidance import window_branches
from stableanimator_cli.engine import parallel
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.errors import ConfigError, Interrupted, SaError
from stableanimator_cli.progress import Reporter


def with_process_count(config: AnimateConfig, plan: DevicePlan, workers: parallel.WorkerGroup | None) -> AnimateConfig:
    """Set ``--gpus`` to the number of processes. Raises ``ConfigError`` if they lack a device each."""
    requested = config.device.gpus
    if workers is not None and requested not in (1, workers.world):
        hint = "torchrun starts them: leave --gpus out"
        raise ConfigError("--gpus", requested, f"the {workers.world} processes that torchrun started", hint=hint)
    world = requested if workers is None else workers.world
    if world > 1:
        parallel.check(plan, config.device.device, world, local=workers is None)
    return replace(config, device=replace(config.device, gpus=world))


@contextlib.contextmanager
def worker_group(
    config: AnimateConfig, request: RenderRequest, workers: parallel.WorkerGroup | None, reporter: Reporter
) -> Iterator[parallel.WorkerGroup | None]:
    """The processes that help to denoise: torchrun's, or spawned here if there is work for more than one."""
    world, branches = config.device.gpus, len(window_branches(request.plan, config.sampling.guidance))
    if world > branches:
        reporter.info(f"{branches} of {world} processes have work: one per window and guidance branch")
    if workers is None and min(world, branches) > 1:
        with parallel.spawned_group(min(world, branches)) as group:
            yield group
    else:
        yield workers


def lost_rank_error(lost: parallel.RankLost, output: Path, *, saved: bool) -> SaError:
    """The error that a lost rank reported, else that it is lost. The hint describes how to resume if ``saved``."""
    message = f"{output}: {lost.message}"
    how = "run the same command to resume" if saved else "run the same command again"
    hint = f"{how}, with any --gpus"
    if lost.reported is None:
        return Interrupted(message, hint=hint)
    lost.reported.message, lost.reported.args = message, (message,)
    lost.reported.hint = f"{lost.reported.hint}; {hint}" if lost.reported.hint else hint
    return lost.reported
