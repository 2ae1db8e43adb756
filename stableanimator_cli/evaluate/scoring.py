"""Scores of one video. Prediction and target are decoded once, for pixel metrics and detections together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate import run_record
from stableanimator_cli.evaluate.driving_points import Unmatched, driven_points, indices_shown, read_poses
from stableanimator_cli.evaluate.frame_matching import (
    MatchedFrames,
    at_positions,
    frames_at,
    match_frames,
    past_the_end,
)
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.people import (
    FaceRows,
    PersonReference,
    PersonScore,
    at_frames,
    embeddings_of,
    measure,
    people_of,
)
from stableanimator_cli.evaluate.protocols import EvalProtocol
from stableanimator_cli.evaluate.score_builder import ScoreBuilder
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import open_clip, read_image
from stableanimator_cli.metrics import motion
from stableanimator_cli.metrics.accumulators import RunningMean, paired
from stableanimator_cli.metrics.flicker import Changes
from stableanimator_cli.metrics.head_angle import head_yaw
from stableanimator_cli.metrics.pixel import FRAME_METRICS
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, Motion

if TYPE_CHECKING:  # imports the libraries of the detectors
    from stableanimator_cli.evaluate.detections import VideoDetections, VideoDetector

NO_POINTS = "keypoints have nothing to be compared with"
MINIMUM_SIDE = 8  # pixels: SSIM has windows of 7


class NetworkMetrics(Protocol):
    """Metrics that need networks, fed one video at a time."""

    @property
    def of_reference(self) -> tuple[str, ...]: ...

    def begin(self, name: str, target: str | None, reference: np.ndarray | None = None) -> None: ...

    def add_frame(self, frame: np.ndarray) -> None: ...

    def similarities(self) -> Mapping[str, np.ndarray]: ...

    def add(self, predicted: np.ndarray, target: np.ndarray, number: int) -> None: ...

    def end(self) -> Mapping[str, RunningMean]: ...

    def forget(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoScore:
    """Scores of one video. ``values`` by metric, NaN if there is none; ``counts`` are the frames, points or borders
    that each is a mean of. ``curves`` hold a value per frame or None. ``notes`` explain what could not be measured.
    ``matched`` are the frames that were compared, None for all; ``dropped`` describes the others. ``worst_window``
    are the frames of ``identity_worst``, half-open, None without a face. ``people``: the identity of each person if
    there are several, whose means are among ``values``."""

    name: str
    predicted: Mapping[str, Any]
    target: Mapping[str, Any] | None
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
    worst_window: tuple[int, int] | None = None
    people: tuple[PersonScore, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores pairs under one protocol. ``borders`` are those of the command line, used if no run record has any."""

    rules: EvalProtocol
    detector: VideoDetector
    networks: NetworkMetrics
    truncate: bool
    borders: tuple[int, ...] | None
    reporter: Reporter

    def score(self, pair: Pair) -> VideoScore:
        """Score one pair. Raises ``BadInput`` naming file and frame for videos that cannot be compared; such a video
        leaves nothing in the distances of sets."""
        try:
            return self._score(pair)
        except BaseException:
            self.networks.forget(pair.name)
            raise

    def _score(self, pair: Pair) -> VideoScore:
        clip = open_clip(pair.predicted)
        target = None if pair.target is None else open_clip(pair.target)
        scores = ScoreBuilder(pair, clip, target, check_clips(clip, target, self.rules, truncate=self.truncate))
        sha256 = {path: sha256_of(path) for path in (pair.predicted, pair.target) if path is not None}
        record = run_record.read_record(pair.predicted, scores.notes.append)
        for note in scores.notes:
            self.reporter.warning(f"{pair.name}: {note}")
        matched, target_pass, reference = scores.matched, None, self._reference(scores)
        predicted_pass = self.detector.start(clip, sha256=sha256[pair.predicted])
        if target is None or pair.target is None:
            self.networks.begin(pair.name, None, reference)
            changes = self._read_alone(predicted_pass.clip, scores), None
        else:
            same = sha256[pair.target] == sha256[pair.predicted]  # detected once
            target_pass = predicted_pass if same else self.detector.start(target, sha256=sha256[pair.target])
            # a truncated target has other clips than the full one, whose statistics are cached
            self.networks.begin(pair.name, None if self.truncate else sha256[pair.target], reference)
            changes = self._compare(predicted_pass.clip, target if same else target_pass.clip, scores)
        frames = len(scores.times)
        if frames == 0:
            raise BadInput.because(pair.predicted, "it has no frames", hint="write the video again")
        for metric, curve in self.networks.similarities().items():
            scores.put(metric, curve[:frames].mean(), frames)
            scores.curve(metric, curve[:frames])
        borders = at_positions(self._borders(record, scores), matched)
        scores.put_changes(*changes, borders)
        full = predicted_pass.finish()
        predicted = full.at(range(frames) if matched is None else matched.predicted)
        true, dropped = None, "" if matched is None else matched.describe_dropped()
        if target_pass is not None:
            full_target = target_pass.finish()
            true = full_target.at(range(frames) if matched is None else matched.target)
            if matched is None:
                dropped = past_the_end(len(full), len(full_target))
        if dropped:
            scores.notes.append(f"frames without a counterpart were left out (--truncate): {dropped}")
            self.reporter.warning(f"{pair.name}: frames without a counterpart are left out: {dropped}")
        self._score_identity(scores, record, predicted, true, reference, len(full), sha256)
        self._score_motion(scores, record, predicted, true, len(full))
        return VideoScore(
            name=pair.name,
            predicted=_describe(clip, sha256[pair.predicted]),
            target=None if target is None else _describe(target, sha256[target.path]),
            frames=frames,
            values=scores.values,
            counts=scores.counts,
            curves=scores.curves,
            borders=borders,
            notes=tuple(scores.notes),
            pair=pair,
            matched=matched,
            dropped=dropped,
            identical_frames=scores.identical,
            worst_window=scores.worst_window,
            people=scores.people,
        )

    def _read_alone(self, clip: Clip, scores: ScoreBuilder) -> Changes:
        """A video without a target: only its own changes."""
        changes = Changes()
        with self.reporter.progress(clip.count, f"score {scores.pair.name}", "frame") as bar:
            for frame in self._prepared(clip, None, scores.times, self.networks.add_frame):
                changes.add(frame)
                bar.update()
        return changes

    def _compare(self, clip: Clip, target: Clip, scores: ScoreBuilder) -> tuple[Changes, Changes]:
        """All metrics of pairs of frames."""
        matched, name = scores.matched, str(scores.pair.predicted)
        changes, target_changes = Changes(), Changes()
        means: dict[str, RunningMean] = {metric: RunningMean() for metric in FRAME_METRICS}
        curves: dict[str, list[float]] = {"psnr": [], "ssim": []}
        streams = (
            self._prepared(clip, None if matched is None else matched.predicted, scores.times, self.networks.add_frame),
            self._prepared(target, None if matched is None else matched.target, []),
        )
        previous = -1
        with self.reporter.progress(clip.count, f"score {scores.pair.name}", "frame") as bar:
            for index, a, b in paired(*streams, name=name, truncate=self.truncate):
                values = {metric: function(a, b) for metric, function in FRAME_METRICS.items()}
                for metric, curve in curves.items():
                    curve.append(values[metric])
                scores.identical += math.isinf(values["psnr"])
                for metric, value in values.items():
                    if math.isfinite(value):
                        means[metric].add(value)
                number = index if matched is None else matched.numbers[index]
                self.networks.add(a, b, number)
                changes.add(a, gap=number != previous + 1)
                target_changes.add(b, gap=number != previous + 1)
                previous = number
                bar.update()
        del scores.times[len(curves["psnr"]) :]  # a frame of the longer video may have been read
        frames = len(scores.times)
        if frames:
            means |= self.networks.end()
        if scores.identical == frames:
            means["psnr"] = RunningMean(total=math.inf, count=frames)
        elif scores.identical:
            scores.notes.append(
                f"{scores.identical} of {frames} frames equal the ground truth's: psnr is the mean of the others"
            )
        scores.put_means(means)
        for metric, curve in curves.items():
            scores.curve(metric, curve)
        return changes, target_changes

    def _prepared(
        self,
        clip: Clip,
        positions: Sequence[int] | None,
        times: list[Fraction | None],
        add_frame: Callable[[np.ndarray], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Frames as pixel metrics see them; their times are added to ``times``, and ``add_frame`` gets them whole."""
        for time, frame in frames_at(clip, positions):
            times.append(time)
            if add_frame is not None:
                add_frame(frame)
            yield self.rules.prepare(frame)

    def _borders(self, record: Mapping[str, Any] | None, scores: ScoreBuilder) -> tuple[int, ...]:
        if scores.pair.borders is not None:
            return scores.pair.borders
        recorded = None if record is None else run_record.piece_borders(record)
        if recorded is None and self.borders is None:
            scores.notes.append("no run record beside it and no --borders: seams were not looked for")
        return recorded if recorded is not None else self.borders or ()

    def _reference(self, scores: ScoreBuilder) -> np.ndarray | None:
        """The reference image uint8[h,w,3] (frame 0 of the target if there is none), None if no metric needs it."""
        if self.detector.reader is None and not self.networks.of_reference:
            return None
        if scores.pair.reference is not None:
            return read_image(scores.pair.reference)
        return None if scores.target is None else next(iter(scores.target.frames()))[1]

    def _score_identity(
        self,
        scores: ScoreBuilder,
        record: Mapping[str, Any] | None,
        predicted: VideoDetections,
        target: VideoDetections | None,
        image: np.ndarray | None,
        count: int,
        sha256: Mapping[Path, str],
    ) -> None:
        """CSIM against the reference image and against the target, per person if there are several."""
        if self.detector.reader is None:
            return
        motion = None if image is None else self._motion_of_people(scores, record, len(predicted), count)
        people: tuple[PersonReference, ...] = ()
        if image is not None and motion is not None:
            people = people_of(record, motion, image, self.detector)
        if people and motion is not None:
            matched, sides = scores.matched, []
            for clip, frames in (
                (scores.clip, None if matched is None else matched.predicted),
                (scores.target, None if matched is None else matched.target),
            ):
                if clip is not None:
                    faces = FaceRows.of_clip(self.detector, clip, sha256[clip.path])
                    frames = range(len(predicted)) if frames is None else frames
                    sides.append(embeddings_of(people, faces, frames, motion, clip.size))
            judged = "judge" not in self.detector.unavailable
            scores.put_people(measure(people, sides[0], sides[1] if len(sides) > 1 else None, judged=judged))
            return
        own, judge = (None, None) if image is None else self.detector.embed_largest_face(image)
        if own is not None and not np.isfinite(own).all():
            scores.notes.append("its reference image shows no face: left out of CSIM against the reference")
        sides_of_one = [("", predicted.own, own, None if target is None else target.own)]
        if "judge" not in self.detector.unavailable:
            sides_of_one.append(("_judge", predicted.judge, judge, None if target is None else target.judge))
        for suffix, rows, reference, target_rows in sides_of_one:
            scores.put_identity(suffix, rows, reference, target_rows)

    def _motion_of_people(
        self, scores: ScoreBuilder, record: Mapping[str, Any] | None, measured: int, count: int
    ) -> Motion | None:
        """The motion in the output's pixels and the ``measured`` frames, if the record names people or, without one, it
        shows several; else None.

        ``count`` is the number of frames of the full prediction.
        """
        poses, several = scores.pair.poses, record is None or bool(record.get("people"))
        if poses is None or not several:
            if record is not None and several:
                scores.notes.append("people have faces of their own, but no --poses show who is where: one face counts")
            return None
        motion = read_poses(poses)
        if len(motion.track) < 2 and record is None:
            return None
        times = scores.times if len(scores.times) == count else [time for time, _ in scores.clip.frames()]
        try:
            shown = indices_shown(poses, motion, record, times)
        except Unmatched:  # a note of the keypoints has the reason
            return None
        positions = range(measured) if scores.matched is None else scores.matched.predicted
        resize = run_record.resize_mode(record)
        motion = resize_transform(motion.size, scores.clip.size, resize).transform_motion(motion)
        return at_frames(motion, [shown[index] for index in positions])

    def _score_motion(
        self,
        scores: ScoreBuilder,
        record: Mapping[str, Any] | None,
        predicted: VideoDetections,
        target: VideoDetections | None,
        count: int,
    ) -> None:
        """Detected points against those that drove the video (of the target if no motion is given). ``count`` is
        the number of frames of the full prediction."""
        if self.detector.detectors is None:
            return
        poses, clip, matched = scores.pair.poses, scores.clip, scores.matched
        if poses is not None:
            driving = run_record.animated_people(record, read_poses(poses))
            if scores.people and len(driving.track) > 1:
                scores.notes.append(f"{NO_POINTS}: of several people only the largest of each frame is detected")
                return
            times = scores.times if len(scores.times) == count else [time for time, _ in clip.frames()]
            try:
                shown = indices_shown(poses, driving, record, times)
            except Unmatched as error:
                scores.notes.append(f"{NO_POINTS}: {error}")
                return
            positions = range(len(predicted)) if matched is None else matched.predicted
            resize = run_record.resize_mode(record)
            points = driven_points(driving, clip.size, [shown[index] for index in positions], resize=resize)
        elif target is not None:
            points = target.points.copy()
            points[..., :2] *= np.array(clip.size) / np.array(target.size)
        else:
            scores.notes.append(f"{NO_POINTS}: no --poses and no ground truth")
            return
        shared = min(len(points), len(predicted))
        for name, part in motion.PARTS.items():
            result = motion.keypoint_error(predicted.points[:shared], points[:shared], part, clip.size)
            scores.put(f"{name}_error", result.error, result.points)
            scores.put(f"{name}_pck", result.pck, result.driven)
            scores.put(f"{name}_found", result.found, result.driven)
            scores.curve(f"{name}_error", result.curve)
        scores.curve("head_yaw", head_yaw(points))


def check_clips(clip: Clip, target: Clip | None, rules: EvalProtocol, *, truncate: bool) -> MatchedFrames | None:
    """Compare sizes, counts and frame numbers without decoding. Returns the frames to compare, None for all.

    Raises ``BadInput`` for two videos that cannot be compared.
    """
    for one in (clip,) if target is None else (clip, target):
        if min(one.size) < MINIMUM_SIDE:
            raise BadInput(
                one.path, "{}x{} pixels".format(*one.size), f"frames of {MINIMUM_SIDE} pixels per side or more"
            )
    if target is None:
        return None
    if rules.name == "native" and clip.size != target.size:
        sizes = ["{}x{}".format(*one.size) for one in (clip, target)]
        raise BadInput(
            clip.path, f"{sizes[0]} against {sizes[1]}", "frames of one size on both sides", frame=0,
            hint="a protocol that resizes both sides makes them comparable: --protocol disco256",
        )  # fmt: skip
    matched = match_frames(clip, target, truncate=truncate)
    unequal = None not in (clip.count, target.count) and clip.count != target.count
    if matched is None and unequal and not truncate:
        raise BadInput(
            clip.path, f"{clip.count} frames", f"{target.count}, as many as its ground truth {target.path.name}",
            hint="--truncate compares the frames that both have",
        )  # fmt: skip
    return matched


def _describe(clip: Clip, sha256: str) -> dict[str, Any]:
    return {
        "path": str(clip.path),
        "sha256": sha256,
        "size": list(clip.size),
        "fps": None if clip.fps is None else str(clip.fps),
    }
