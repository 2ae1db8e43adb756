"""``sa replay``: repeat a run from its record and compare the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.animate.run import validate
from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.clip_folder import digest
from stableanimator_cli.config.animate import AnimateConfig, DeviceConfig, record_beside
from stableanimator_cli.config.parse import check_device
from stableanimator_cli.config.schema import from_mapping
from stableanimator_cli.errors import BadInput, CheckFailed, ConfigError
from stableanimator_cli.files import check_apart, locked_output, require_file, sha256_of
from stableanimator_cli.media import open_clip
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields, shown
from stableanimator_cli.records import ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameDifference:
    """Comparison of two videos: their lengths, the number of differing frames (of those that both have), the first of
    them, and the largest difference in levels of 255."""

    then: int
    now: int
    differing: int
    first: int | None
    largest: int

    def describe(self) -> str:
        if self.first is None and self.then == self.now:
            return f"all {self.now} frames are equal: sound or container differ"
        parts = [] if self.then == self.now else [f"{self.then} frames (now {self.now})"]
        if self.first is not None:
            parts.append(
                f"{self.differing} of {min(self.then, self.now)} frames differ, first frame {self.first}, "
                f"by up to {self.largest} of 255 levels"
            )
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Result of a repeated run: old and new digests, and ``differences``, one line each; empty if it repeats."""

    video: Path
    replay: Path
    sha256: Mapping[str, str]
    frames: FrameDifference | None
    differences: tuple[str, ...]
    machine: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return CheckFailed.exit_code if self.differences else 0

    @property
    def message(self) -> str:
        if not self.differences:
            return f"{self.video}: repeats, sha256 {self.sha256['now']}"
        return f"{self.video}: {'; '.join(self.differences)}"

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "video": str(self.video),
            "replay": str(self.replay),
            "repeats": not self.differences,
            "sha256": dict(self.sha256),
            "frames": None if self.frames is None else asdict(self.frames),
            "differences": list(self.differences),
            "machine": list(self.machine),
        }
        if self.differences:
            data |= {"error": CheckFailed.code, "message": self.message, "exit_code": self.exit_code}
        return data

    def summary(self) -> str:
        return str(self.replay)


