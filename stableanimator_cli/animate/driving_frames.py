"""The driving motion as frames at the output's size and rate: drawn from keypoints, or the frames of a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from stableanimator_cli.animate.driving_faces import FaceCrops, read_face_crops
from stableanimator_cli.animate.driving_pixels import letterboxed
from stableanimator_cli.animate.frame_rate import frame_indices_at, is_regular
from stableanimator_cli.animate.people import numbers_of, people_of_frames
from stableanimator_cli.animate.pose_frames import PoseFrames
from stableanimator_cli.backbone_facts import BackboneFacts
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.errors import BadInput
from stableanimator_cli.motion.aapose import draw_aapose
from stableanimator_cli.motion.frame_rate import mean_rate
from stableanimator_cli.motion.geometry import ResizeTransform, resize_transform
from stableanimator_cli.motion.left_to_right import face_boxes
from stableanimator_cli.motion.motion_file import UNTIMED_FPS
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, Motion

STYLE = "dwpose"
"""Style of the skeleton videos that ``sa preprocess`` draws."""
Audio = tuple[Path, Fraction, Fraction]


@dataclass(frozen=True, slots=True, kw_only=True)
class Driving:
    """``skeletons``: one per output frame, or the frames of the video that drives; ``fps``: their exact rate.

    ``source_size``: (width, height) of MOTION. ``audio``: (file, start, end) in seconds of that file, if it has sound.
    ``faces``: boxes float[t,p,4] in output pixels, largest person first, NaN if no face is visible; None if only images
    are known. ``people``: the motion of everybody who is drawn and present, in output pixels, by output frame; None if
    only images are known. ``numbers``: track numbers of all chosen people, in order, also of those who are in none of
    these frames.
    ``detected_size``: that of the plain video in which the motion is detected, None for another motion.
    ``motion_frames``: per output frame, the index of MOTION's frame that it shows; ``motion_times``: its seconds after
    MOTION's first frame, None if MOTION has no clock. ``streams``: further videos that the backbone is conditioned on,
    by name. ``undetected``: a plain video for a plan, whose people are not known.
    """

    skeletons: PoseFrames
    fps: Fraction
    source_size: tuple[int, int]
    audio: Audio | None
    faces: np.ndarray | None = None
    people: Motion | None = None
    numbers: tuple[int, ...] = ()
    motion_frames: tuple[int, ...] = ()
    motion_times: tuple[Fraction, ...] | None = None
    streams: Mapping[str, FaceCrops] = field(default_factory=dict)
    detected_size: tuple[int, int] | None = None
    undetected: bool = False


SKELETONS: Mapping[str, Callable[[np.ndarray, tuple[int, int]], np.ndarray]] = {
    "dwpose": draw_skeleton,
    "aapose": draw_aapose,
}
"""Functions that draw people float[p,134,3] at a size, by the style that a backbone was trained with."""


@dataclass(frozen=True, slots=True)
class DrivingFrames:
    """Builds the driving motion at the output's size and rate, without ``draws`` of black frames, as a plan needs."""

    config: AnimateConfig
    reporter: Reporter
    facts: BackboneFacts
    draws: bool = True

    def with_face_crops(self, driving: Driving, clip: Clip, motion: Motion) -> Driving:
        """Add crops of the face in ``clip``, from which ``motion`` was detected."""
        faces = read_face_crops(clip, motion, driving.motion_frames, self.reporter)
        return replace(driving, streams={"face": faces})

    def transform(self, source: tuple[int, int], path: Path) -> ResizeTransform:
        transform = resize_transform(source, self.config.size, self.config.resize)
        report_crop(transform, path, self.reporter)
        return transform

    def counted(self, clip: Clip) -> Driving:
        """A plain video's motion as black frames: enough for a plan."""
        times = [time for time, _ in clip.frames()]
        known = [time for time in times if time is not None]
        if len(known) < max(2, len(times)):
            order, rate = range(len(times)), self.config.fps or clip.fps or UNTIMED_FPS
        else:
            order, rate = _at_rate(known, clip.fps or mean_rate(known), self.config.fps)
        skeletons = self._black(len(order))
        detects = self.facts.skeleton is not None
        return Driving(
            skeletons=skeletons, fps=rate, source_size=clip.size, audio=None, undetected=detects,
            detected_size=clip.size if detects else None,
        )  # fmt: skip

    def of_clip(self, clip: Clip, first: int, beside: Motion | None) -> Driving:
        """The frames of a video; ``first`` is the index of its first frame in MOTION, ``beside`` the people of all of
        MOTION's frames. Skeletons are fitted as ``--resize`` names, people's videos as their backbone expects them."""
        pixels = self.facts.skeleton is None
        transform = None if pixels else self.transform(clip.size, clip.path)
        fitted = None if beside is None or transform is None else transform.transform_motion(beside)
        skeletons, times = PoseFrames(self.config.size), []
        with self.reporter.progress(clip.count, "read motion", "frame") as bar:
            for time, image in clip.frames():
                # bicubic, as the reference implementation resizes skeleton images
                skeletons.append(
                    letterboxed(image, self.config.size) if transform is None
                    else transform.apply_image(image, resample="bicubic")
                )  # fmt: skip
                times.append(time)
                bar.update()
        if not times:
            raise BadInput(clip.path, "no frames", "at least one")
        if None in times or len(times) == 1:
            order, rate = range(len(times)), self.config.fps or clip.fps or UNTIMED_FPS
            start = times[0] or Fraction(0)
            end, motion_times = start + len(times) / rate, None
        else:
            own = clip.fps or mean_rate(times)
            order, rate = _at_rate(times, own, self.config.fps)
            start, end, motion_times = times[0], times[-1] + 1 / own, tuple(times[index] for index in order)
            self._warn_of_equal_times(times, order, clip.path)
        people = None if fitted is None else people_of_frames(fitted, [first + index for index in order])
        return Driving(
            skeletons=skeletons.reordered(order),
            fps=rate,
            source_size=clip.size,
            audio=(clip.path, start, end) if clip.audio else None,
            faces=None if people is None else _faces(people),
            people=people,
            numbers=() if fitted is None else numbers_of(fitted),
            motion_frames=tuple(first + index for index in order),
            motion_times=motion_times,
        )

    def of_motion(
        self, motion: Motion, path: Path, start: int | None = None, stop: int | None = None,
        fps: Fraction | None = None,
    ) -> Driving:  # fmt: skip
        """Skeletons drawn from the frames ``start:stop`` of a motion. ``fps``: the rate of the video that it is from,
        whose container may have rounded the times; None: their mean rate."""
        indices = range(len(motion))[start:stop]
        if not indices:
            expected = f"frames in {start or 0}:{'' if stop is None else stop}"
            raise BadInput(path, f"{len(motion)} frames", expected, hint="A:B counts from 0, B not included")
        if not motion.present[list(indices)].any():
            raise BadInput(path, "no person in any frame", "at least one person", hint="choose other --frames")
        fitted = self.transform(motion.size, path).transform_motion(motion)
        skeletons = self._drawn(fitted, indices) if self.draws else self._black(len(indices))
        order, rate, motion_times = range(len(indices)), self.config.fps or UNTIMED_FPS, None
        if motion.times is not None:
            times = [motion.times[index] for index in indices]
            order, rate = _at_rate(times, fps or mean_rate(motion.times), self.config.fps)
            motion_times = tuple(times[index] for index in order)
            self._warn_of_equal_times(times, order, path)
        people = people_of_frames(fitted, [indices[index] for index in order])
        if isinstance(self.config.people.person, tuple):
            absent = [str(number) for number in numbers_of(motion) if number not in people.track]
            if absent:
                self.reporter.warning(f"{path.name}: person {', '.join(absent)} is in none of the animated frames")
        return Driving(
            skeletons=skeletons.reordered(order),
            fps=rate,
            source_size=motion.size,
            audio=None,
            faces=_faces(people),
            people=people,
            numbers=numbers_of(motion),
            motion_frames=tuple(indices[index] for index in order),
            motion_times=motion_times,
        )

    def _warn_of_equal_times(self, times: Sequence[Fraction], order: Sequence[int], path: Path) -> None:
        shown = set(order)
        hidden = sum(time == later and i not in shown for i, (time, later) in enumerate(pairwise(times)))
        if hidden:
            self.reporter.warning(
                f"{path.name}: {hidden} of {len(times)} frames have the time of the next one, which is shown instead"
            )

    def _drawn(self, motion: Motion, indices: Sequence[int]) -> PoseFrames:
        draw = SKELETONS[self.facts.skeleton or STYLE]

        def images() -> Iterator[np.ndarray]:
            with self.reporter.progress(len(indices), "draw skeletons", "frame") as bar:
                for index in indices:
                    yield draw(motion.keypoints[index][motion.present[index]], self.config.size)
                    bar.update()

        return PoseFrames(self.config.size, images())

    def _black(self, count: int) -> PoseFrames:
        width, height = self.config.size
        return PoseFrames(self.config.size, [np.zeros((height, width, 3), np.uint8)]).reordered([0] * count)


