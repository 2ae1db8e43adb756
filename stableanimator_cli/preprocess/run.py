"""``sa preprocess`` from flags to files: which of its works is asked for, the model, the list, clips, the report."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from stableanimator_cli import catalogue, clip_folder
from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.config.schema import resolve, to_toml
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.capture import ROLES, Detectors
from stableanimator_cli.detect.face import model_folder
from stableanimator_cli.errors import BadInput, ConfigError, SaError
from stableanimator_cli.files import check_apart, exclusive_lock, locked_output, sha256_of
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.misalignment import misalignment
from stableanimator_cli.motion.track import PERSON_FORMS, largest, parse_person
from stableanimator_cli.preprocess import convert, lint, reference_layout, workers
from stableanimator_cli.preprocess.clip import Outcome, failure_path, finished, key_of, places_of, source_digest
from stableanimator_cli.preprocess.clip_entries import remove_leftovers
from stableanimator_cli.preprocess.inputs import Source, find_sources, share
from stableanimator_cli.preprocess.outputs import check_files, check_folder, check_reports, inputs_of, poses_files
from stableanimator_cli.preprocess.poses import aligned, detect_motion, read_reference, write_poses, write_preview
from stableanimator_cli.preprocess.report import PAGE, PreprocessPlan, PreprocessReport, write_index, write_report
from stableanimator_cli.preprocess.report_html import write_page
from stableanimator_cli.preprocess.workers import Task
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields
from stableanimator_cli.records import ModelFolder

Result = PreprocessReport | PreprocessPlan | lint.LintReport


def run(
    *,
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    plan_only: bool = False,
    reporter: Reporter | None = None,
) -> Result:
    """Videos to clips, one video to a skeleton video, a motion to another form, or a dataset looked over.

    ``flags`` by option name, None where not given; see ``config_preprocess.PreprocessConfig``. Raises ``SaError``; part
    of a batch that failed is no error but ``failed`` of the report, whose ``exit_code`` says 7.
    """
    reporter = reporter or NullReporter()
    config = resolve(PreprocessConfig, flags, config_file)
    try:
        parse_person(config.who)
    except ValueError:
        raise ConfigError("--person", config.who, PERSON_FORMS) from None
    if config.lint:
        return lint.run(config, reporter)
    if convert.is_motion(config.inputs):
        return convert.run(config, reporter, model=_reference_model(config))
    out = _output(config)
    if out is not None:
        check_apart(out, config.inputs)
    sources = find_sources(config.inputs)
    if config.poses is not None and len(sources) != 1:
        hint = "leave --poses out: -o DIR makes a clip folder of each"
        raise ConfigError("--poses", f"{len(sources)} videos", "one video", hint=hint)
    if config.align != "none" and config.poses is None:
        expected = "--poses OUT.mp4 with it: clip folders keep the points where the video has them"
        raise ConfigError("--align", config.align, expected)
    check_files(poses_files(config), inputs_of(config, sources))
    if out is not None:
        check_apart(out, inputs_of(config, sources))
    model = _model(config)
    networks = network_digests(model)
    if out is not None and (config.poses is None or config.output is not None):
        mine = share(sources, config.shard)
        check_folder(config, out, mine, lambda source: _done(source, config, networks, out) is not None)
    if plan_only:
        return _plan(config, model, networks, sources, out)
    with ExitStack() as held:
        if config.poses is not None:
            held.enter_context(locked_output(config.poses, "sa preprocess"))
            if config.output is None:
                return _one_motion(config, model, sources[0], reporter)
        if out is None:
            raise ConfigError("--output", None, "a folder, as several inputs are named", hint="add -o DIR")
        held.enter_context(locked_output(out, "sa preprocess", folder=True, shard=config.shard))
        report = _many(config, model, networks, sources, out, reporter)
        return report if config.poses is None else _with_poses(config, model, sources[0], report, reporter)


def network_digests(model: ModelFolder) -> dict[str, str]:
    """sha256 of every network that a clip goes through, by role: part of a clip's key."""
    files = {role: model.files[role] for role in ROLES}
    if "face" in model.files:
        files |= {f"face/{file.name}": file for file in sorted(model_folder(model.files["face"]).glob("*.onnx"))}
    return {name: sha256_of(path) for name, path in files.items()}


def _model(config: PreprocessConfig) -> ModelFolder:
    return catalogue.open_model(config.model or catalogue.default_model(ROLES), ROLES)


def _reference_model(config: PreprocessConfig) -> ModelFolder | None:
    """A conversion needs networks only to find the person of a reference picture."""
    return None if config.reference is None else _model(config)


