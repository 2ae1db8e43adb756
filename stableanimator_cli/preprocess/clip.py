"""One video to one clip folder: found finished by its key, or written aside and renamed into place.

The key is a digest of all that decides the content: the source's bytes, the settings, the networks' bytes, the format.
A folder whose ``clip.json`` holds the key is finished, as that file is written before the folder gets its name.
A clip folder records neither when, how fast nor by which process it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli import __version__, clip_folder
from stableanimator_cli.clip_folder import ClipFolder
from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.detect.capture import BATCH, Capture, CaptureOptions, Detectors, extract_motion
from stableanimator_cli.distributions import version_of
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
from stableanimator_cli.media import frame_range, open_clip
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.track import Largest, PersonSelector, parse_selector
from stableanimator_cli.preprocess import reference_layout
from stableanimator_cli.preprocess.clip_entries import check_clip_replaceable, remove_clip, replace_clip
from stableanimator_cli.preprocess.inputs import Source
from stableanimator_cli.preprocess.quality import findings, measure_quality
from stableanimator_cli.preprocess.visual_quality import VisualQualityMeter, write_sheet
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, ModelFolder

FAILED = "failed"
"""The folder beside the clips with one file per video that was left out, which records why."""

_REPORTED = {"people", "findings", "quality", "repairs", "audio"}  # of a record that `sa preprocess` wrote
_LIBRARIES = ("numpy", "av", "opencv-python", "onnxruntime", "rtmlib", "insightface")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result for one source. ``cached``: the clip was finished before. ``seconds`` are of this run, in no clip.
    ``numbered_from``: see there."""

    source: Source
    status: Literal["ok", "failed", "pending"]
    folder: Path | None = None
    cached: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    seconds: float = 0.0
    numbered_from: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessJob:
    """Values that all clips of a run share. Workers receive it pickled.

    ``networks`` maps each network to its sha256. ``threads`` is the number per network, None for all cores.
    """

    config: PreprocessConfig
    model: ModelFolder
    networks: Mapping[str, str]
    out: Path
    threads: int | None = None

    def open_detectors(self) -> Detectors:
        config = self.config
        return Detectors.open(self.model, config.device, threshold=config.detect_threshold, threads=self.threads)

    def folders(self, source: Source) -> list[Path]:
        """Every folder where the clip of a source may be."""
        upstream = self.config.layout == "upstream"
        names = reference_layout.folder_names(source.number) if upstream else (source.name,)
        return [self.out / name for name in names]

    def folder(self, source: Source, size: tuple[int, int]) -> Path:
        """The folder of a source whose frames are of ``size`` (width, height)."""
        upstream = self.config.layout == "upstream"
        return self.out / (reference_layout.folder_name(source.number, size) if upstream else source.name)

    def key(self, source: Source, digest: str) -> str:
        """sha256 over all that decides what a clip holds."""
        values = {
            "format": clip_folder.FORMAT,
            "source": digest,
            "options": self.config.of_clip(),
            "networks": dict(self.networks),
            "place": "" if self.config.layout == "clips" else str(source.number),
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def finished(self, source: Source, digest: str | None = None) -> ClipFolder | None:
        """The finished clip of a source, None if there is none.

        Without its ``digest`` the source is hashed only if a clip exists and the source's size or time differ from
        those of the record: videos of other shards are not read again, nor are their clips. With it, motion and faces
        must be readable too: the error of a damaged file reports that this run writes it again. Raises ``BadInput`` for
        a missing source.
        """
        stat = source_stat(source.path) if digest is None else None
        for path in self.folders(source):
            with suppress(SaError):
                folder = clip_folder.open_folder(path)
                if not folder.record.keys() >= _REPORTED:
                    continue
                if stat is not None:
                    recorded = folder.record["source"]
                    unchanged = recorded.get("bytes") == stat.bytes and _is_older(stat, path / clip_folder.RECORD)
                    digest = recorded.get("sha256") if unchanged else sha256_of(source.path)
                if digest is not None and folder.record["key"] == self.key(source, digest):
                    if stat is None:
                        folder.motion()
                        folder.faces()
                    return folder
        return None


@dataclass(frozen=True, slots=True)
class SourceStat:
    """Size of a source in bytes, and when one of its files last changed, in nanoseconds."""

    bytes: int
    changed: int


def source_stat(path: Path) -> SourceStat:
    """Of a file, or of the visible files of a folder. Renamed and restored files count as changed."""
    if not path.is_dir():
        require_file(path, "a video or an image")
    with translate_os_errors(path):
        stats = [file.stat() for file in (visible_files(path) if path.is_dir() else [path])]
        times = [time for stat in (*stats, path.stat()) for time in (stat.st_mtime_ns, stat.st_ctime_ns)]
    return SourceStat(sum(stat.st_size for stat in stats), max(times))


def _is_older(source: SourceStat, record: Path) -> bool:
    with translate_os_errors(record):
        return source.changed < record.stat().st_mtime_ns


def make_clip(job: PreprocessJob, source: Source, detectors: Detectors, reporter: Reporter) -> Outcome:
    """The clip folder of one source, found or written. Raises ``SaError`` and leaves nothing if it cannot be."""
    size, digest = source_stat(source.path).bytes, sha256_of(source.path)
    folder = job.finished(source, digest)
    cached, first = folder is not None, 0
    if folder is None:
        folder, first = _write_clip(job, source, detectors, {"sha256": digest, "bytes": size}, reporter)
    elif job.config.layout == "clips" and not _has_source(folder.path, source.path):
        link_source(source.path, folder.path, folder.path, copy=job.config.source == "copy")
    failure = failure_path(job.out, source)
    if is_failure(failure):
        failure.unlink(missing_ok=True)
    return Outcome(
        source=source, status="ok", folder=folder.path, cached=cached, record=folder.record, numbered_from=first
    )


def _write_clip(
    job: PreprocessJob, source: Source, detectors: Detectors, digest: Mapping[str, Any], reporter: Reporter
) -> tuple[ClipFolder, int]:
    """Write a clip aside and rename it into place, and return it with ``numbered_from``. ``digest``: sha256 and bytes
    of the source."""
    config = job.config
    video = open_clip(source.path)
    clip = clip_folder.select_frames(video, config.frames or (None, None), config.fps)
    folder = job.folder(source, clip.size)
    for path in job.folders(source):
        check_clip_replaceable(path)
    temp = temporary_path(folder)
    meter = VisualQualityMeter()
    options = capture_options(config)
    with translate_os_errors(job.out):
        temp.mkdir(parents=True)
    try:
        if config.layout == "upstream":
            with reference_layout.ImageWriter(temp / "images") as images:
                capture = extract_motion(clip, detectors, options, reporter=reporter, watchers=(meter, images))
            reference_layout.write_poses(temp, capture.motion, capture.faces)
        else:
            capture = extract_motion(clip, detectors, options, reporter=reporter, watchers=(meter,))
            link_source(source.path, temp, folder, copy=config.source == "copy")
        motion = capture.motion
        save_motion(temp / clip_folder.MOTION, motion)
        clip_folder.save_faces(temp / clip_folder.FACES, capture.faces)
        write_sheet(temp / clip_folder.SHEET, meter.sheet(motion))
        quality = measure_quality(motion, capture.found, meter.result())
        record = {
            "format": clip_folder.FORMAT,
            "name": source.name,
            "frames": len(motion),
            "size": list(motion.size),
            "fps": None if clip.fps is None else str(clip.fps),
            "audio": clip.audio,
            "source": {"path": str(source.path.resolve()), "name": source.path.name, **digest},
            "options": config.of_clip(),
            "model": {"name": detectors.model.name, "sha256": dict(job.networks)},
            "batch": BATCH,
            "people": {"kept": motion.track.tolist(), "strangers": capture.discarded_detections},
            "faces": {"found": len(capture.faces), "channel_order": capture.faces.channel_order},
            "repairs": capture.repairs.to_json(),
            "quality": quality,
            "findings": [finding.to_json() for finding in findings(quality)],
            "versions": {"stableanimator-cli": __version__} | {name: version_of(name) for name in _LIBRARIES},
            "key": job.key(source, digest["sha256"]),
        }
        write_json(temp / clip_folder.RECORD, record)
        with translate_os_errors(job.out):
            replace_clip(temp, folder)
    except BadInput as error:
        if not error.path.is_relative_to(temp):
            raise
        name = folder.name / error.path.relative_to(temp)
        problem = f"its clip's {name} cannot be written: {error.problem}"
        raise BadInput.because(source.path, problem, hint=error.hint) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    for path in job.folders(source):
        if path != folder:  # of a source that had another shape before
            remove_clip(path)
    return clip_folder.open_folder(folder), numbered_from(video, config, capture)


def capture_options(config: PreprocessConfig) -> CaptureOptions:
    return CaptureOptions(person=person_of(config), every=config.every, gap=config.gap, smooth=config.smooth)


def numbered_from(video: Clip, config: PreprocessConfig, capture: Capture) -> int:
    """The first frame of ``--frames`` if several people are seen, who then have other numbers than in the full video;
    else 0."""
    first, _ = frame_range(video, *(config.frames or (None, None)))
    return first if capture.found.max() > 1 else 0


def numbers_note(first: int) -> str:
    """The note for people who are ``numbered_from`` a frame."""
    return (
        f"people are numbered as they appear from frame {first} on; `sa animate --frames` uses the numbers of the full "
        "video"
    )


def person_of(config: PreprocessConfig) -> PersonSelector:
    """The people of ``--people`` or ``--person``."""
    return parse_selector(config.selected_person) if config.people is None else Largest(config.people)


def link_source(source: Path, inside: Path, folder: Path, *, copy: bool) -> None:
    """Put the video under one name into ``inside``, which is or becomes the clip ``folder``: a relative link or a copy.

    Of a folder the visible files are copied, which are its frames. On a file system without links only the record
    names the video. A link to a video that was moved is replaced.
    """
    target = inside / f"{clip_folder.SOURCE}{source.suffix.lower()}"
    if not copy:
        relative = os.path.relpath(source.resolve(), folder.parent.resolve() / folder.name)
        with suppress(OSError, NotImplementedError, BadInput), atomic_write(target, folder=True) as temp:
            temp.symlink_to(relative, target_is_directory=source.is_dir())
        return
    with atomic_write(target, folder=source.is_dir()) as temp, translate_os_errors(target):
        if not source.is_dir():
            shutil.copyfile(source, temp)
            return
        temp.mkdir()
        for file in visible_files(source):
            shutil.copyfile(file, temp / file.name)


def _has_source(folder: Path, source: Path) -> bool:
    """Whether a clip ``folder`` holds its video or a link to it. A link to another place is removed: the video was
    moved, and what is there now may be another one."""
    inside = clip_folder.source_inside(folder)
    if inside is None or not inside.is_symlink() or inside.samefile(source):
        return inside is not None
    with translate_os_errors(inside):
        inside.unlink()
    return False


def failure_path(out: Path, source: Source) -> Path:
    return out / FAILED / f"{source.name}.json"


def write_failure(out: Path, source: Source, error: SaError) -> dict[str, Any]:
    """Record why a source was left out, so that runs of other shards can report it too."""
    reason = {"error": error.code, "message": error.message, "hint": error.hint}
    path = failure_path(out, source)
    if not is_failure(path):
        check_replaceable(path)
    write_json(path, {"name": source.name, "source": str(source.path.resolve()), **reason, MARK: __version__})
    return reason


def is_failure(path: Path) -> bool:
    """Whether the file ``path`` is one of ``write_failure``; those of versions before the mark have the same keys."""
    try:
        keys = json.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return {"name", "source", "error", "message", "hint"} <= keys


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_write(path) as temp, translate_os_errors(path):
        temp.write_text(json_text(data, indent=1, default=_plain), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction | Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"no JSON form for {value!r}")