def replay(
    video: Path,
    *,
    output: Path | None = None,
    device: str | None = None,
    restart: bool = False,
    reporter: Reporter | None = None,
) -> Replay:
    """Repeat the run recorded in ``OUT.json`` beside ``video``, into ``output`` (default ``OUT.replay.mp4``).

    ``device`` replaces that of the record. Resumes an interrupted replay, unless ``restart``; one of another record is
    refused without it.
    Raises ``CheckFailed`` before rendering if inputs or weights differ from the record, ``BadInput`` if there is no
    record, ``ConfigError`` if this machine lacks its device. A different device or different versions are reported; the
    result shows whether they matter.
    """
    reporter = reporter or NullReporter()
    if video.suffix.lower() == ".json":
        made = video.with_suffix("")
        made = made if made.is_dir() else video.with_suffix(".mp4")
        raise BadInput(video, "a record", "the video beside it", hint=f"name {made}")
    file, record = _read(video)
    config = from_mapping(AnimateConfig, record["config"], f"{file}: config")
    if "people" not in record:  # of a version that had one face for everybody
        config = replace(config, people=replace(config.people, pair=()))
    config = replace(config, device=_device(config.device, device, video, record))
    model = catalogue.open_animator(config.model or record["model"]["path"])
    changed = _changed(config, model, record)
    if changed:
        raise CheckFailed(
            f"{video}: cannot be repeated: {'; '.join(changed)}",
            hint=f"restore the files that {file} names, and run `sa replay` in the folder of that run",
        )
    sha256 = record["output"]["sha256"]
    if video.exists() and sha256_of(video if video.is_dir() else require_file(video, "a video")) != sha256:
        for _ in open_clip(video).frames():  # the frames are compared at the end: a damaged file ends the run now
            pass
    machine = tuple(_environment(config, record))
    if machine:
        reporter.warning(f"the environment differs from the record: {'; '.join(machine)}; output may differ")
    if config.frames_folder is None:
        replayed = output or video.with_name(f"{video.stem}.replay{video.suffix}")
        config = replace(config, output=replayed, preview="off")
    else:
        replayed = output or video.with_name(f"{video.name}.replay")
        config = replace(config, output=replayed / config.output.name, preview="off")
    for written in (replayed, config.record_path):
        check_apart(written, (video, file))
    use_face = validate(config, model)
    with locked_output(config.target, "sa animate"):
        from stableanimator_cli.animate.pipeline import run_pipeline

        before = _file_identity(replayed)
        try:
            run_pipeline(config, model, use_face=use_face, restart=restart, reporter=reporter)
        except CheckFailed as error:
            if _file_identity(replayed) == before:  # not written now
                raise
            reporter.info(error.message)  # the identity gate failed in the first run too: compare the videos
    return _compare(video, replayed, sha256, machine)


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Inode and time of a file, which change when it is written; None if it does not exist."""
    stat = path.stat() if path.exists() else None
    return None if stat is None else (stat.st_ino, stat.st_mtime_ns)


def _read(video: Path) -> tuple[Path, dict[str, Any]]:
    file = record_beside(video)
    if not video.name or (video.is_dir() and not file.exists()):
        raise BadInput(video, "a folder", "a video that sa animate made", hint="name a file inside the folder")
    if not file.exists():
        require_file(video, "a video that sa animate made")
        hint = f"copy {file.name} beside it, or name another video"
        raise BadInput(video, "no record beside it", f"{file.name}, which sa animate writes with a video", hint=hint)
    require_file(file, "the record of a run of sa animate, beside its video")
    what, hint = "the record of a run of sa animate", "name the video that it made"
    fields = Fields.of(read_json(file, what, nan=True, hint=hint), file, what, hint=hint)
    from stableanimator_cli.animate import result  # imports torch

    if fields.table.get("format") != result.FORMAT:
        found = f"a record of format {shown(fields.table.get('format'))}"
        raise BadInput(file, found, f"format {result.FORMAT}", hint="update sa")
    _check_record(fields)
    return file, dict(fields.table)


def _check_record(fields: Fields) -> None:
    """Raise ``BadInput`` if a record lacks a field that a replay reads."""
    fields.fields("config")
    inputs = fields.fields("inputs")
    for one in (*(inputs.fields(name) for name in inputs.table), fields.fields("output")):
        one.text("path")
        one.sha256("sha256")
    model = fields.fields("model")
    model.text("path")
    weights = model.fields("sha256")
    for role in weights.table:
        weights.sha256(role)
    fields.fields("versions", default={})


def _device(recorded: DeviceConfig, requested: str | None, video: Path, record: Mapping[str, Any]) -> DeviceConfig:
    """The device of the replay and its settings. Raises ``ConfigError`` if this machine lacks it."""
    from stableanimator_cli.engine.device import DevicePlan

    if requested is not None:
        check_device(requested)
        if DevicePlan.of(DeviceConfig(device=requested)).device.type != "cuda":  # what only a CUDA card can do
            recorded = replace(recorded, compile="off", cuda_graphs=False, tf32=False)
        return replace(recorded, device=requested)
    try:
        DevicePlan.of(recorded)
    except ConfigError as error:
        raise ConfigError.because(
            video, f"it was rendered on {record.get('device')}, and this machine differs ({error.message})",
            hint="add --device auto to render it on another device; output may differ",
        ) from error  # fmt: skip
    return recorded


def _changed(config: AnimateConfig, model: ModelFolder, record: Mapping[str, Any]) -> list[str]:
    """Inputs and weights that are missing or differ from the record."""
    from stableanimator_cli.animate import fingerprint

    unread = fingerprint.unread_inputs(config)  # older records have them
    inputs = {name: row for name, row in record["inputs"].items() if name not in unread}
    then = {f"{name} {row['path']}": row["sha256"] for name, row in inputs.items()}
    now = {
        f"{name} {inputs[name]['path'] if name in inputs else path}": _digest(path, inputs.get(name, {}).get("sha256"))
        for name, path in config.inputs.items()
        if path.exists() and name not in unread
    }
    weights = record["model"]["sha256"]
    current = weight_digests(model, weights)
    return fingerprint.diff(then, now) + fingerprint.diff(
        {f"weights of {role}": value for role, value in weights.items()},
        {f"weights of {role}": value for role, value in current.items()},
    )


def _digest(path: Path, recorded: str | None) -> str:
    """Digest of an input. Older records of a clip folder counted its caches: such a one holds if these did not
    change."""
    found = digest(path)
    if recorded not in (None, found) and path.is_dir() and sha256_of(path) == recorded:
        return recorded
    return found


def _environment(config: AnimateConfig, record: Mapping[str, Any]) -> list[str]:
    """Differences in device and versions."""
    from stableanimator_cli.animate import fingerprint
    from stableanimator_cli.engine.device import DevicePlan

    then = {name: str(record.get(name)) for name in ("device", "stableanimator-cli")}
    then |= {name: str(version) for name, version in record.get("versions", {}).items() if version is not None}
    now = {"device": DevicePlan.of(config.device).describe()} | fingerprint.versions()
    return fingerprint.diff(then, now)


def _compare(video: Path, replayed: Path, expected: str, machine: tuple[str, ...]) -> Replay:
    digests = {"record": expected, "now": sha256_of(replayed)}
    differences, frames = [], None
    if video.exists():
        digests["video"] = sha256_of(video)
        if digests["video"] != expected:
            differences.append(f"the video is not the recorded one (sha256 {digests['video'][:12]})")
        if digests["video"] != digests["now"]:
            frames = _compare_frames(video, replayed)
    if digests["now"] != expected:
        details = "" if frames is None else f": {frames.describe()}"
        differences.append(f"sha256 {expected[:12]} (now {digests['now'][:12]}){details}")
    return Replay(
        video=video, replay=replayed, sha256=digests, frames=frames, differences=tuple(differences), machine=machine
    )


def _compare_frames(video: Path, replayed: Path) -> FrameDifference:
    then = now = differing = largest = 0
    first: int | None = None
    frames = zip_longest(open_clip(video).frames(), open_clip(replayed).frames())
    for index, (old, new) in enumerate(frames):
        then, now = then + (old is not None), now + (new is not None)
        if old is None or new is None:
            continue
        same_size = old[1].shape == new[1].shape
        difference = int(np.abs(old[1].astype(np.int16) - new[1]).max()) if same_size else 255
        if difference:
            largest, differing, first = max(largest, difference), differing + 1, index if first is None else first
    return FrameDifference(then=then, now=now, differing=differing, first=first, largest=largest)