def _faces(motion: Motion) -> np.ndarray:
    """Face boxes float[t,p,4], largest person first: the motion's own, else around the face's points."""
    boxes = face_boxes(motion)
    sides = np.nan_to_num(boxes[..., 2:] - boxes[..., :2])
    return boxes[:, np.argsort(-sides.prod(axis=-1).mean(axis=0), kind="stable")]


def _at_rate(times: Sequence[Fraction], own: Fraction, requested: Fraction | None) -> tuple[Sequence[int], Fraction]:
    """Indices of frames at a constant rate: all if they have it already, else the frame shown at each tick."""
    rate = requested or own
    if rate == own and is_regular(times, own):
        return range(len(times)), rate
    return frame_indices_at(times, rate, 1 / own), rate


def report_crop(transform: ResizeTransform, path: Path, reporter: Reporter) -> None:
    """Report if the transform crops or distorts much of an input."""
    (x0, y0, x1, y1), (width, height) = transform.box, transform.source
    visible = (x1 - x0) * (y1 - y0) / (width * height)
    if visible < 0.9:
        reporter.info(f"{path.name}: {1 - visible:.0%} of the image is cropped; --resize pad keeps all of it")
    across, down = transform.scale
    stretch = max(across, down) / min(across, down)
    if stretch > 1.1:
        reporter.info(f"{path.name}: stretched by {stretch:.2f} on one side by --resize")
