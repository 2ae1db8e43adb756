"""Options of ``sa animate`` that the model's backbone does not have."""

from __future__ import annotations

import dataclasses
from typing import Any

from stableanimator_cli import distributed
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.parse import dump_guidance
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.records import ModelFolder


def check_backbone_options(config: AnimateConfig, model: ModelFolder) -> None:
    """Raise ``ConfigError`` for a schedule or another option that the backbone of ``model`` does not have, and for
    processes of torchrun that would have no work."""
    facts, schedule = model.facts, config.sampling.schedule
    if schedule not in facts.schedules:
        expected = f"{' or '.join(facts.schedules)}, the noise levels of {model.name} ({model.backbone})"
        raise ConfigError("--schedule", schedule, expected, hint="leave --schedule out")
    length, stride = config.windows.length, facts.frame_stride
    if stride > 1 and (length == 1 or (length - 1) % stride):  # before the overlap, which follows from it
        near = max(1, length // stride) * stride + 1
        expected = f"{stride}N+1 frames, at least {stride + 1}, with {model.name}"
        raise ConfigError("--window", length, expected, hint=f"try {near}")
    for path, choices in facts.choices.items():
        flag, value, _, shown = _option(config, path)
        if value not in choices:
            expected = f"{' or '.join(map(str, choices))} with {model.name} ({model.backbone})"
            raise ConfigError(flag, shown, expected)
    for path, reason in facts.refused.items():
        flag, value, usual, shown = _option(config, path)
        if value != usual and value != facts.settings.get(flag.lstrip("-").replace("-", "_")):
            expected = f"no such option with {model.name} ({model.backbone}): {reason}"
            raise ConfigError(flag, shown, expected, hint=f"leave {flag} out")
    if (world := distributed.world_size()) > 1 and (reason := facts.refused.get("device.gpus")) is not None:
        expected = f"one process with {model.name} ({model.backbone}): {reason}"
        raise ConfigError("--gpus", world, expected, hint="run it without torchrun")
    first, last = config.sampling.guidance
    if facts.frame_stride > 1 and first != last:
        raise ConfigError("--guidance", dump_guidance(config.sampling.guidance), f"one number with {model.name}")
    longest = model.longest_window
    if longest is not None and config.windows.length > longest:
        expected = f"at most {longest}, the frames that the motion modules of {model.name} know"
        raise ConfigError("--window", config.windows.length, expected)


def _option(config: AnimateConfig, path: str) -> tuple[str, Any, Any, Any]:
    """Flag, value and default of the field at a dotted path, and the value as it is typed."""
    owner: Any = config
    *tables, name = path.split(".")
    for table in tables:
        owner = getattr(owner, table)
    field = next(item for item in dataclasses.fields(owner) if item.name == name)
    value, dump = getattr(owner, name), field.metadata.get("dump")
    return field.metadata["flag"], value, field.default, dump(value) if dump and value is not None else value