def _output(config: PreprocessConfig) -> Path | None:
    """Where clips go: ``-o``, else ``NAME.clips`` beside the one input. None where that does not say."""
    if config.output is not None:
        if config.output.exists() and not config.output.is_dir():
            raise BadInput(config.output, "a file", "a folder for the clips", hint="choose another -o")
        return config.output
    if len(config.inputs) != 1:
        return None
    only = config.inputs[0].resolve()
    return only.with_name(f"{only.name if only.is_dir() else only.stem}.clips")


def _plan(
    config: PreprocessConfig,
    model: ModelFolder,
    networks: Mapping[str, str],
    sources: Sequence[Source],
    out: Path | None,
) -> PreprocessPlan:
    mine, done, frames, unreadable = share(sources, config.shard), 0, 0, 0
    for source in mine:
        try:
            done += out is not None and _done(source, config, networks, out) is not None
            frames += open_clip(source.path).count or 0
        except SaError:
            unreadable += 1
    return PreprocessPlan(
        data={
            "model": model.name,
            "device": config.device,
            "output": str(config.poses if config.poses is not None and config.output is None else out),
            "videos": len(mine),
            "done": done,
            "unreadable": unreadable,
            "frames": frames,
            "workers": config.ray or config.workers,
            "config": tomllib.loads(to_toml(config)),
        }
    )


def _one_motion(config: PreprocessConfig, model: ModelFolder, source: Source, reporter: Reporter) -> PreprocessReport:
    """``--poses`` without ``-o``: the skeleton video and its motion, no clip folder."""
    if config.poses is None:
        raise ValueError("no skeleton video was asked for")
    detectors = Detectors.open(model, config.device, threshold=config.detect_threshold)
    reporter.info(f"model {model.name} on {detectors.describe()}")
    onnx.warn_of_fallbacks(reporter)
    reference = None if config.reference is None else read_reference(config.reference, detectors)
    clip, seen = detect_motion(source, config, detectors, reporter)
    alignment = aligned(seen.motion, reference, config, reporter)
    motion = seen.motion if alignment is None else alignment.motion
    poses = write_poses(
        config.poses,
        motion,
        fps=config.fps or (clip.fps if motion.times is None else None),
        audio_from=clip.path if clip.audio else None,
        alignment=alignment,
        reporter=reporter,
    )
    told = poses.to_json()
    if config.preview:
        told["preview"] = str(write_preview(config.poses, motion, reference))
    told["repairs"] = seen.repairs.to_json()
    return PreprocessReport(output=config.poses, frames=len(motion), poses=told)


def _with_poses(
    config: PreprocessConfig, model: ModelFolder, source: Source, report: PreprocessReport, reporter: Reporter
) -> PreprocessReport:
    """``--poses`` with ``-o``: the clip was made; its motion is drawn too, nothing is detected twice."""
    if config.poses is None:
        raise ValueError("no skeleton video was asked for")
    folder = clip_folder.open_folder(report.output / report.data["places"][0])
    motion, reference = folder.motion(), None
    if config.reference is not None:
        reference = read_reference(config.reference, Detectors.open(model, config.device, faces=False))
    alignment = aligned(motion, reference, config, reporter)
    motion = motion if alignment is None else alignment.motion
    audio = folder.source if folder.record.get("audio") else None
    poses = write_poses(config.poses, motion, fps=config.fps, audio_from=audio, alignment=alignment, reporter=reporter)
    told = poses.to_json()
    if config.preview:
        told["preview"] = str(write_preview(config.poses, motion, reference))
    return PreprocessReport(
        output=report.output, clips=report.clips, made=report.made, kept=report.kept, frames=report.frames,
        report=report.report, poses=told, data=report.data,
    )  # fmt: skip


def _many(
    config: PreprocessConfig,
    model: ModelFolder,
    networks: Mapping[str, str],
    sources: Sequence[Source],
    out: Path,
    reporter: Reporter,
) -> PreprocessReport:
    mine = share(sources, config.shard)
    task = Task(config=config, model=model, networks=networks, out=out, threads=_threads(config))
    remove_leftovers(out / place for source in mine for place in places_of(source, config))
    started = time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    if config.ray is not None:
        made = workers.on_ray(task, mine, config.ray)
    elif config.workers > 1 and len(mine) > 1:
        made = workers.in_processes(task, mine, config.workers)
    else:
        made = workers.in_this_process(task, mine, reporter if len(mine) == 1 else NullReporter())
    # One video has a bar of its frames already.
    with (reporter if len(mine) > 1 else NullReporter()).progress(len(mine), "clips", "video") as bar:
        for outcome in made:
            outcomes[outcome.source.name] = outcome
            if outcome.error is not None and len(sources) > 1:
                reporter.warning(f"left out: {outcome.error['message']}")
            bar.update(failed=sum(one.status == "failed" for one in outcomes.values()))
    if len(sources) == 1 and outcomes and outcomes[sources[0].name].status == "failed":
        _raise_again(outcomes[sources[0].name])
    with _reporting(out, config):
        return _reported(config, model, networks, sources, out, outcomes, time.perf_counter() - started, reporter)


