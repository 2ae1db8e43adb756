"""Videos of other systems (``--baselines DIR``): scored like ours, compared with ours, shown beside ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stableanimator_cli.evaluate import paired
from stableanimator_cli.evaluate.checks import FailedVideo
from stableanimator_cli.evaluate.evaluator import Evaluator, SystemScores
from stableanimator_cli.evaluate.face_paste import paste_faces
from stableanimator_cli.evaluate.frame_matching import MatchedFrames
from stableanimator_cli.evaluate.pairs import FACE_PASTE, Pair
from stableanimator_cli.evaluate.plots import CURVES
from stableanimator_cli.evaluate.run_record import read_record
from stableanimator_cli.evaluate.scores import Row, Section, Table, number, shown_metrics, video_json
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.evaluate.side_by_side import write_beside
from stableanimator_cli.evaluate.tables import TableRow, memory
from stableanimator_cli.metrics.result import ARROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Scores of other systems, and ours minus theirs, as ``Evaluator.write`` takes them. ``memory`` is the peak of each
    system in bytes and the frames of that run."""

    about: Mapping[str, Any]
    tables: tuple[Table, ...]
    sections: tuple[Section, ...]
    lines: tuple[list[str], ...]
    failed: tuple[FailedVideo, ...]
    memory: Mapping[str, tuple[int, int] | None]

    @property
    def videos(self) -> dict[str, tuple[VideoScore, ...]]:
        """Scored videos by system."""
        return {section.system: section.videos for section in self.sections}

    def table_rows(self) -> list[TableRow]:
        """The systems as rows of Table 1."""
        return [
            TableRow(
                name=section.system, rows=section.rows, memory=self.memory[section.system],
                videos=tuple(video.name for video in section.videos),
            )
            for section in self.sections
        ]  # fmt: skip


def compare(
    evaluator: Evaluator, ours: SystemScores, systems: Mapping[str, Sequence[Pair]], output: Path
) -> Compared | None:
    """Score the systems and compare them with ours. Writes ``videos/SYSTEM/NAME.mp4``, ours on the left. None without
    systems. With ``--face-paste`` one of them is ours with pasted faces."""
    if evaluator.config.face_paste:
        assert evaluator.detector.reader is not None  # ``check_recogniser``
        pairs, folder = [video.pair for video in ours.videos], output / "animated" / FACE_PASTE
        pasted = paste_faces(pairs, folder, evaluator.detector.reader, evaluator.reporter)
        systems = {**systems, _free_name(FACE_PASTE, systems): pasted}
    if not systems:
        return None
    scored = {system: _without_curves(evaluator.score(pairs)) for system, pairs in systems.items()}
    own, rows = {video.name: video for video in ours.videos}, {name: one.rows for name, one in scored.items()}
    peaks = {system: recorded_memory(one.videos) for system, one in scored.items()}
    others = {system: paired.values_of(one.videos) for system, one in scored.items()}
    compared = paired.differences(paired.values_of(ours.videos), others, seed=evaluator.config.seed)
    with evaluator.reporter.progress(sum(len(one.videos) for one in scored.values()), "side by side", "video") as bar:
        for system, one in scored.items():
            for video in one.videos:
                if video.name in own:
                    _warn_of_lengths(evaluator, own[video.name], system, video)
                    write_beside(_side_by_side(own[video.name], video), output, system)
                bar.update()
    return Compared(
        about={  # the first two keys are those of earlier versions
            "rivals": {system: {key: row.to_json() for key, row in table.items()} for system, table in rows.items()},
            "rival_videos": {system: [video_json(video) for video in one.videos] for system, one in scored.items()},
            "rival_memory": {
                system: None if peak is None else {"bytes": peak[0], "frames": peak[1]}
                for system, peak in peaks.items()
            },
            "paired_differences": paired.to_json(compared),
        },
        tables=tuple(paired.tables(compared, shown_metrics(evaluator.rules, ours.rows))),
        sections=tuple(
            Section(system=system, data="", rows=one.rows, videos=one.videos) for system, one in scored.items()
        ),
        lines=tuple(paired.lines(compared)),
        failed=tuple(
            replace(video, name=f"{system}/{video.name}") for system, one in scored.items() for video in one.failed
        ),
        memory=peaks,
    )


def own_name(name: str, others: Collection[str]) -> str:
    """Name of our system beside others: ``name``, or another one if a folder has that name."""
    if name in others and "ours" not in others:
        return "ours"
    return _free_name(name, others)


def _free_name(name: str, others: Collection[str]) -> str:
    while name in others:
        name += " (ours)"
    return name


def systems_table(evaluator: Evaluator, ours: SystemScores, compared: Compared) -> Table:
    """All systems, a column each: values with their intervals, and the memory of recorded runs."""
    names = shown_metrics(evaluator.rules, ours.rows)
    own = own_name("ours", compared.memory)
    rows = {own: ours.rows, **{section.system: section.rows for section in compared.sections}}
    lines = []
    for name in names:
        spec = ours.rows[name].spec
        cells = [_value(table.get(name)) for table in rows.values()]
        lines.append([name, f"{spec.title} {ARROWS[spec.better]}".strip(), *cells])
    peaks = {own: recorded_memory(ours.videos), **compared.memory}
    if any(peaks.values()):
        lines.append(["", "memory of the recorded run", *map(memory, peaks.values())])
    return "systems", ["metric", "", *rows], lines


def recorded_memory(videos: Sequence[VideoScore]) -> tuple[int, int] | None:
    """The highest peak of the videos' run records, in bytes, and the frames of that run; None without a record."""
    peaks = []
    for video in videos:
        record = read_record(video.pair.predicted)
        if record is None:
            continue
        peak, frames = record["peak_bytes"], record["output"].get("frames")
        value = peak.get("device", peak.get("host"))
        if type(value) is int and type(frames) is int:
            peaks.append((value, frames))
    return max(peaks, default=None)


def _value(row: Row | None) -> str:
    if row is None:
        return "–"
    if row.interval is None:
        return number(row.shown)
    return f"{number(row.shown)} [{number(row.interval[0])}, {number(row.interval[1])}]"


def _without_curves(system: SystemScores) -> SystemScores:
    """Scores with the curves that figures show alone: those of many videos by many systems fill the memory."""
    return replace(system, videos=tuple(
        replace(video, curves={name: video.curves[name] for name in CURVES if name in video.curves})
        for video in system.videos
    ))  # fmt: skip


def _warn_of_lengths(evaluator: Evaluator, ours: VideoScore, system: str, theirs: VideoScore) -> None:
    if ours.frames != theirs.frames:
        evaluator.reporter.warning(
            f"{ours.name}: ours has {ours.frames} frames, {system} has {theirs.frames}; each is scored in full"
        )


def _side_by_side(ours: VideoScore, theirs: VideoScore) -> VideoScore:
    """Ours with the other system's video in the place of the ground truth."""
    frames, matched = min(ours.frames, theirs.frames), None
    if ours.matched is not None or theirs.matched is not None:
        sides = [range(frames) if side.matched is None else side.matched.predicted for side in (ours, theirs)]
        predicted, target = (tuple(side[:frames]) for side in sides)
        matched = MatchedFrames(predicted=predicted, target=target, numbers=tuple(range(frames)))
    pair = replace(ours.pair, target=theirs.pair.predicted)
    return replace(ours, pair=pair, target=theirs.predicted, matched=matched, frames=frames, curves={})
