"""Differences between the config of a training and the config that resumes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stableanimator_cli.config.schema import current_names
from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.errors import cut, value_text

ALLOWED_ON_RESUME = (
    "output",
    "dataset",
    "device",
    "track",
    "saving",
    "validation",
    "data.workers",
    "data.ram_mb",
    "optimizer.loss_spike_factor",
    "memory.sharding",
)
"""Settings that may change on resume: they do not affect the result. Of ``dataset``, the place may: a digest of its
clips is compared. ``train.resume`` allows another place of ``model`` if digests of its networks are recorded."""
EARLIER_DATA = {"people": 1}
"""Values of options of ``data`` in runs before these options existed."""


def with_current_names(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a ``TrainConfig`` that an older version wrote, and add options that it did not have."""
    current = current_names(TrainConfig, tables)
    if isinstance(current.get("data"), Mapping):
        current["data"] = {**EARLIER_DATA, **current["data"]}
    if isinstance(current.get("stage"), list):
        current["stage"] = [current_names(StageConfig, row) for row in current["stage"]]
    return current


def diff(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> list[str]:
    """Differences between two configs as tables, one line per key, without ``ALLOWED_ON_RESUME``."""
    found: list[str] = []
    for key in dict.fromkeys((*before, *after)):
        dotted = f"{path}{key}"
        old, new = before.get(key), after.get(key)
        if dotted in ALLOWED_ON_RESUME or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += diff(old, new, f"{dotted}.")
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for index, pair in enumerate(zip(old, new, strict=True)):
                left, right = (item if isinstance(item, Mapping) else {"": item} for item in pair)
                found += diff(left, right, f"{dotted}[{index}].")
        else:
            found.append(f"{dotted}: was {_shown(old)}, now {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    return "not set" if value is None else cut(value_text(value))
