"""One video to one clip folder: found done by its key, or made aside and put in place whole.

The key is a digest of all that decides the content: the source's bytes, the settings, the networks' bytes, the format.
A folder whose ``clip.json`` bears the key is finished, for that file is in the folder before the folder has its name.
Nothing in a clip folder tells when, how fast or by which process it was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stableanimator_cli import __version__, clip_folder
from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.detect.capture import BATCH, Capture, CaptureOptions, Detectors, extract_motion
from stableanimator_cli.errors import BadInput, SaError
from stableanimator_cli.files import (
    MARK,
    atomic_write,
    check_replaceable,
    json_text,
    require_file,
    sha256_of,
    temporary_path,
    translate_os_errors,
    visible_files,
)
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.track import parse_person
from stableanimator_cli.preprocess import reference_layout
from stableanimator_cli.preprocess.clip_entries import check_clip_replaceable, remove_clip, replace_clip
from stableanimator_cli.preprocess.inputs import Source
from stableanimator_cli.preprocess.quality import findings, measure
from stableanimator_cli.preprocess.visual_quality import Observer, write_sheet
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip

FAILED = "failed"
"""The folder beside the clips that says, a file each, which videos were left out and why."""

_REPORTED = {"people", "findings", "quality", "repairs", "audio"}  # of a record that `sa preprocess` wrote
_LIBRARIES = ("numpy", "av", "opencv-python", "onnxruntime", "rtmlib", "insightface")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one source. ``kept``: it was done before. ``seconds`` is a fact of this run, in no clip."""

    source: Source
    status: Literal["ok", "failed", "pending"]
    folder: Path | None = None
    kept: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    seconds: float = 0.0


