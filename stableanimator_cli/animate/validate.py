"""What ``sa animate`` is to do, from flags, file and model card, with every mistake told that is cheap to find.

Without torch, which takes seconds to load: who mistypes a name waits for none of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue, clip_folder
from stableanimator_cli.animate.ablation import uses_face
from stableanimator_cli.config.animate import AnimateConfig, DecodeConfig, WindowConfig
from stableanimator_cli.config.parse import Size
from stableanimator_cli.config.refine import PRESETS, dump_steps
from stableanimator_cli.config.schema import read_toml, refuse_unknown_keys, resolve
from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing
from stableanimator_cli.files import check_apart, check_replaceable, require_file
from stableanimator_cli.media import read_picture
from stableanimator_cli.records import NETWORKS, STRIDE, ModelFolder

SMALLEST_PICTURE = 32  # pixels a side, below which nobody can be seen in a reference
SMALLEST_OUTPUT = 64  # pixels a side, below which the UNet's coarsest level is empty
_PAIRS = (
    ("window", "overlap", "windows", "length", WindowConfig().overlap),
    ("decode_chunk", "decode_overlap", "decode", "chunk", DecodeConfig().overlap),
)


def resolve_config(flags: Mapping[str, Any], config_file: Path | None) -> tuple[AnimateConfig, ModelFolder]:
    """The model first, since its card holds defaults; then flags over file over card.

    Who names a window and no overlap gets an overlap that fits it; the same holds for decode chunks.
    """
    file = {} if config_file is None else read_toml(config_file)
    refuse_unknown_keys(AnimateConfig, file, config_file or "")
    named = flags.get("model") or file.get("model")
    if named is not None and not isinstance(named, str):
        raise ConfigError(f"{config_file}: model", named, "a name of the catalogue or a folder, as text")
    model = catalogue.open_model(named or catalogue.default_model(NETWORKS), NETWORKS)
    preset = flags.get("preset") or file.get("preset") or model.defaults.get("preset") or "standard"
    defaults = {**model.defaults, **PRESETS.get(preset, {})}  # an unknown one is refused with the other choices below
    for whole, part, table, key, usual in _PAIRS:
        length = flags.get(whole) or file.get(table, {}).get(key)
        if isinstance(length, int):
            defaults[part] = min(int(defaults.get(part, usual)), max(0, length // 4))
    return resolve(AnimateConfig, flags, config_file, defaults), model


def size_of(config: AnimateConfig) -> Size:
    """The output's size (width, height)."""
    return config.size or (512, 512)


def validate(config: AnimateConfig, model: ModelFolder) -> None:
    """Refuse everything that can be before anything is loaded. Raises ``SaError``."""
    width, height = size = size_of(config)
    if width % STRIDE or height % STRIDE or min(size) < SMALLEST_OUTPUT:
        near = (max(SMALLEST_OUTPUT, round(side / STRIDE) * STRIDE) for side in size)
        raise ConfigError(
            "--size",
            f"{width}x{height}",
            f"sides that are multiples of {STRIDE}, {SMALLEST_OUTPUT} or more",
            hint="try " + "x".join(map(str, near)),
        )
    if config.sampling.churn > 0 and config.sampling.sampler != "heun":
        raise ConfigError("--churn", config.sampling.churn, "0 with --sampler euler", hint="add --sampler heun")
    if config.device.cuda_graphs and config.sampling.cache_features > 1:
        hint = "what is recorded is the whole network: leave one of the two out"
        raise ConfigError("--cuda-graphs", True, "no --cache-features", hint=hint)
    if config.refine.gate_retries and config.sampling.noise == "repeat":
        raise ConfigError(
            "--gate-retries", config.refine.gate_retries, "0 with --noise repeat", hint="use --noise fresh"
        )
    if config.refine.gate_retries and config.refine.min_csim is None:
        raise ConfigError(
            "--gate-retries", config.refine.gate_retries, "0 without --min-csim", hint="add --min-csim 0.5 or so"
        )
    if config.refine.min_csim is not None and "face" not in model.files:
        hint = "`sa models pull antelopev2`, or leave --min-csim out"
        raise ModelMissing(f"model {model.name!r} has no face recogniser here, which --min-csim needs", hint=hint)
    first, last = config.refine.steps_of(config.sampling.steps)
    if config.refine.steps is not None and first >= last:
        wanted = f"a range that holds one of {config.sampling.steps} steps"
        raise ConfigError("--refine-steps", dump_steps(config.refine.steps), wanted)
    _check_output(config)
    _check_layers(config, model)
    uses_face(config, model)
    require_file(config.reference, "a picture (PNG, JPEG, WebP or BMP)")
    if not config.motion.is_dir():
        require_file(config.motion, "a video, a folder of pictures, a motion (.npz) or OpenPose JSON")


