"""``sa replay``: a run again from its record, and whether it gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.animate import fingerprint, result
from stableanimator_cli.animate.pipeline import run_pipeline
from stableanimator_cli.animate.validate import validate
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import from_mapping
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import BadInput, CheckFailed
from stableanimator_cli.files import check_apart, require_file, sha256_of
from stableanimator_cli.media import open_clip
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields, shown
from stableanimator_cli.records import NETWORKS, ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameDifference:
    """Two videos frame by frame: their lengths, how many of the frames that both have differ, the first of them, and by
    how many of 255 levels at most."""

    then: int
    now: int
    differing: int
    first: int | None
    largest: int

    def describe(self) -> str:
        if self.first is None and self.then == self.now:
            return f"all {self.now} frames are equal: sound or container differ"
        told = [] if self.then == self.now else [f"{self.then} frames (now {self.now})"]
        if self.first is not None:
            told.append(
                f"{self.differing} of {min(self.then, self.now)} frames differ, first frame {self.first}, "
                f"by up to {self.largest} of 255 levels"
            )
        return ", ".join(told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a repeated run gave: digests of then and now, and ``differences``, one line each; none: it repeats."""

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
        told: dict[str, Any] = {
            "video": str(self.video),
            "replay": str(self.replay),
            "repeats": not self.differences,
            "sha256": dict(self.sha256),
            "frames": None if self.frames is None else asdict(self.frames),
            "differences": list(self.differences),
            "machine": list(self.machine),
        }
        if self.differences:
            told |= {"error": CheckFailed.code, "message": self.message, "exit_code": self.exit_code}
        return told

    def summary(self) -> str:
        return str(self.replay)


def replay(video: Path, *, output: Path | None = None, reporter: Reporter | None = None) -> Replay:
    """Repeat the run that ``OUT.json`` beside ``video`` tells of, into ``output`` (default ``OUT.replay.mp4``).

    ``CheckFailed`` where inputs or weights are not those of then: nothing is rendered. Another device or other versions
    are said, and the result tells whether they matter. ``BadInput`` for what is no record.
    """
    reporter = reporter or NullReporter()
    if video.suffix.lower() == ".json":
        raise BadInput(video, "a record", "the video beside it", hint=f"name {video.with_suffix('.mp4')}")
    file, told = _read(video)
    config = from_mapping(AnimateConfig, told["config"], f"{file}: config")
    model = catalogue.open_model(config.model or told["model"]["path"], NETWORKS)
    changed = _changed(config, model, told)
    if changed:
        raise CheckFailed(
            f"{video}: cannot be repeated: {'; '.join(changed)}",
            hint=f"`sa replay` wants the files that {file} names, as they were, in the folder where the run was",
        )
    if video.exists() and sha256_of(require_file(video, "a video")) != told["output"]["sha256"]:
        for _ in open_clip(video).frames():  # the frames are compared at the end: a damaged file ends the run now
            pass
    machine = tuple(_machine(config, told))
    if machine:
        reporter.warning(f"not the machine of then: {'; '.join(machine)}; other bytes would be no wonder")
    again = output or video.with_name(f"{video.stem}.replay{video.suffix}")
    config = replace(config, output=again, preview=False)
    for written in (again, config.record_path):
        check_apart(written, (video, file))
    validate(config, model)
    before = _identity(again)
    try:
        run_pipeline(config, model, reporter=reporter)
    except CheckFailed as error:
        if _identity(again) == before:  # not written now
            raise
        reporter.info(error.message)  # the identity gate failed then as well: the video is what is compared
    return _compared(video, again, told["output"]["sha256"], machine)


def _identity(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written: None while there is none."""
    found = path.stat() if path.exists() else None
    return None if found is None else (found.st_ino, found.st_mtime_ns)


def _read(video: Path) -> tuple[Path, dict[str, Any]]:
    if not video.name or video.is_dir():
        raise BadInput(video, "a folder", "a video that sa animate made", hint="name a file inside the folder")
    file = video.with_suffix(".json")
    if not file.exists():
        require_file(video, "a video that sa animate made")
        hint = f"the two go together: copy {file.name} to it, or name another video"
        raise BadInput(video, "no record beside it", f"{file.name}, which sa animate writes with a video", hint=hint)
    require_file(file, "the record of a run of sa animate, beside its video")
    what, hint = "the record of a run of sa animate", "name the video that it made"
    fields = Fields.of(read_json(file, what, nan=True, hint=hint), file, what, hint=hint)
    if fields.table.get("format") != result.FORMAT:
        found = f"a record of format {shown(fields.table.get('format'))}"
        raise BadInput(file, found, f"format {result.FORMAT}", hint="update sa")
    _check_record(fields)
    return file, dict(fields.table)


def _check_record(fields: Fields) -> None:
    """``BadInput`` where a record, edited perhaps, lacks what a replay reads."""
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


def _changed(config: AnimateConfig, model: ModelFolder, told: Mapping[str, Any]) -> list[str]:
    """Inputs and weights that are missing or other than those of the record."""
    then = {f"{name} {row['path']}": row["sha256"] for name, row in told["inputs"].items()}
    now = {
        f"{name} {told['inputs'][name]['path'] if name in told['inputs'] else path}": sha256_of(path)
        for name, path in fingerprint.inputs_of(config).items()
        if path.exists()
    }
    weights = told["model"]["sha256"]
    here = fingerprint.weight_digests(model, weights)
    return fingerprint.diff(then, now) + fingerprint.diff(
        {f"weights of {role}": value for role, value in weights.items()},
        {f"weights of {role}": value for role, value in here.items()},
    )


def _machine(config: AnimateConfig, told: Mapping[str, Any]) -> list[str]:
    then = {"device": str(told.get("device")), "stableanimator-cli": str(told.get("stableanimator-cli"))}
    then |= {name: str(version) for name, version in told.get("versions", {}).items() if version is not None}
    now = {"device": DevicePlan.of(config.device).describe()} | fingerprint.versions()
    return fingerprint.diff(then, now)


def _compared(video: Path, again: Path, expected: str, machine: tuple[str, ...]) -> Replay:
    digests = {"record": expected, "now": sha256_of(again)}
    differences, frames = [], None
    if video.exists():
        digests["video"] = sha256_of(video)
        if digests["video"] != expected:
            differences.append(f"the video is not the one that its record tells of (sha256 {digests['video'][:12]})")
        if digests["video"] != digests["now"]:
            frames = _frames(video, again)
    if digests["now"] != expected:
        told = "" if frames is None else f": {frames.describe()}"
        differences.append(f"sha256 {expected[:12]} (now {digests['now'][:12]}){told}")
    return Replay(
        video=video, replay=again, sha256=digests, frames=frames, differences=tuple(differences), machine=machine
    )


def _frames(video: Path, again: Path) -> FrameDifference:
    then = now = differing = largest = 0
    first: int | None = None
    for index, (one, other) in enumerate(zip_longest(open_clip(video).frames(), open_clip(again).frames())):
        then, now = then + (one is not None), now + (other is not None)
        if one is None or other is None:
            continue
        if one[1].shape != other[1].shape:
            largest, differing, first = 255, differing + 1, index if first is None else first
            continue
        most = int(np.abs(one[1].astype(np.int16) - other[1]).max())
        if most:
            largest, differing, first = max(largest, most), differing + 1, index if first is None else first
    return FrameDifference(then=then, now=now, differing=differing, first=first, largest=largest)
