"""A motion as a skeleton video with its ``poses.npz`` beside it, aligned to a reference image on request."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.clip_folder import select_frames
from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.detect.capture import Capture, Detectors, extract_motion, pose_of
from stableanimator_cli.errors import NoPerson
from stableanimator_cli.files import check_replaceable
from stableanimator_cli.media import VideoWriter, open_clip, read_image, write_image
from stableanimator_cli.motion.align import Alignment, align
from stableanimator_cli.motion.frame_rate import mean_rate
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.keypoints import COUNT
from stableanimator_cli.motion.motion_file import UNTIMED_FPS, staged_motion
from stableanimator_cli.motion.overlay import overlay
from stableanimator_cli.motion.skeleton import TAG, draw_frame
from stableanimator_cli.preprocess.clip import capture_options, numbered_from, numbers_note
from stableanimator_cli.preprocess.inputs import Source
from stableanimator_cli.preprocess.quality import findings, measure_quality
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, Motion


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image uint8 RGB [h,w,3] to align to, and its largest person's keypoints float32[134,3]."""

    image: np.ndarray
    keypoints: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.image.shape[1], self.image.shape[0]


def read_reference(path: Path, detectors: Detectors) -> Reference:
    """Raises ``NoPerson`` if no person is detected in the image."""
    image = read_image(path)
    keypoints = pose_of(image, detectors)
    if keypoints is None:
        hint = "use an image that shows the person, or leave --reference (and --align) out"
        raise NoPerson(f"{path}: no person found", hint=hint)
    return Reference(image=image, keypoints=keypoints)


def detect_motion(
    source: Source, config: PreprocessConfig, detectors: Detectors, reporter: Reporter
) -> tuple[Clip, Capture]:
    """The motion of one video. Repairs and flaws are reported."""
    video = open_clip(source.path)
    clip = select_frames(video, config.frames or (None, None), config.fps)
    capture = extract_motion(clip, detectors, capture_options(config), reporter=reporter)
    reporter.info(f"{source.path.name}: {capture.repairs.describe()}")
    if first := numbered_from(video, config, capture):
        reporter.info(f"{source.path.name}: {numbers_note(first)}")
    for finding in findings(measure_quality(capture.motion, capture.found, None), shortest=1):
        # A driving motion needs no faces: the face comes from the reference.
        if finding.code not in ("no-face", "faceless"):
            reporter.warning(f"{source.path.name}: {finding.text}")
    return clip, capture


def align_to(
    reference: Reference | None, motion: Motion, config: PreprocessConfig, reporter: Reporter
) -> tuple[Motion, Alignment | None]:
    """The motion in the place of the reference's person, as ``--align`` requests; unchanged without a reference."""
    if reference is None:
        return motion, None
    alignment = align(motion, reference.keypoints, reference.size, config.align)
    reporter.info(alignment.describe())
    return alignment.motion, alignment


def write_poses_and_preview(
    config: PreprocessConfig,
    motion: Motion,
    alignment: Alignment | None,
    reference: Reference | None,
    reporter: Reporter,
    *,
    fps: Fraction | None = None,
    audio_from: Path | None = None,
) -> dict[str, Any]:
    """Write the files of ``--poses`` and return the report's ``poses``. ``fps`` applies without ``--fps``."""
    assert config.poses is not None
    poses = write_poses(config.poses, motion, fps=config.fps or fps, audio_from=audio_from, reporter=reporter)
    poses["alignment"] = None if alignment is None else alignment.to_json()
    if config.preview:
        poses["preview"] = str(write_preview(config.poses, motion, reference))
    return poses


def write_poses(
    video: Path,
    motion: Motion,
    *,
    fps: Fraction | None = None,
    audio_from: Path | None = None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write a lossless skeleton video, and ``NAME.npz`` with exact times beside it. Returns the report's ``poses``.

    A motion with uneven times is drawn at its mean rate, each frame for its own duration. ``audio_from`` is the video
    whose sound is copied. Both files appear or neither: without its motion a skeleton video has no keypoints.
    """
    indices, rate = even_frames(motion, fps)
    audio = None
    if audio_from is not None and motion.times:
        audio = (motion.times[0], motion.times[0] + len(indices) / rate)
    motion_file = video.with_suffix(".npz")
    with ExitStack() as undo:
        with (
            VideoWriter(
                video, motion.size, rate, lossless=True, tag=TAG, audio_from=audio_from, audio_range=audio
            ) as out,
            reporter.progress(len(indices), "draw skeletons", "frame") as bar,
        ):
            last, image = -1, np.zeros((motion.size[1], motion.size[0], 3), np.uint8)
            for index in indices:
                image = image if index == last else draw_frame(motion, index)
                last = index
                out.write(image)
                bar.update()
            out.finish()
            with staged_motion(motion_file, motion):
                # First: if killed from here on, a motion without its video is complete, one beside another's misleads.
                check_replaceable(video)
                video.unlink(missing_ok=True)
            undo.callback(motion_file.unlink, missing_ok=True)
        undo.pop_all()
    return {
        "video": str(video),
        "motion": str(motion_file),
        "preview": None,
        "frames": len(indices),
        "fps": str(rate),
        "alignment": None,
    }


def write_preview(video: Path, motion: Motion, reference: Reference | None) -> Path:
    """``NAME.preview.png`` beside a skeleton video: the motion over the reference image, or over black."""
    path = video.with_name(f"{video.stem}.preview.png")
    if reference is None:
        width, height = motion.size
        write_image(path, overlay(np.zeros((height, width, 3), np.uint8), np.zeros((COUNT, 3)), motion))
        return path
    if tuple(motion.size) != reference.size:  # not aligned: resized as sa animate would
        motion = resize_transform(motion.size, reference.size, "pad").transform_motion(motion)
    write_image(path, overlay(reference.image, reference.keypoints, motion))
    return path


def even_frames(motion: Motion, fps: Fraction | None = None) -> tuple[list[int], Fraction]:
    """Frame indices of the motion at a constant rate, and that rate: ``fps``, else the mean one.

    Every frame is shown once if the motion has no times, or if all are within half a frame of that rate. Otherwise each
    tick shows the frame that is due, and the duration is that of the motion to within one frame.
    """
    times = motion.times
    if times is None or len(times) < 2 or times[-1] <= times[0]:
        return list(range(len(motion))), fps or UNTIMED_FPS
    seconds = [time - times[0] for time in times]
    own = mean_rate(times)
    rate = fps or own
    if all(abs(time * rate - index) < Fraction(1, 2) for index, time in enumerate(seconds)):
        return list(range(len(motion))), rate
    slack = min(Fraction(1, 1000), 1 / (4 * rate))  # containers round times up as well as down
    count = max(1, round((seconds[-1] + 1 / own) * rate))
    return [max(0, bisect_right(seconds, tick / rate + slack) - 1) for tick in range(count)], rate
