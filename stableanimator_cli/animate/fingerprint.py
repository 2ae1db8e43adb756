"""Fingerprint of a run: the settings, inputs, weights, libraries and device that decide the bytes of its video.

A resumed run, and one that `sa replay` repeats, must have an equal fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from stableanimator_cli import __version__
from stableanimator_cli.animate.people import PersonFace
from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.clip_folder import digest
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import current_names, to_toml
from stableanimator_cli.distributions import version_of
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.skeleton import is_tagged
from stableanimator_cli.records import ModelFolder, Motion

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "av", "opencv-python", "insightface", "onnxruntime")

# Settings that change no pixel or are compared by their effect: paths by digests; device, preset, model as resolved.
_FREE = frozenset(
    {"output", "reference", "motion", "face_embedding", "model", "audio", "preview", "preview_every", "preset", "force"}
    | {"device.device", "device.gpus", "device.dtype", "device.offload", "device.pose_budget_mb", "people.face_of"}
)

_POINTS = "motion_points"
PEOPLE, FACE_OF = "people", "face of person "
"""Names of the facts of ``people``; the latter with a number."""

Fingerprint = dict[str, str]
_HIDDEN, _HIDDEN_ONCE = "hide_reference_face", {"False": "off", "True": "all"}  # once a switch
_TABLES = frozenset(item.name for item in fields(AnimateConfig))


def settings(config: AnimateConfig) -> Fingerprint:
    """Settings that decide the bytes, by dotted name.

    Unless faces are optimised or measured, latents do not depend on decoding: a run that ran out of memory there may
    resume with another ``--decode-chunk``.
    """
    if config.hide_reference_face == "exchanged" and config.people.names_faces is None:  # no face is another's
        config = replace(config, hide_reference_face="off")
    flat = dict(_flat(tomllib.loads(to_toml(config))))
    decodes_last = config.refine.face == "off" and config.refine.min_csim is None
    return {
        name: value
        for name, value in flat.items()
        if name not in _FREE and not (decodes_last and name.startswith("decode."))
    }


def current_settings(facts: Mapping[str, str], now: Mapping[str, str]) -> Fingerprint:
    """Facts that an older version stored, with the names of today's settings. Settings of ``now`` that it did not know
    had the effect of their defaults."""
    current: Fingerprint = {}
    tables: dict[str, Any] = {}
    for name, value in facts.items():
        table, dot, key = name.partition(".")
        if dot and table in _TABLES:
            tables.setdefault(table, {})[key] = value
        else:
            current[name] = value
    current |= dict(_flat(current_names(AnimateConfig, tables)))
    if current.get(_HIDDEN) in _HIDDEN_ONCE:
        current[_HIDDEN] = _HIDDEN_ONCE[current[_HIDDEN]]
    defaults = settings(AnimateConfig(reference=Path(), motion=Path(), output=Path("out.mp4")))
    return current | {name: defaults[name] for name in defaults if name in now and name not in current}


def unread_inputs(config: AnimateConfig) -> set[str]:
    """Roles of files that no run reads: keypoints beside a video that is no skeleton video of ours."""
    if _POINTS not in config.inputs:
        return set()
    with contextlib.suppress(BadInput):
        return set() if is_tagged(open_clip(config.motion).tag) else {_POINTS}
    return {_POINTS}


def input_files(config: AnimateConfig) -> dict[str, dict[str, str]]:
    """Path and sha256 of each input that exists, as run records hold them; a missing file is an error of its reader."""
    unread = unread_inputs(config)
    return {
        name: {"path": str(path), "sha256": digest(path)}
        for name, path in config.inputs.items()
        if path.exists() and name not in unread
    }


def inputs(files: Mapping[str, Mapping[str, str]]) -> Fingerprint:
    """Digests of ``input_files``."""
    return {f"{name} (sha256)": file["sha256"] for name, file in files.items()}


def people(config: AnimateConfig, motion: Motion | None, faces: Sequence[PersonFace]) -> Fingerprint:
    """Numbers of the people who are drawn, and the face of each, which are known only once both were detected.

    Empty if neither depends on a detection or on the order of people: one person with one face, or one face for
    everybody. Runs of versions that knew no other way have no such facts, and resume.
    """
    several = motion is not None and len(motion.track) > 1
    if config.people.person in (None, "largest") and not (faces and several):
        return {}
    numbers = [] if motion is None else motion.track.tolist()
    facts = {PEOPLE: ", ".join(map(str, numbers))}
    for one in faces:
        which = "the largest face" if one.face_number is None else f"face {one.face_number}"
        facts[f"{FACE_OF}{one.number}"] = f"{which} of {sha256_of(one.path)[:12]}"
    return facts


def machine(device: DevicePlan) -> Fingerprint:
    """The device, its dtype, and versions of the libraries."""
    return {
        "device": device.describe(offload=False),
        **{f"version of {k}": v for k, v in versions().items()},
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this program and of the installed libraries."""
    found = {"python": platform.python_version(), "stableanimator-cli": __version__}
    return found | {name: version for name in LIBRARIES if (version := version_of(name)) is not None}


def weights(model: ModelFolder) -> Fingerprint:
    """Digests of all files of the model and of its configs."""
    facts = {f"weights of {role} (sha256)": value for role, value in weight_digests(model).items()}
    configs = json.dumps({role: dict(config) for role, config in model.configs.items()}, sort_keys=True, default=str)
    facts["configs of the networks (sha256)"] = hashlib.sha256(configs.encode()).hexdigest()
    facts["face channel order"] = model.face_channel_order
    return facts


def diff(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """``sampling.steps 25 (now 30)``, one line per difference; digests are shortened."""
    return [
        f"{name} {_shorten(before.get(name))} (now {_shorten(now.get(name))})"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]


def _shorten(value: str | None) -> str:
    if value is None:
        return "none"
    return value[:12] if len(value) == 64 and value.isalnum() else value


def _flat(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        names = (*path, key)
        rows += _flat(value, names) if isinstance(value, Mapping) else [(".".join(names), str(value))]
    return rows
