"""A motion as a skeleton video with its ``poses.npz`` beside it, aligned to a reference picture where asked."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.clip_folder import cut
from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.detect.capture import Capture, CaptureOptions, Detectors, Watcher, extract_motion, pose_of
from stableanimator_cli.errors import NoPerson
from stableanimator_cli.media import VideoWriter, open_clip, read_picture, write_picture
from stableanimator_cli.motion.align import Alignment, align
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.keypoints import COUNT
from stableanimator_cli.motion.motion_file import UNTIMED_FPS, save_motion
from stableanimator_cli.motion.overlay import overlay
from stableanimator_cli.motion.skeleton import TAG, draw_frame
from stableanimator_cli.motion.track import parse_person
from stableanimator_cli.preprocess.inputs import Source
from stableanimator_cli.preprocess.quality import findings, measure
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, Motion


@dataclass(frozen=True, slots=True, kw_only=True)
class Poses:
    """What was written."""

    video: Path | None
    motion_file: Path | None
    preview: Path | None
    frames: int
    fps: Fraction
    alignment: Alignment | None

    def to_json(self) -> dict[str, Any]:
        return {
            "video": None if self.video is None else str(self.video),
            "motion": None if self.motion_file is None else str(self.motion_file),
            "preview": None if self.preview is None else str(self.preview),
            "frames": self.frames,
            "fps": str(self.fps),
            "alignment": None if self.alignment is None else self.alignment.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The picture to align to and its person's 134 points."""

    path: Path
    picture: np.ndarray
    keypoints: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.shape[1], self.picture.shape[0]


def read_reference(path: Path, detectors: Detectors) -> Reference:
    """``NoPerson`` where the picture shows nobody."""
    picture = read_picture(path)
    keypoints = pose_of(picture, detectors)
    if keypoints is None:
        raise NoPerson(
            f"{path}: no person found", hint="align to a picture that shows the person, or leave --align out"
        )
    return Reference(path=path, picture=picture, keypoints=keypoints)


def detect_motion(
    source: Source, config: PreprocessConfig, detectors: Detectors, reporter: Reporter, watch: Watcher | None = None
) -> tuple[Clip, Capture]:
    """One video's motion, told about where it is not whole."""
    clip = cut(open_clip(source.path), config.frames or (None, None), config.fps)
    options = CaptureOptions(person=parse_person(config.who), every=config.every, gap=config.gap, smooth=config.smooth)
    seen = extract_motion(clip, detectors, options, reporter=reporter, watch=watch)
    reporter.info(f"{source.path.name}: {seen.repairs.describe()}")
    for one in findings(measure(seen.motion, seen.found, None), shortest=1):
        # Motions to animate after are fine without faces: those come from the reference.
        if one.code not in ("no-face", "faceless"):
            reporter.warning(f"{source.path.name}: {one.text}")
    return clip, seen


def aligned(
    motion: Motion, reference: Reference | None, config: PreprocessConfig, reporter: Reporter
) -> Alignment | None:
    """The motion put where the reference's person is, as ``--align`` says, and how far it is from there."""
    if reference is None:
        return None
    found = align(motion, reference.keypoints, reference.size, config.align)
    reporter.info(found.describe())
    return found


def write_poses(
    video: Path,
    motion: Motion,
    *,
    fps: Fraction | None = None,
    audio_from: Path | None = None,
    alignment: Alignment | None = None,
    reporter: Reporter,
) -> Poses:
    """The skeleton video, lossless, and ``NAME.npz`` beside it: the file with exact times.

    A motion whose times are not even is drawn at its mean rate, each frame as long as it lasts. ``audio_from`` is the
    video whose sound goes with it.
    """
    indices, rate = even_frames(motion, fps)
    sound = None
    if audio_from is not None and motion.times:
        sound = (motion.times[0], motion.times[0] + len(indices) / rate)
    with (
        VideoWriter(video, motion.size, rate, lossless=True, tag=TAG, audio_from=audio_from, audio_range=sound) as out,
        reporter.progress(len(indices), "draw skeletons", "frame") as bar,
    ):
        last, picture = -1, np.zeros((motion.size[1], motion.size[0], 3), np.uint8)
        for index in indices:
            picture = picture if index == last else draw_frame(motion, index)
            last = index
            out.write(picture)
            bar.update()
    file = save_motion(video.with_suffix(".npz"), motion)
    return Poses(video=video, motion_file=file, preview=None, frames=len(indices), fps=rate, alignment=alignment)


def write_preview(video: Path, motion: Motion, reference: Reference | None) -> Path:
    """``NAME.preview.png`` beside a skeleton video: the motion over the reference picture, or over black."""
    path = video.with_name(f"{video.stem}.preview.png")
    if reference is None:
        width, height = motion.size
        write_picture(path, overlay(np.zeros((height, width, 3), np.uint8), np.zeros((COUNT, 3)), motion))
        return path
    if tuple(motion.size) != reference.size:  # not aligned: as it would be fitted
        motion = resize_transform(motion.size, reference.size, "pad").transform_motion(motion)
    write_picture(path, overlay(reference.picture, reference.keypoints, motion))
    return path


def even_frames(motion: Motion, fps: Fraction | None = None) -> tuple[list[int], Fraction]:
    """Which frame of the motion each tick of a constant rate shows, and that rate: ``fps``, else the mean one.

    A motion within half a frame of that rate keeps each frame once; one without a clock too. Elsewhere a tick shows the
    frame that is due, and the whole lasts as long as the motion to one frame.
    """
    times = motion.times
    if times is None or len(times) < 2 or times[-1] <= times[0]:
        return list(range(len(motion))), fps or UNTIMED_FPS
    seconds = [time - times[0] for time in times]
    own = ((len(times) - 1) / seconds[-1]).limit_denominator(100_000)
    rate = fps or own
    if all(abs(time * rate - index) < Fraction(1, 2) for index, time in enumerate(seconds)):
        return list(range(len(motion))), rate
    slack = min(Fraction(1, 1000), 1 / (4 * rate))  # containers round times up as well as down
    count = max(1, round((seconds[-1] + 1 / own) * rate))
    return [max(0, bisect_right(seconds, tick / rate + slack) - 1) for tick in range(count)], rate
