"""What decides the bytes of a video: settings, inputs, weights, libraries and the device, as flat text to compare.

A run that goes on after a break, and one that is repeated from its record, must not differ in any of it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from stableanimator_cli import __version__
from stableanimator_cli.catalogue import download
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import current_names, to_toml
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.files import sha256_of
from stableanimator_cli.records import ModelFolder

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "av", "opencv-python", "insightface", "onnxruntime")

# Settings that change no pixel, and those whose effect is compared elsewhere: paths by their digests, choices that
# were left to us (device, preset, model) by what was chosen.
_FREE = frozenset(
    {"output", "reference", "motion", "face_embedding", "model", "audio", "preview", "preset"}
    | {"device.device", "device.gpus", "device.dtype", "device.offload", "device.pose_budget_mb"}
)

Fingerprint = dict[str, str]
_TABLES = frozenset(item.name for item in fields(AnimateConfig))


def inputs_of(config: AnimateConfig) -> dict[str, Path]:
    """The files and folders that a run reads, by what they are; ``motion_points`` lie beside a skeleton video."""
    inputs = {"reference": config.reference, "motion": config.motion}
    if config.face_embedding is not None:
        inputs["face_embedding"] = config.face_embedding
    beside = config.motion.with_suffix(".npz")
    if beside != config.motion and config.motion.is_file() and beside.is_file():
        inputs["motion_points"] = beside
    return inputs


def settings(config: AnimateConfig) -> Fingerprint:
    """Settings that decide the bytes, by dotted name. Without faces to optimise or measure in frames the latents do not
    depend on how they are decoded: a run that ran out of memory there may go on with another ``--decode-chunk``."""
    flat = dict(_flat(tomllib.loads(to_toml(config))))
    blind = config.refine.face == "off" and config.refine.min_csim is None
    return {
        name: value for name, value in flat.items() if name not in _FREE and not (blind and name.startswith("decode."))
    }


def current_settings(facts: Mapping[str, str]) -> Fingerprint:
    """Facts that an older version stored, with the names of today's settings."""
    tables: dict[str, Any] = {}
    for name, value in facts.items():
        table, dot, key = name.partition(".")
        if dot and table in _TABLES:
            tables.setdefault(table, {})[key] = value
        else:
            tables[name] = value
    return dict(_flat(current_names(AnimateConfig, tables)))


def inputs(config: AnimateConfig) -> Fingerprint:
    """Digests of what is there to read; a file that is missing is said by who reads it."""
    return {f"{name} (sha256)": sha256_of(path) for name, path in inputs_of(config).items() if path.exists()}


def machine(device: DevicePlan) -> Fingerprint:
    """The device, its type of number, and the libraries that compute."""
    return {
        "device": replace(device, swap=False, groups=False).describe(),
        **{f"version of {k}": v for k, v in versions().items()},
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this program and of the libraries that are installed."""
    found = {"python": platform.python_version(), "stableanimator-cli": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def weight_digests(model: ModelFolder, roles: Iterable[str] | None = None) -> dict[str, str]:
    """sha256 by role of the files and folders of a model that are here; those of unchanged files are remembered."""
    wanted = model.files if roles is None else {role: model.files[role] for role in roles if role in model.files}
    return {role: sha256_of(path) if path.is_dir() else download.digest(path) for role, path in wanted.items()}


def weights(model: ModelFolder) -> Fingerprint:
    """Digests of every file of the model and of its configs."""
    facts = {f"weights of {role} (sha256)": value for role, value in weight_digests(model).items()}
    told = json.dumps({role: dict(config) for role, config in model.configs.items()}, sort_keys=True, default=str)
    facts["configs of the networks (sha256)"] = hashlib.sha256(told.encode()).hexdigest()
    facts["face channel order"] = model.face_channel_order
    return facts


def diff(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """``sampling.steps 25 (now 30)``, one a fact that is not the same; digests are shortened."""
    return [
        f"{name} {_shown(then.get(name))} (now {_shown(now.get(name))})"
        for name in dict.fromkeys((*then, *now))
        if then.get(name) != now.get(name)
    ]


def _shown(value: str | None) -> str:
    if value is None:
        return "none"
    return value[:12] if len(value) == 64 and value.isalnum() else value


def _flat(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        here = (*path, key)
        rows += _flat(value, here) if isinstance(value, Mapping) else [(".".join(here), str(value))]
    return rows
