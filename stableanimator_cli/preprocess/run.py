"""``sa preprocess`` from flags to files: which task is requested, the model, the sources, the clips, the report."""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stableanimator_cli import catalogue, clip_folder
from stableanimator_cli.catalogue.damage import check_digest
from stableanimator_cli.catalogue.download import digest
from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.config.schema import resolve, to_toml
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.roles import ROLES
from stableanimator_cli.errors import ConfigError, SaError
from stableanimator_cli.files import check_apart, exclusive_lock, locked_output
from stableanimator_cli.media import has_unreadable_audio
from stableanimator_cli.media.image import unused_content
from stableanimator_cli.media.numbering import warn_of_missing_numbers
from stableanimator_cli.motion.misalignment import misalignment
from stableanimator_cli.motion.track import PERSON_FORMS, largest, parse_selector
from stableanimator_cli.preprocess import convert, lint, reference_layout, workers
from stableanimator_cli.preprocess.clip import Outcome, PreprocessJob, failure_path, numbers_note
from stableanimator_cli.preprocess.clip_entries import remove_leftovers
from stableanimator_cli.preprocess.inputs import Source, count_frames, find_sources, shard_of
from stableanimator_cli.preprocess.outputs import (
    REPORTS,
    check_files,
    check_folder,
    check_folder_name,
    check_reports,
    inputs_of,
    poses_files,
    remove_unfinished,
)
from stableanimator_cli.preprocess.poses import (
    Reference,
    align_to,
    detect_motion,
    read_reference,
    write_poses_and_preview,
)
from stableanimator_cli.preprocess.report import (
    INDEX,
    PAGE,
    PreprocessPlan,
    PreprocessReport,
    write_index,
    write_report,
)
from stableanimator_cli.preprocess.report_html import write_page
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields
from stableanimator_cli.records import ModelFolder

Result = PreprocessReport | PreprocessPlan | lint.LintReport

_OF_VIDEOS = ("every", "gap", "detect_threshold", "layout", "source", "workers", "shard", "ray")
_OF_MOTIONS = ("to", "order", "size")
"""Options without effect on the other kind of input."""


def run(
    *,
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    plan_only: bool = False,
    reporter: Reporter | None = None,
) -> Result:
    """Write clips of videos or a skeleton video of one, convert a motion, or check a dataset.

    ``flags`` by option name, None where not given; see ``config.preprocess.PreprocessConfig``. Raises ``SaError``.
    Failures of single videos of a batch are in the report's ``failed``, and its ``exit_code`` is 7.
    """
    reporter = reporter or NullReporter()
    config = resolve(PreprocessConfig, flags, config_file)
    try:
        parse_selector(config.selected_person)
    except ValueError:
        raise ConfigError("--person", config.selected_person, PERSON_FORMS) from None
    if config.lint:
        return lint.run(config, reporter)
    is_motion = convert.is_motion(config.inputs)
    _warn_of_no_effect(config, reporter, is_motion=is_motion)
    if is_motion:
        _report_unused(config, reporter)
        # Networks only detect the person of a reference image.
        model = None if config.reference is None else _model(config)
        return convert.run(config, reporter, model=model, plan_only=plan_only)
    out = _output(config)
    if out is not None:
        check_apart(out, config.inputs)
    sources = find_sources(config.inputs)
    if config.poses is not None and len(sources) != 1:
        hint = "leave --poses out: -o DIR writes one clip folder per video"
        raise ConfigError("--poses", f"{len(sources)} videos", "one video", hint=hint)
    if config.align != "none" and config.poses is None:
        expected = "--poses OUT.mp4 with it: keypoints in clip folders are never aligned"
        raise ConfigError("--align", config.align, expected)
    if config.poses is not None and config.shard is not None and not shard_of(sources, config.shard):
        part = f"{config.shard[0]}/{config.shard[1]}"
        raise ConfigError("--shard", part, "the part with the video of --poses", hint="leave --shard out")
    check_files(poses_files(config), inputs_of(config, sources))
    if out is not None:
        check_apart(out, inputs_of(config, sources))
    _report_unused(config, reporter)
    model = _model(config)
    job = PreprocessJob(
        config=config, model=model, networks=network_digests(model), out=out or Path(), threads=_threads(config)
    )
    if out is not None and (config.poses is None or config.output is not None):
        check_folder(job, shard_of(sources, config.shard))
    if plan_only:
        return _plan(job, sources, out)
    with ExitStack() as locks:
        if config.poses is not None:
            locks.enter_context(locked_output(config.poses, "sa preprocess"))
            remove_unfinished(poses_files(config))
            if config.output is None:
                return _write_poses_of_video(job, config.poses, sources[0], reporter)
        if out is None:
            raise ConfigError("--output", None, "a folder, as several inputs are named", hint="add -o DIR")
        locks.enter_context(locked_output(out, "sa preprocess", folder=True, shard=config.shard))
        reference = convert.open_reference(config, model)  # before the work that its errors would end
        report = _write_clips(job, sources, reference, reporter)
        if config.poses is None or not report.clips:
            return report
        return _write_poses_of_clip(job, report, sources[0], reference, reporter)


