"""``sa doctor --model``: whether this machine can animate with a model, and with which settings.

Only the configs of the model are read; its weights need not be downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.animate import reference_face
from stableanimator_cli.animate.pose_frames import PoseFrames
from stableanimator_cli.animate.result import describe_download
from stableanimator_cli.animate.run import check_size, resolve_config
from stableanimator_cli.cards import USER_TABLE, find_card
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.engine.backbones import Backbone, backbone_of
from stableanimator_cli.engine.device import DevicePlan, available_memory
from stableanimator_cli.engine.memory.duration import estimate_duration
from stableanimator_cli.engine.memory.estimators import estimator_of
from stableanimator_cli.engine.memory.fit import fit_to_limit
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.errors import CheckFailed, OutOfMemory

_SPARE = 0.95  # share of the memory that a run may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The result. ``fits`` with the settings in ``command``; ``lines`` are for people."""

    fits: bool
    data: Mapping[str, Any]
    lines: tuple[str, ...]
    message: str

    @property
    def exit_code(self) -> int:
        return 0 if self.fits else CheckFailed.exit_code

    def to_json(self) -> dict[str, Any]:
        failed = {"error": CheckFailed.code, "message": self.message, "exit_code": self.exit_code}
        return {"fits": self.fits, **self.data, **({} if self.fits else failed)}

    def summary(self) -> str:
        return "\n".join(self.lines)


def examine_model(
    *, model: str | None, size: str | None, frames: int, device: str = "auto", card: str | None = None
) -> Capacity:
    """Predict memory and time of ``frames`` frames; choose settings that fit if the usual ones do not.

    ``size``: WxH, None for the model's own. ``card`` names a card that need not be here.
    Raises ``SaError`` for an unknown model or a wrong size.
    """
    flags = {
        "model": model, "size": size, "device": device,
        "reference": Path("person.png"), "motion": Path("motion.mp4"), "output": Path("out.mp4"),
    }  # fmt: skip
    config, found = resolve_config(flags, None, plan_only=True)
    named = None if card is None else find_card(card, catalogue.cache_dir() / USER_TABLE)
    plan = DevicePlan.of(config.device, named)
    check_size(config.size, found.facts.stride)
    width, height = config.size
    available = named.bytes if named else available_memory(plan.device)
    estimator = estimator_of(
        found, device=plan.device, dtype=plan.dtype, size=config.size, frames=frames, available=available,
        detected_size=config.size,
    )  # fmt: skip
    memory = estimator.of(config)
    limit = int(available * _SPARE)
    chosen: tuple[Any, ...] = ()
    fits, problem = memory.total <= limit, ""
    if not fits:
        try:
            limited = replace(config, device=replace(config.device, max_memory=limit))
            config, chosen = fit_to_limit(limited, estimator)
            memory, fits = estimator.of(config), True
        except OutOfMemory as error:
            problem = f"{error.message}; {error.hint}"
    backbone = backbone_of(found)
    calls = backbone.count_calls(_request(config, backbone, frames))
    refined = reference_face.refined_steps(config, found)
    duration = estimate_duration(estimator, config, calls, refined_steps=refined, card=named)
    fetch = catalogue.download_of(found.downloads)
    gib = f"{available / 2**30:.1f} GiB"
    command = f"sa animate person.png motion.mp4 -o out.mp4 --model {model or found.name} --size {width}x{height}"
    command += f" --max-memory {limit / 1e9:.1f}GB" if chosen else ""
    verdict = (
        f"does not fit: {problem}" if not fits
        else f"fits with {', '.join(map(str, chosen))}" if chosen
        else "fits with the usual settings"
    )  # fmt: skip
    lines = [
        f"device     {plan.describe()}, {gib} of memory{plan.advice()}",
        f"model      {found.name}" + (f": lacks {describe_download(fetch)}" if fetch.files else ""),
        f"rendering  {frames} frames of {width}x{height}, {config.sampling.steps} steps, "
        f"{calls[found.facts.denoiser.lower()]} {found.facts.denoiser} calls",
        f"memory     {memory.describe()}",
        f"verdict    {verdict}",
        *([f"time       {duration.describe()}", f"command    {command}"] if fits else []),
    ]
    data = {
        "model": found.name, "device": plan.describe(), "available": available, "size": [width, height],
        "frames": frames, "calls": calls, "memory": memory.to_json(), "chosen": [str(choice) for choice in chosen],
        "duration": duration.to_json(), "command": command,
        "download": fetch.to_json(),
    }  # fmt: skip
    return Capacity(fits=fits, data=data, lines=tuple(lines), message=f"{found.name} at {width}x{height} {verdict}")


def _request(config: AnimateConfig, backbone: Backbone, frames: int) -> RenderRequest:
    """A request without content, whose calls are counted."""
    width, height = config.size
    black, windows = np.zeros((height, width, 3), np.uint8), config.windows
    return RenderRequest(
        image=black,
        resized=black,
        face=None,
        poses=PoseFrames(config.size, [black]).reordered([0] * frames),
        plan=backbone.plan_windows(frames, windows),
        sampling=config.sampling,
        decode=config.decode,
        noise_period=windows.length,
    )
