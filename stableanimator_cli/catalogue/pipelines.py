"""Folders in diffusers' layout: an index that names the class of the pipeline and of each part.

Only JSON and the names of files are read. A folder whose pipeline a catalogue entry describes is opened with that
entry: its parts come from the folder, defaults and detectors from the entry.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.catalogue.layouts import Layout, LayoutMatch
from stableanimator_cli.errors import BadInput, ModelDamaged
from stableanimator_cli.readers import damaged_model, read_json

INDICES = ("modular_model_index.json", "model_index.json")
"""Of modular pipelines, whose folders may have both, and of others."""
SVD = "StableVideoDiffusionPipeline"
"""The class of Stable Video Diffusion's folder, which is part of a layout (``layouts``)."""
_HINT = "get the folder again from its source; an interrupted download lacks its last files"


@dataclass(frozen=True, slots=True)
class PipelineKind:
    """The catalogue ``entry`` of a pipeline class, and the class of each part; None for any class."""

    entry: str
    parts: Mapping[str, str | None]


_WAN = {
    "vae": "AutoencoderKLWan",
    "text_encoder": "UMT5EncoderModel",
    "image_encoder": "CLIPVisionModel",
    "tokenizer": None,
    "scheduler": None,
}
_WAN_2 = {"transformer": "WanAnimate2Transformer3DModel", **_WAN}
KINDS: Mapping[str, PipelineKind] = {
    "WanAnimatePipeline": PipelineKind(
        "wan-animate", {"transformer": "WanAnimateTransformer3DModel", **_WAN, "image_processor": None}
    ),
    "WanAnimate2ModularPipeline": PipelineKind("wan-animate-2", _WAN_2),
    "WanAnimate2DistilledModularPipeline": PipelineKind("wan-animate-2-distilled", _WAN_2),
}
"""By the class that a folder names."""

_CONFIGS = {
    "tokenizer": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
    "scheduler": "scheduler_config.json",
}
"""Of parts without weights; networks have ``config.json``."""
_STEMS = ("diffusion_pytorch_model", "model")


def class_of(folder: Path) -> tuple[Path, str] | None:
    """The index of a folder and the class that it names, a known one if there is one; None without a readable index."""
    found = []
    for path in (folder / name for name in INDICES):
        with contextlib.suppress(BadInput):
            index = read_json(path, "the index of a pipeline")
            name = index.get("_class_name") if isinstance(index, dict) else None
            found += [(path, name)] if isinstance(name, str) else []
    return next((pair for pair in found if pair[1] in KINDS), found[0] if found else None)


def entry_of(folder: Path) -> str | None:
    """The catalogue entry of a known pipeline's folder, which may be incomplete; None for other folders."""
    named = class_of(folder)
    kind = None if named is None else KINDS.get(named[1])
    return None if kind is None else kind.entry


def detect_pipeline(folder: Path) -> Layout | None:
    """The layout of a known pipeline's folder, None for other folders.

    Raises ``ModelDamaged`` for a part of another class, and for a folder that lacks parts, with what it lacks.
    """
    named = class_of(folder)
    kind = None if named is None else KINDS.get(named[1])
    if named is None or kind is None:
        return None
    path, name = named
    index, lacking = read_json(path, "the index of a pipeline", error=damaged_model), []
    for part, expected in kind.parts.items():
        word = _part_class(index.get(part))
        if expected is not None and word is not None and word != expected:
            raise ModelDamaged(f"{path}: {part}: found {word!r}, expected {expected!r}")
        lacking += _lacking(folder, part) if word is not None else [f"{part} (not in {path.name})"]
    if lacking:
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        raise ModelDamaged(f"{folder} is an incomplete {name}: it lacks {shown}", hint=_HINT)
    return Layout(
        folder=folder,
        primary=kind.entry,
        parts={
            (kind.entry, part): LayoutMatch(
                file=folder / part, config=None if part in _CONFIGS else config_of(folder, part)
            )
            for part in kind.parts
        },
        searched={},
    )


def refuse_other(folder: Path, known: Iterable[str]) -> None:
    """Raise ``ModelDamaged`` if ``folder`` is a pipeline that cannot animate; ``known`` are names of models.

    Its parts may have the names of Stable Video Diffusion's.
    """
    named = class_of(folder)
    if named is not None and named[1] not in (*KINDS, SVD):
        raise ModelDamaged(
            f"{named[0]}: found {named[1]!r}, expected {' or '.join((*KINDS, SVD))}",
            hint=f"name the folder of such a pipeline, or one of: {', '.join(known)}",
        )


def config_of(folder: Path, part: str) -> Path:
    """The JSON config of a part."""
    return folder / part / _CONFIGS.get(part, "config.json")


def _part_class(entry: Any) -> str | None:
    """The class of a part, None if unknown: ``[library, class]``, and in a modular index an object that repeats it,
    or alone names it."""
    if not isinstance(entry, list) or len(entry) not in (2, 3):
        return None
    word = entry[1]
    if not isinstance(word, str) and len(entry) == 3 and isinstance(entry[2], dict):
        hint = entry[2].get("type_hint")
        word = hint[1] if isinstance(hint, list) and len(hint) == 2 else None
    return word if isinstance(word, str) else None


def _lacking(folder: Path, part: str) -> list[str]:
    """Files of a part that do not exist: its config, and all files of its weights in one of the usual forms."""
    lacking = [] if config_of(folder, part).is_file() else [f"{part}/{config_of(folder, part).name}"]
    if part in _CONFIGS:
        return lacking
    for stem in _STEMS:
        index = folder / part / f"{stem}.safetensors.index.json"
        if index.is_file():
            return lacking + [f"{part}/{name}" for name in _shards(index) if not (folder / part / name).is_file()]
        if (folder / part / f"{stem}.safetensors").is_file():
            return lacking
    if any((folder / part).glob("*.gguf")):
        return lacking
    return [*lacking, f"{part}/*.safetensors"]


def _shards(path: Path) -> list[str]:
    index: Any = read_json(path, "the index of sharded weights", error=damaged_model)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) and "/" not in name for name in names.values()):
        raise ModelDamaged(f"{path}: weight_map: expected file names by tensor", hint=_HINT)
    return sorted(set(names.values()))