def network_digests(model: ModelFolder) -> dict[str, str]:
    """sha256 of every network that a clip passes through, by role: part of a clip's key. Digests of unchanged files are
    cached.

    Raises ``ModelDamaged`` for a file whose sha256 is not the recorded one.
    """
    from stableanimator_cli.detect.face import model_folder  # imports the libraries of the detectors

    files = {role: model.files[role] for role in ROLES}
    if "face" in model.files:
        files |= {f"face/{file.name}": file for file in sorted(model_folder(model.files["face"]).glob("*.onnx"))}
    digests = {name: digest(path) for name, path in files.items()}
    for name, path in files.items():
        check_digest(path, digests[name], model.digests.get(path))
    return digests


def _warn_of_no_effect(config: PreprocessConfig, reporter: Reporter, *, is_motion: bool) -> None:
    """One warning of the options that are about the other kind of input."""
    names = _OF_VIDEOS if is_motion else _OF_MOTIONS
    given = [name for name in names if getattr(config, name) != config.__dataclass_fields__[name].default]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        kind = "a motion, in which nothing is detected" if is_motion else "which is no motion to convert"
        reporter.warning(f"{flags}: no effect on {config.inputs[0].name}, {kind}")


def _report_unused(config: PreprocessConfig, reporter: Reporter) -> None:
    for message in [] if config.reference is None else unused_content(config.reference):
        reporter.info(message)


def _model(config: PreprocessConfig) -> ModelFolder:
    useful = ("face",)
    return catalogue.open_model(config.model or catalogue.default_model(ROLES, useful), ROLES, useful)


def _output(config: PreprocessConfig) -> Path | None:
    """The folder of clips: ``-o``, else ``NAME.clips`` beside the only input. None without either."""
    if config.output is not None:
        check_folder_name(config.output)
        return config.output
    if len(config.inputs) != 1:
        return None
    only = config.inputs[0]
    # A link leads to where others keep their videos: the clips belong beside the link.
    only = only.absolute() if only.name not in ("", "..") else only.resolve()
    return only.with_name(f"{only.name if only.is_dir() else only.stem}.clips")


def _plan(job: PreprocessJob, sources: Sequence[Source], out: Path | None) -> PreprocessPlan:
    config = job.config
    shard, done, frames, unreadable = shard_of(sources, config.shard), 0, 0, 0
    for source in shard:
        try:
            done += out is not None and job.finished(source) is not None
            frames += count_frames(source.path, config.frames, config.fps)
        except SaError:
            unreadable += 1
    return PreprocessPlan(
        data={
            "model": job.model.name,
            "device": config.device,
            "output": str(config.poses if config.poses is not None and config.output is None else out),
            "videos": len(shard),
            "done": done,
            "unreadable": unreadable,
            "frames": frames,
            "workers": config.ray or config.workers,
            "config": tomllib.loads(to_toml(config)),
        }
    )


def _write_poses_of_video(job: PreprocessJob, video: Path, source: Source, reporter: Reporter) -> PreprocessReport:
    """``--poses`` without ``-o``: the skeleton video and its motion, no clip folder."""
    config, detectors = job.config, job.open_detectors()
    reporter.info(f"model {job.model.name} on {detectors.describe()}")
    onnx.warn_of_fallbacks(reporter)
    reference = None if config.reference is None else read_reference(config.reference, detectors)
    warn_of_missing_numbers(source.path, reporter)
    clip, capture = detect_motion(source, config, detectors, reporter)
    fps = clip.fps if capture.motion.times is None else None
    audio = _audio_source(clip.path, clip.audio, source.path.name, reporter)
    motion, alignment = align_to(reference, capture.motion, config, reporter)
    poses = write_poses_and_preview(config, motion, alignment, reference, reporter, fps=fps, audio_from=audio)
    poses["repairs"] = capture.repairs.to_json()
    return PreprocessReport(output=video, frames=len(motion), poses=poses)