class Watchers:
    """Several watchers of one pass over the frames."""

    def __init__(self, *watchers: Any) -> None:
        self._watchers = watchers

    def see(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> None:
        for watcher in self._watchers:
            watcher.see(frames, boxes)


def key_of(digest: str, config: PreprocessConfig, networks: Mapping[str, str], place: str) -> str:
    """sha256 over all that decides what a clip holds."""
    whole = {"format": clip_folder.FORMAT, "source": digest, "options": config.of_clip(), "networks": dict(networks)}
    return hashlib.sha256(json.dumps(whole | {"place": place}, sort_keys=True).encode()).hexdigest()


def place_of(source: Source, config: PreprocessConfig, size: tuple[int, int] | None) -> str:
    """The clip's folder within the output. ``size`` may be None where the layout does not go by it."""
    if config.layout == "upstream":
        return reference_layout.folder_name(source.number, size)
    return source.name


def places_of(source: Source, config: PreprocessConfig) -> tuple[str, ...]:
    """Every folder within the output where the clip of a source may be."""
    return reference_layout.places(source.number) if config.layout == "upstream" else (source.name,)


def finished(out: Path, source: Source, config: PreprocessConfig, key: str) -> clip_folder.ClipFolder | None:
    """The clip of this key where it is done."""
    for place in places_of(source, config):
        with suppress(SaError):
            folder = clip_folder.open_folder(out / place)
            if folder.record["key"] == key and folder.record.keys() >= _REPORTED:
                return folder
    return None


def make_clip(
    source: Source,
    config: PreprocessConfig,
    detectors: Detectors,
    networks: Mapping[str, str],
    out: Path,
    reporter: Reporter,
) -> Outcome:
    """The clip folder of one source, found or made. Raises ``SaError`` where it cannot be; nothing is left then."""
    digest, size = source_digest(source.path)
    key = key_of(digest, config, networks, "" if config.layout == "clips" else str(source.number))
    folder = finished(out, source, config, key)
    kept = folder is not None
    if folder is None:
        clip = clip_folder.cut(open_clip(source.path), config.frames or (None, None), config.fps)
        place = out / place_of(source, config, clip.size)
        others = [out / other for other in places_of(source, config) if out / other != place]
        for other in (place, *others):
            check_clip_replaceable(other)
        part = temporary_path(place)
        with translate_os_errors(out):
            part.mkdir(parents=True)
        try:
            _fill(
                part, place, clip, source, config, detectors, {"sha256": digest, "bytes": size}, key, networks, reporter
            )
            with translate_os_errors(out):
                replace_clip(part, place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for other in others:  # of a source that had another shape before
            remove_clip(other)
        folder = clip_folder.open_folder(place)
    elif config.layout == "clips" and clip_folder.source_inside(folder.path) is None:
        link_source(source.path, folder.path, folder.path, copy=config.source == "copy")
    failure = failure_path(out, source)
    if is_failure(failure):
        with suppress(FileNotFoundError):
            failure.unlink()
    return Outcome(source=source, status="ok", folder=folder.path, kept=kept, record=folder.record)


def _fill(
    part: Path,
    place: Path,
    clip: Clip,
    source: Source,
    config: PreprocessConfig,
    detectors: Detectors,
    facts: Mapping[str, Any],
    key: str,
    networks: Mapping[str, str],
    reporter: Reporter,
) -> None:
    observer = Observer()
    options = CaptureOptions(person=parse_person(config.who), every=config.every, gap=config.gap, smooth=config.smooth)
    if config.layout == "upstream":
        with reference_layout.Images(part / "images") as images:
            seen = extract_motion(clip, detectors, options, reporter=reporter, watch=Watchers(observer, images))
        reference_layout.write_poses(part, seen.motion, seen.faces)
    else:
        seen = extract_motion(clip, detectors, options, reporter=reporter, watch=observer)
        link_source(source.path, part, place, copy=config.source == "copy")
    save_motion(part / clip_folder.MOTION, seen.motion)
    clip_folder.save_faces(part / clip_folder.FACES, seen.faces)
    write_sheet(part / clip_folder.SHEET, observer.sheet(seen.motion))
    record = _record(clip, source, config, seen, observer, detectors, networks)
    record["source"] |= dict(facts)
    write_json(part / clip_folder.RECORD, record | {"key": key})


def _record(
    clip: Clip,
    source: Source,
    config: PreprocessConfig,
    seen: Capture,
    observer: Observer,
    detectors: Detectors,
    networks: Mapping[str, str],
) -> dict[str, Any]:
    motion = seen.motion
    numbers = measure(motion, seen.found, observer.look())
    return {
        "format": clip_folder.FORMAT,
        "name": source.name,
        "frames": len(motion),
        "size": list(motion.size),
        "fps": None if clip.fps is None else str(clip.fps),
        "audio": clip.audio,
        "source": {"path": str(source.path.resolve()), "name": source.path.name},
        "options": config.of_clip(),
        "model": {"name": detectors.model.name, "sha256": dict(networks)},
        "batch": BATCH,
        "people": {"kept": motion.track.tolist(), "strangers": seen.discarded_detections},
        "faces": {"found": len(seen.faces), "channel_order": seen.faces.channel_order},
        "repairs": seen.repairs.to_json(),
        "quality": numbers,
        "findings": [one.to_json() for one in findings(numbers)],
        "versions": {"stableanimator-cli": __version__} | {name: _version(name) for name in _LIBRARIES},
    }


def link_source(source: Path, part: Path, place: Path, *, copy: bool) -> None:
    """Put the video into its clip folder, under one name whatever it is called: a relative link, or a copy.

    Of a folder the visible files are copied, which are its frames. Where a file system has no links the record's path
    has to do. A link to a video that was moved is replaced.
    """
    target = part / f"{clip_folder.SOURCE}{source.suffix.lower()}"
    if not copy:
        away = os.path.relpath(source.resolve(), place.parent.resolve() / place.name)
        with suppress(OSError, NotImplementedError, BadInput), atomic_write(target, folder=True) as temp:
            temp.symlink_to(away, target_is_directory=source.is_dir())
        return
    with atomic_write(target, folder=source.is_dir()) as temp, translate_os_errors(target):
        if not source.is_dir():
            shutil.copyfile(source, temp)
            return
        temp.mkdir()
        for file in visible_files(source):
            shutil.copyfile(file, temp / file.name)


def failure_path(out: Path, source: Source) -> Path:
    return out / FAILED / f"{source.name}.json"


def write_failure(out: Path, source: Source, error: SaError) -> dict[str, Any]:
    """Keep why a source was left out, so that a later run of another part of the list can tell too."""
    told = {"error": error.code, "message": error.message, "hint": error.hint}
    path, about = failure_path(out, source), {"name": source.name, "source": str(source.path.resolve())}
    if not is_failure(path):
        check_replaceable(path)
    write_json(path, about | told | {MARK: __version__})
    return told


def is_failure(path: Path) -> bool:
    """Whether the file ``path`` is one of ``write_failure``; those of versions before the mark have the same keys."""
    try:
        keys = json.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return {"name", "source", "error", "message", "hint"} <= keys


def source_digest(path: Path) -> tuple[str, int]:
    """sha256 and bytes of a file, or of a folder's visible files by name and content in natural order."""
    if not path.is_dir():
        require_file(path, "a video or a picture")
    files = visible_files(path) if path.is_dir() else [path]
    return sha256_of(path), sum(file.stat().st_size for file in files)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_write(path) as part, translate_os_errors(path):
        part.write_text(json_text(data, indent=1, default=_plain), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction | Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"no JSON form for {value!r}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
