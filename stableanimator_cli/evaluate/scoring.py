"""One video to its numbers: streamed once for pixels, looked at once for faces and points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate import run_record
from stableanimator_cli.evaluate.detections import VideoDetections, VideoDetector
from stableanimator_cli.evaluate.driving_points import Unmatched, driven_points, indices_shown, read_poses
from stableanimator_cli.evaluate.frame_matching import MatchedFrames, frames_at, match_frames
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.protocols import EvalProtocol as Rules
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import open_clip, read_picture
from stableanimator_cli.metrics import identity, motion
from stableanimator_cli.metrics.accumulators import RunningMean, paired
from stableanimator_cli.metrics.flicker import Changes, flicker, flicker_excess
from stableanimator_cli.metrics.pixel import FRAME_METRICS
from stableanimator_cli.metrics.seams import seam_score
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip

NO_POINTS = "key points have nothing to be compared with"
SMALLEST = 8  # pixels a side: SSIM looks at 7


class Networks(Protocol):
    """What measures pictures and clips by networks, one video at a time."""

    def begin(self, name: str, truth: str | None) -> None: ...

    def add(self, made: np.ndarray, truth: np.ndarray, number: int) -> None: ...

    def end(self) -> Mapping[str, RunningMean]: ...

    def forget(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoScore:
    """One video's numbers. ``values`` by metric, NaN where there is none; ``counts`` what each is a mean of (frames,
    points, borders), its weight in the pooled mean; ``curves`` by frame, None where there is nothing. ``notes`` say in
    words what could not be measured of this video. ``matched`` are the frames that were compared, None for all of both
    videos; ``dropped`` says which were left out."""

    name: str
    predicted: Mapping[str, Any]
    truth: Mapping[str, Any] | None
    frames: int
    values: Mapping[str, float]
    counts: Mapping[str, int]
    curves: Mapping[str, Sequence[float | None]]
    borders: tuple[int, ...]
    notes: tuple[str, ...]
    pair: Pair
    matched: MatchedFrames | None = None
    dropped: str = ""
    identical_frames: int = 0


@dataclass(slots=True)
class _Made:
    """Numbers as they come. ``times`` are those of the prediction's frames that were measured."""

    values: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    times: list[Fraction | None] = field(default_factory=list)
    identical: int = 0

    def put(self, name: str, value: float, count: int) -> None:
        self.values[name], self.counts[name] = float(value), int(count)

    def curve(self, name: str, values: Sequence[float] | np.ndarray) -> None:
        self.curves[name] = [round(float(v), 5) if np.isfinite(v) else None for v in values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores pairs under one protocol. ``given`` are borders from the command line, used where no record tells any."""

    rules: Rules
    observer: VideoDetector
    networks: Networks
    truncate: bool
    given: tuple[int, ...] | None
    reporter: Reporter

    def score(self, pair: Pair) -> VideoScore:
        """Raises ``BadInput`` for videos that cannot be compared, naming file and frame. Nothing of such a video stays
        in the distances of sets."""
        try:
            return self._score(pair)
        except BaseException:
            self.networks.forget(pair.name)
            raise

    def _score(self, pair: Pair) -> VideoScore:
        made, clip = _Made(), open_clip(pair.predicted)
        truth = None if pair.truth is None else open_clip(pair.truth)
        matched = check_clips(clip, truth, self.rules, truncate=self.truncate)
        digests = {path: sha256_of(path) for path in (pair.predicted, pair.truth) if path is not None}
        # a truth that is cut short has other clips than the whole one, which is what is remembered
        whole = None if pair.truth is None or self.truncate else digests[pair.truth]
        record = run_record.read_record(pair.predicted, made.notes.append)
        for note in made.notes:
            self.reporter.warning(f"{pair.name}: {note}")
        mine, theirs = self._pixels(pair, clip, truth, matched, made, whole)
        frames = len(made.times)
        if frames == 0:
            raise BadInput.because(pair.predicted, "it has no frames", hint="write the video again")
        places = _at_positions(self._borders(pair, record, made), matched)
        _over_time(mine, theirs if truth is not None else None, places, made)
        every = self.observer.observe(clip, self.reporter, sha256=digests[pair.predicted])
        seen = every.at(range(frames) if matched is None else matched.predicted)
        true, dropped = None, "" if matched is None else matched.describe_dropped()
        if truth is not None and pair.truth is not None:
            other = self.observer.observe(truth, self.reporter, sha256=digests[pair.truth])
            true = other.at(range(frames) if matched is None else matched.target)
            if matched is None:
                dropped = _past_the_end(len(every), len(other))
        if dropped:
            made.notes.append(f"frames without a counterpart were left out (--truncate): {dropped}")
            self.reporter.warning(f"{pair.name}: frames without a counterpart are left out: {dropped}")
        self._identity(pair, seen, true, truth, made)
        self._motion(pair, record, clip, seen, true, matched, len(every), made)
        return VideoScore(
            name=pair.name,
            predicted=_told(clip, pair.predicted, digests[pair.predicted]),
            truth=None if truth is None or pair.truth is None else _told(truth, pair.truth, digests[pair.truth]),
            frames=frames,
            values=made.values,
            counts=made.counts,
            curves=made.curves,
            borders=places,
            notes=tuple(made.notes),
            pair=pair,
            matched=matched,
            dropped=dropped,
            identical_frames=made.identical,
        )

    def _pixels(
        self,
        pair: Pair,
        clip: Clip,
        truth: Clip | None,
        matched: MatchedFrames | None,
        made: _Made,
        whole: str | None,
    ) -> tuple[Changes, Changes]:
        """Everything that is read off the frames themselves, in one pass over both videos."""
        mine, theirs = Changes(), Changes()
        if truth is None:
            for time, picture in clip.frames():
                mine.add(self.rules.prepare(picture))
                made.times.append(time)
            return mine, theirs
        means: dict[str, RunningMean] = {name: RunningMean() for name in FRAME_METRICS}
        curves: dict[str, list[float]] = {"psnr": [], "ssim": []}
        self.networks.begin(pair.name, whole)
        timed = self._prepared(clip, None if matched is None else matched.predicted, made.times)
        streams = timed, self._prepared(truth, None if matched is None else matched.target, [])
        before = -1
        with self.reporter.progress(clip.count, f"compare {pair.name}", "frame") as bar:
            for index, a, b in paired(*streams, name=str(pair.predicted), truncate=self.truncate):
                values = {name: metric(a, b) for name, metric in FRAME_METRICS.items()}
                for name, curve in curves.items():
                    curve.append(values[name])
                if math.isinf(values["psnr"]):
                    made.identical += 1
                for name, value in values.items():
                    if math.isfinite(value):
                        means[name].add(value)
                number = index if matched is None else matched.numbers[index]
                self.networks.add(a, b, number)
                mine.add(a, gap=number != before + 1)
                theirs.add(b, gap=number != before + 1)
                before = number
                bar.update()
        del made.times[len(curves["psnr"]) :]  # a frame of the longer video may have been read
        if made.times:
            means |= self.networks.end()
        if made.identical == len(made.times):
            means["psnr"].add(math.inf)
        elif made.identical:
            made.notes.append(
                f"{made.identical} of {len(made.times)} frames equal the ground truth's: psnr is the mean of the others"
            )
        for name, running in means.items():
            made.put(name, running.mean, running.count)
        for name, curve in curves.items():
            made.curve(name, curve)
        return mine, theirs

    def _prepared(
        self, clip: Clip, positions: Sequence[int] | None, times: list[Fraction | None]
    ) -> Iterator[np.ndarray]:
        """Frames as pixel metrics see them; their times are added to ``times``."""
        for time, frame in frames_at(clip, positions):
            times.append(time)
            yield self.rules.prepare(frame)

    def _borders(self, pair: Pair, record: Mapping[str, Any] | None, made: _Made) -> tuple[int, ...]:
        if pair.borders is not None:
            return pair.borders
        told = None if record is None else run_record.of_record(record)
        if told is None and self.given is None:
            made.notes.append("no run record beside it and no --borders: seams were not looked for")
        return told if told is not None else self.given or ()

    def _identity(
        self, pair: Pair, seen: VideoDetections, true: VideoDetections | None, truth: Clip | None, made: _Made
    ) -> None:
        if self.observer.reader is None:
            return
        picture = None
        if pair.reference is not None:
            picture = read_picture(pair.reference)
        elif truth is not None:
            picture = next(iter(truth.frames()))[1]
        own, judge = (None, None) if picture is None else self.observer.vectors(picture)
        if own is not None and not np.isfinite(own).all():
            made.notes.append("its reference picture shows no face: left out of CSIM against the reference")
        judged = "judge" not in self.observer.lacks
        for kind, rows, against, others in (
            ("", seen.own, own, None if true is None else true.own),
            ("_judge", seen.judge, judge, None if true is None else true.judge),
        ):
            if kind and not judged:
                continue
            asked = np.ones(len(rows), bool) if others is None else np.asarray(np.isfinite(others).all(axis=1))
            if against is not None:
                curve = identity.cosines(rows, against)
                there = np.asarray(asked & bool(np.isfinite(against).all()))
                _put_csim(made, f"csim_ref{kind}", identity.summary(curve, there))
                made.curve(f"csim_ref{kind}", curve)
                if not kind:  # of the frames that CSIM is a mean of
                    known = np.where(there, curve, np.nan)
                    made.put("identity_drift", identity.drift(known), 1)
                    made.put("identity_worst", identity.worst(known)[0], 1)
            if others is not None:
                curve = identity.cosines(rows, others)
                _put_csim(made, f"csim_gt{kind}", identity.summary(curve, asked))
                made.curve(f"csim_gt{kind}", curve)
            if not kind:
                found = np.isfinite(rows).all(axis=1) & asked
                made.put("face_rate", found.sum() / asked.sum() if asked.any() else np.nan, int(asked.sum()))

    def _motion(
        self,
        pair: Pair,
        record: Mapping[str, Any] | None,
        clip: Clip,
        seen: VideoDetections,
        true: VideoDetections | None,
        matched: MatchedFrames | None,
        count: int,
        made: _Made,
    ) -> None:
        if self.observer.detectors is None:
            return
        if pair.poses is not None:
            driving = read_poses(pair.poses)
            whole = [time for time, _ in clip.frames()] if len(made.times) < count else made.times
            try:
                shown = indices_shown(pair.poses, driving, record, whole)
            except Unmatched as error:
                made.notes.append(f"{NO_POINTS}: {error}")
                return
            positions = range(len(seen)) if matched is None else matched.predicted
            resize = run_record.resize_of(record)
            points = driven_points(driving, clip.size, [shown[index] for index in positions], resize=resize)
        elif true is not None:
            points = true.points.copy()
            points[..., :2] *= np.array(clip.size) / np.array(true.size)
        else:
            made.notes.append(f"{NO_POINTS}: no --poses and no ground truth")
            return
        shared = min(len(points), len(seen))
        result = motion.keypoint_error(seen.points[:shared], points[:shared])
        made.put("keypoint_error", result.error, result.points)
        made.put("keypoint_pck", result.pck, result.driven)
        made.put("keypoint_found", result.found, result.driven)
        made.curve("keypoint_error", result.curve)


def _over_time(mine: Changes, theirs: Changes | None, places: tuple[int, ...], made: _Made) -> None:
    made.put("flicker", flicker(mine.bends), len(mine.bends))
    made.curve("change", mine.steps)
    if theirs is not None:
        excess = flicker_excess(mine.bends, theirs.bends)
        made.put("flicker_excess", excess, len(mine.bends))
        made.put("flicker_distance", abs(excess), len(mine.bends))
        made.curve("change_truth", theirs.steps)
    seams = seam_score(mine.steps, places, None if theirs is None else theirs.steps)
    made.put("seam_score", seams.score, len(seams.borders))
    made.put("seam_worst", seams.worst, 1)


def _put_csim(made: _Made, name: str, result: identity.Csim) -> None:
    made.put(name, result.mean, result.counted)
    made.put(f"{name}_zero", result.zero, result.asked)


def check_clips(clip: Clip, truth: Clip | None, rules: Rules, *, truncate: bool) -> MatchedFrames | None:
    """Raise ``BadInput`` for what makes two videos incomparable and is known before they are decoded: sizes, counts,
    frames without a counterpart. Gives the frames to compare, None for all."""
    for one in (clip,) if truth is None else (clip, truth):
        if min(one.size) < SMALLEST:
            raise BadInput(one.path, "{}x{} pixels".format(*one.size), f"frames of {SMALLEST} pixels a side or more")
    if truth is None:
        return None
    if rules.name == "native" and clip.size != truth.size:
        sizes = ["{}x{}".format(*one.size) for one in (clip, truth)]
        raise BadInput(
            clip.path, f"{sizes[0]} against {sizes[1]}", "frames of one size on both sides", frame=0,
            hint="a protocol that resizes both sides makes them comparable: --protocol disco256",
        )  # fmt: skip
    matched = match_frames(clip, truth, truncate=truncate)
    if matched is None:
        _check_counts(clip, truth, truncate)
    return matched


def _at_positions(places: tuple[int, ...], matched: MatchedFrames | None) -> tuple[int, ...]:
    """Borders, which are numbered as the prediction's frames, in the numbering of the frames that are compared."""
    if matched is None:
        return places
    at = {frame: index for index, frame in enumerate(matched.predicted)}
    return tuple(at[place] for place in places if place in at and place - 1 in at)


def _past_the_end(predicted: int, target: int) -> str:
    """Frames of the longer video that the shorter one does not have."""
    if predicted == target:
        return ""
    side, shorter, longer = (
        ("prediction", target, predicted) if predicted > target else ("ground truth", predicted, target)
    )
    return f"{longer - shorter} of the {side} (frames {shorter} to {longer - 1})"


def _check_counts(clip: Clip, truth: Clip, truncate: bool) -> None:
    """Two videos of unequal lengths, if both containers tell theirs."""
    if clip.count is None or truth.count is None or clip.count == truth.count or truncate:
        return
    raise BadInput(
        clip.path,
        f"{clip.count} frames",
        f"{truth.count}, as many as its ground truth {truth.path.name}",
        hint="--truncate compares the frames that both have",
    )


def _told(clip: Clip, path: Path, sha256: str) -> dict[str, Any]:
    return {
        "path": str(path),
        "sha256": sha256,
        "size": list(clip.size),
        "fps": None if clip.fps is None else str(clip.fps),
    }