def _audio_source(video: Path, has_audio: bool, name: str, reporter: Reporter) -> Path | None:
    """The video if skeletons can get its sound, with a warning if it has sound that cannot be decoded."""
    if not has_audio and has_unreadable_audio(video):
        reporter.warning(f"{name}: its sound cannot be decoded: the skeleton video will have no sound")
    return video if has_audio else None


def _write_poses_of_clip(
    job: PreprocessJob, report: PreprocessReport, source: Source, reference: Reference | None, reporter: Reporter
) -> PreprocessReport:
    """``--poses`` with ``-o``: draw the motion of the clip that was written; nothing is detected twice."""
    folder = clip_folder.open_folder(report.output / report.data["places"][0])
    audio = _audio_source(folder.source, bool(folder.record.get("audio")), source.path.name, reporter)
    motion, alignment = align_to(reference, folder.motion(), job.config, reporter)
    poses = write_poses_and_preview(job.config, motion, alignment, reference, reporter, audio_from=audio)
    reporter.info(f"{source.path.name}: {folder.repairs.describe()}")
    poses["repairs"] = dict(folder.record["repairs"])
    return replace(report, poses=poses)


def _write_clips(
    job: PreprocessJob, sources: Sequence[Source], reference: Reference | None, reporter: Reporter
) -> PreprocessReport:
    config = job.config
    shard = shard_of(sources, config.shard)
    remove_leftovers(folder for source in shard for folder in job.folders(source))
    started = time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    # A single video has a bar of its frames, several have one of the videos.
    frames_reporter, clips_reporter = reporter, NullReporter()
    if len(shard) > 1:
        frames_reporter, clips_reporter = clips_reporter, frames_reporter
    with clips_reporter.progress(len(shard), "clips", "video") as bar:
        for outcome in _run_workers(job, shard, frames_reporter):
            outcomes[outcome.source.name] = outcome
            if outcome.error is not None and len(sources) > 1:
                reporter.warning(f"left out: {outcome.error['message']}")
            elif not outcome.cached:
                warn_of_missing_numbers(outcome.source.path, reporter)
            bar.update(failed=sum(one.status == "failed" for one in outcomes.values()))
    _report_numbers(outcomes.values(), reporter)
    if len(sources) == 1 and outcomes and outcomes[sources[0].name].status == "failed":
        raise _error_of(outcomes[sources[0].name])
    # One shard at a time reports the clips of all shards so far, and the last one all clips.
    with exclusive_lock(job.out / ".sa.report.lock", wait=True):
        check_reports(job.out, config.layout)
        remove_unfinished(job.out / name for name in REPORTS)
        return _write_reports(job, sources, outcomes, reference, time.perf_counter() - started, reporter)


def _report_numbers(outcomes: Iterable[Outcome], reporter: Reporter) -> None:
    """One note for all clips whose people have other numbers than in the full video."""
    notes = [outcome for outcome in outcomes if outcome.numbered_from]
    if notes:
        which = notes[0].source.path.name if len(notes) == 1 else f"{len(notes)} videos"
        reporter.info(f"{which}: {numbers_note(notes[0].numbered_from)}")


def _run_workers(job: PreprocessJob, sources: Sequence[Source], reporter: Reporter) -> Iterator[Outcome]:
    if job.config.ray is not None:
        return workers.on_ray(job, sources, job.config.ray)
    if job.config.workers > 1 and len(sources) > 1:
        return workers.in_processes(job, sources, job.config.workers)
    return workers.in_this_process(job, sources, reporter)