@contextmanager
def _reporting(out: Path, config: PreprocessConfig) -> Iterator[None]:
    """One shard at a time reports what all of them have made so far, and the last one all of it."""
    with exclusive_lock(out / ".sa.report.lock", wait=True):
        check_reports(out, config.layout)
        yield


def _reported(
    config: PreprocessConfig,
    model: ModelFolder,
    networks: Mapping[str, str],
    sources: Sequence[Source],
    out: Path,
    outcomes: Mapping[str, Outcome],
    seconds: float,
    reporter: Reporter,
) -> PreprocessReport:
    whole = [outcomes.get(source.name) or _elsewhere(source, config, networks, out) for source in sources]
    failed = [outcome for outcome in whole if outcome.status == "failed"]
    write_index(out, whole)
    host = {
        "seconds": round(seconds, 3),
        "clip_seconds": {name: round(one.seconds, 3) for name, one in sorted(outcomes.items())},
        "workers": config.ray or config.workers,
    }
    settings = tomllib.loads(to_toml(config))
    near = _misalignments(config, model, whole, reporter)
    data = write_report(out, whole, config=settings, host=host, misalignment=near)
    write_page(out / PAGE, out, data)
    if config.layout == "upstream":
        reference_layout.write_lists(out, [one.folder for one in whole if one.folder is not None])
    done = [outcome for outcome in whole if outcome.status == "ok"]
    message = None
    if failed:
        message = f"{len(failed)} of {len(sources)} videos were left out; {out / PAGE} says why"
    return PreprocessReport(
        output=out,
        clips=len(done),
        made=sum(not one.kept for one in outcomes.values() if one.status == "ok"),
        kept=len(done) - sum(not one.kept for one in outcomes.values() if one.status == "ok"),
        frames=sum(one.record["frames"] for one in done),
        failed=tuple(data["failed"]),
        pending=data["totals"]["pending"],
        report=out / PAGE,
        message=message,
        data={"places": [one.folder.relative_to(out).as_posix() for one in done if one.folder is not None]},
    )


def _threads(config: PreprocessConfig) -> int | None:
    """Threads of a network: all cores for one process, an equal part for each of several."""
    if config.workers == 1 or config.ray is not None:
        return None
    import os

    return max(1, (os.cpu_count() or 1) // config.workers)


def _done(
    source: Source, config: PreprocessConfig, networks: Mapping[str, str], out: Path
) -> clip_folder.ClipFolder | None:
    digest, _ = source_digest(source.path)
    place = "" if config.layout == "clips" else str(source.number)
    return finished(out, source, config, key_of(digest, config, networks, place))


def _elsewhere(source: Source, config: PreprocessConfig, networks: Mapping[str, str], out: Path) -> Outcome:
    """What another shard made of a source: a finished clip, a reason, or nothing yet."""
    with suppress(SaError):
        folder = _done(source, config, networks, out)
        if folder is not None:
            return Outcome(source=source, status="ok", folder=folder.path, kept=True, record=folder.record)
    with suppress(SaError):
        place = failure_path(out, source)
        told = Fields.of(read_json(place, "why a video was left out"), place, "why a video was left out")
        for key in ("error", "message", "source"):
            told.text(key)
        told.text("hint", default=None)
        if told.table["source"] == str(source.path.resolve()):
            return Outcome(source=source, status="failed", error=told.table)
    return Outcome(source=source, status="pending")


def _misalignments(
    config: PreprocessConfig, model: ModelFolder, outcomes: Sequence[Outcome], reporter: Reporter
) -> dict[str, Any] | None:
    """How far each clip's person is from ``--reference``, by clip name."""
    if config.reference is None:
        return None
    reference = read_reference(config.reference, Detectors.open(model, config.device, faces=False))
    found = {}
    for outcome in outcomes:
        if outcome.folder is not None and outcome.status == "ok":
            motion = clip_folder.open_folder(outcome.folder).motion()
            number = misalignment(motion, reference.keypoints, reference.size, largest(motion))
            found[outcome.source.name] = number.to_json()
            if len(outcomes) == 1:
                reporter.info(f"{outcome.source.path.name}: {number.describe()}")
    return found


def _raise_again(outcome: Outcome) -> None:
    """The reason of the only video, with its own exit code."""
    error = outcome.error or {}
    kinds = {kind.code: kind for kind in _family(SaError)}
    raised = SaError(str(error.get("message")), hint=error.get("hint"))
    raised.code = str(error.get("error"))
    raised.exit_code = kinds[raised.code].exit_code if raised.code in kinds else SaError.exit_code
    raise raised


def _family(kind: type[SaError]) -> list[type[SaError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _family(child))]