def _check_layers(config: AnimateConfig, model: ModelFolder) -> None:
    """Deep features must leave something of the network to take them from."""
    unet, layers = model.configs["unet"], config.sampling.cache_layers
    per, blocks = unet.get("layers_per_block") or 2, len(unet.get("up_block_types") or range(4))
    most = sum(per) + len(per) if isinstance(per, list | tuple) else blocks * (per + 1)
    if config.sampling.cache_features > 1 and layers > most:
        raise ConfigError("sampling.cache_layers", layers, f"1 to {most}, the layers of this model's way up")


def _check_output(config: AnimateConfig) -> None:
    """The video, its preview and its record must have a place apart from what is read, and replace only our own."""
    output, parent = config.output, config.output.absolute().parent
    if output.is_dir():
        raise ConfigError("--output", str(output), "a file, not a folder", hint=f"try {output / 'out.mp4'}")
    if output.suffix.lower() not in (".mp4", ".mov", ".m4v"):
        raise ConfigError(
            "--output", str(output), "a name ending in .mp4 or .mov", hint=f"try {output.with_suffix('.mp4')}"
        )
    if not parent.is_dir():
        raise ConfigError("--output", str(output), "a file in a folder that exists", hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError("--output", str(output), "a file in a folder that may be written", hint="choose another -o")
    written = [output, config.record_path, *([config.preview_path] if config.preview else [])]
    for path in written:
        check_apart(path, _inputs(config))
    state = state_path(output)
    check_replaceable(*written, *([] if state.is_dir() else [state]))  # without a state a run is whole too


def state_path(output: Path) -> Path:
    """Where the state of an unfinished run is: ``out.mp4`` -> ``.out.mp4.state``."""
    return output.with_name(f".{output.name}.state")


def _inputs(config: AnimateConfig) -> list[Path]:
    """Everything that a run reads but the model: of a motion in a clip folder the whole folder and its video too."""
    motion = config.motion
    inputs = [config.reference, motion]
    if config.face_embedding is not None:
        inputs.append(config.face_embedding)
    beside = motion.with_suffix(".npz")
    if motion.is_file() and beside.is_file():
        inputs.append(beside)
    folder = motion if motion.is_dir() else motion.parent
    if (folder / clip_folder.RECORD).is_file():
        inputs.append(folder)
        with contextlib.suppress(BadInput, KeyError, TypeError):
            inputs.append(clip_folder.open_folder(folder).source)
    return inputs


def reference_picture(path: Path) -> np.ndarray:
    """The person's picture, RGB uint8[h,w,3]. Raises ``BadInput`` for none, and for one where nobody can be seen."""
    picture = read_picture(path)
    height, width = picture.shape[:2]
    if min(height, width) < SMALLEST_PICTURE:
        raise BadInput(
            path,
            f"{width}x{height} pixels",
            f"a picture of {SMALLEST_PICTURE} pixels a side or more",
            hint="use a larger picture of the person",
        )
    return picture