def _write_reports(
    job: PreprocessJob,
    sources: Sequence[Source],
    outcomes: Mapping[str, Outcome],
    reference: Reference | None,
    seconds: float,
    reporter: Reporter,
) -> PreprocessReport:
    config, out = job.config, job.out
    all_outcomes = [outcomes.get(source.name) or _outcome_of_other_shard(job, source) for source in sources]
    write_index(out, all_outcomes)
    _warn_of_unlisted(job, sources, reporter)
    host = {
        "seconds": round(seconds, 3),
        "clip_seconds": {name: round(one.seconds, 3) for name, one in sorted(outcomes.items())},
        "workers": config.ray or config.workers,
    }
    settings = tomllib.loads(to_toml(config))
    misalignments = _misalignments(reference, all_outcomes, reporter)
    data = write_report(out, all_outcomes, config=settings, host=host, misalignment=misalignments)
    write_page(out / PAGE, out, data)
    done = [outcome for outcome in all_outcomes if outcome.status == "ok"]
    folders = [outcome.folder for outcome in done if outcome.folder is not None]
    if config.layout == "upstream":
        reference_layout.write_lists(out, folders)
    failed, made = data["failed"], sum(not one.cached for one in outcomes.values() if one.status == "ok")
    if skipped := sum(one.cached for one in outcomes.values()):
        reporter.info(f"{skipped} finished clip{'s' if skipped > 1 else ''} of an earlier run skipped")
    return PreprocessReport(
        output=out,
        clips=len(done),
        made=made,
        cached=len(done) - made,
        frames=sum(one.record["frames"] for one in done),
        failed=tuple(failed),
        pending=data["totals"]["pending"],
        report=out / PAGE,
        message=f"{len(failed)} of {len(sources)} videos were left out; {out / PAGE} has the reasons"
        if failed
        else None,
        data={"places": [folder.relative_to(out).as_posix() for folder in folders]},
    )


def _warn_of_unlisted(job: PreprocessJob, sources: Sequence[Source], reporter: Reporter) -> None:
    """One warning of clips in the output whose videos are none of ``sources``: the index lists the others only."""
    ours = {folder for source in sources for folder in job.folders(source)}
    records = (
        file for pattern in ("[!.]*", "rec/*", "vec/*") for file in job.out.glob(f"{pattern}/{clip_folder.RECORD}")
    )
    names = sorted(file.parent.relative_to(job.out).as_posix() for file in records if file.parent not in ours)
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        reporter.warning(
            f"{job.out}: {INDEX} lists the videos of this command only, so `sa train` leaves out other clips there: "
            f"{shown}; to train on them too, name all videos in one command"
        )


def _threads(config: PreprocessConfig) -> int | None:
    """Threads per network: all cores for one process, an equal share for each of several."""
    if config.workers == 1 or config.ray is not None:
        return None
    return max(1, (os.cpu_count() or 1) // config.workers)


def _outcome_of_other_shard(job: PreprocessJob, source: Source) -> Outcome:
    """A finished clip, the reason why a source was left out, or pending."""
    with suppress(SaError):
        folder = job.finished(source)
        if folder is not None:
            return Outcome(source=source, status="ok", folder=folder.path, cached=True, record=folder.record)
    with suppress(SaError):
        path, kind = failure_path(job.out, source), "why a video was left out"
        fields = Fields.of(read_json(path, kind), path, kind)
        for key in ("error", "message", "source"):
            fields.text(key)
        fields.text("hint", default=None)
        if fields.table["source"] == str(source.path.resolve()):
            return Outcome(source=source, status="failed", error=fields.table)
    return Outcome(source=source, status="pending")


def _misalignments(
    reference: Reference | None, outcomes: Sequence[Outcome], reporter: Reporter
) -> dict[str, Any] | None:
    """Distance of each clip's person from ``--reference``, by clip name. None of clips without a visible person."""
    if reference is None:
        return None
    found = {}
    for outcome in outcomes:
        if outcome.folder is not None and outcome.status == "ok":
            motion = clip_folder.open_folder(outcome.folder).motion()
            if not motion.present.any():
                continue
            distance = misalignment(motion, reference.keypoints, reference.size, largest(motion))
            found[outcome.source.name] = distance.to_json()
            if len(outcomes) == 1:
                reporter.info(f"{outcome.source.path.name}: {distance.describe()}")
    return found


def _error_of(outcome: Outcome) -> SaError:
    """The error of the only video, of its own class."""
    reason = outcome.error or {}
    return SaError.from_json(json.dumps({key: reason.get(key) for key in ("error", "message", "hint")}))
