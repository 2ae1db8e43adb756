"""The driving motion: whatever the user has, as skeleton pictures at the output's size and rate.

Skeleton videos and folders of skeleton pictures are taken as they are; key points (our ``poses.npz``, OpenPose JSON)
are drawn, those of a clip folder (``sa preprocess``) too; in a plain video people are detected first, with the
detectors of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from stableanimator_cli.animate.frame_rate import frame_indices_at, is_regular, mean_rate
from stableanimator_cli.animate.pose_frames import PoseFrames
from stableanimator_cli.clip_folder import MOTION, RECORD, open_folder
from stableanimator_cli.detect.capture import Detectors, extract_motion, pose_of
from stableanimator_cli.errors import BadInput, ModelMissing, NoPerson
from stableanimator_cli.media import open_clip, take
from stableanimator_cli.media.image import is_picture
from stableanimator_cli.motion.align import align
from stableanimator_cli.motion.geometry import Mode, ResizeTransform, resize_transform
from stableanimator_cli.motion.keypoints import face_box
from stableanimator_cli.motion.motion_file import UNTIMED_FPS, load_motion
from stableanimator_cli.motion.openpose import load_openpose
from stableanimator_cli.motion.skeleton import TAG, draw_skeleton, looks_like_skeleton
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, ModelFolder, Motion

Kind = Literal["auto", "skeleton", "video"]
_LOOKED_AT = 8  # frames that decide what an untagged video is
_SMALLEST = 32  # pixels a side, below which no skeleton can be told from its noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Driving:
    """``skeletons`` one a frame of the output, ``fps`` its exact rate; ``source_size`` (width, height) before fitting.
    ``audio`` (file, start, end) in seconds of that file, where it has sound. ``faces`` float[t,p,4] boxes in output
    pixels, largest person first, NaN where no face can be seen; None where only pictures are known. ``motion_frames``
    is MOTION's own frame, counted from 0, that each frame of the output shows, ``motion_times`` its time in seconds
    after MOTION's first frame; None where MOTION has no clock."""

    skeletons: PoseFrames
    fps: Fraction
    source_size: tuple[int, int]
    audio: tuple[Path, Fraction, Fraction] | None
    faces: np.ndarray | None = None
    motion_frames: tuple[int, ...] = ()
    motion_times: tuple[Fraction, ...] | None = None


def open_driving(
    path: Path,
    *,
    kind: Kind,
    frames: tuple[int | None, int | None] | None,
    fps: Fraction | None,
    size: tuple[int, int],
    resize: Mode,
    reporter: Reporter,
    model: ModelFolder | None = None,
    device: str = "auto",
    reference: np.ndarray | None = None,
    planned: bool = False,
) -> Driving:
    """Read MOTION. ``frames`` is a half-open slice of the source's frames; ``fps`` the output's rate (default: the
    source's, or 30 where it has no clock).

    In a plain video the largest person is found by the detectors of ``model`` on ``device``; how far they are from the
    person of ``reference`` uint8[h,w,3] is said. ``planned`` counts such a video's frames and detects nothing.
    Raises ``BadInput`` with file and frame, ``ModelMissing`` where a plain video meets a model without detectors,
    ``NoPerson`` where it shows nobody."""
    start, stop = frames or (None, None)
    if (path / RECORD).is_file() and (path / MOTION).is_file():
        motion = load_motion(path / MOTION)
        driving = _from_motion(motion, path / MOTION, start, stop, fps, size, resize, reporter)
        return driving if planned else replace(driving, audio=_sound(path, motion, start, stop, reporter))
    if path.suffix.lower() == ".npz" and path.is_file():
        return _from_motion(load_motion(path), path, start, stop, fps, size, resize, reporter)
    if _holds_openpose(path):
        read = load_openpose(path)
        if read.size_from == "extent":
            width, height = read.motion.size
            reporter.warning(
                f"{path.name} does not say the size of its frames: {width}x{height} guessed from the points; "
                "add canvas_width and canvas_height"
            )
        return _from_motion(read.motion, path, start, stop, fps, size, resize, reporter)
    clip = open_clip(path)
    if min(clip.size) < _SMALLEST:
        raise BadInput(
            path,
            "{}x{} pixels".format(*clip.size),
            f"skeletons of {_SMALLEST} pixels a side or more",
            hint="draw the skeletons larger, or give the motion as key points (.npz or OpenPose JSON)",
        )
    part = take(clip, start, stop)
    first = (start or 0) if clip.count is None else slice(start, stop).indices(clip.count)[0]
    if _shows_skeletons(clip, kind, reporter):
        return _from_clip(part, first, fps, size, resize, reporter, _faces_beside(clip, start, stop, size, resize))
    if planned:
        return _counted(part, fps, size)
    motion = _detected(part, model, device, reference, reporter)
    driving = _from_motion(
        motion, path, None, None, fps or (clip.fps if motion.times is None else None), size, resize, reporter
    )
    driving = replace(driving, motion_frames=tuple(first + index for index in driving.motion_frames))
    if not clip.audio or motion.times is None:
        return driving
    end = motion.times[-1] + 1 / (clip.fps or mean_rate(motion.times))
    return replace(driving, audio=(path, motion.times[0], end))


def _sound(
    folder: Path, motion: Motion, start: int | None, stop: int | None, reporter: Reporter
) -> tuple[Path, Fraction, Fraction] | None:
    """The sound of a clip folder: that of its video, over the frames ``start:stop`` of its motion."""
    try:
        clip = open_folder(folder)
        if motion.times is None or not clip.record.get("audio"):
            return None
        source = clip.source
    except BadInput as error:
        reporter.warning(f"{error.message}: the video will have no sound")
        return None
    times = motion.times[start:stop]
    return source, times[0], times[-1] + 1 / mean_rate(motion.times)


def _holds_openpose(path: Path) -> bool:
    """A .json file, or a folder of them that has no pictures."""
    if not path.is_dir():
        return path.suffix.lower() == ".json" and path.is_file()
    return any(path.glob("*.json")) and not any(is_picture(file) for file in path.iterdir() if file.is_file())


def _shows_skeletons(clip: Clip, kind: Kind, reporter: Reporter) -> bool:
    """Whether a video shows drawn skeletons; else it shows people to detect."""
    if kind == "auto":
        tagged = TAG.items() <= clip.tag.items()
        # frames are looked at only where the tag does not tell
        looked = [] if tagged else [frame for _, frame in itertools.islice(clip.frames(), _LOOKED_AT)]
        skeleton = tagged or sum(map(looks_like_skeleton, looked)) * 2 > len(looked)
        why = "by its tag" if tagged else "black but for its limbs" if skeleton else "not black like a skeleton"
        reporter.info(f"{clip.path.name}: taken for a {'skeleton' if skeleton else 'plain'} video ({why})")
        return skeleton
    return kind == "skeleton"


def _detected(
    clip: Clip, model: ModelFolder | None, device: str, reference: np.ndarray | None, reporter: Reporter
) -> Motion:
    """The largest person's motion in a plain video, as it is there: nothing is aligned unasked."""
    try:
        if model is None:
            raise ModelMissing("no model was given")
        # Boxes of faces follow from their points: vectors of every frame would cost as much again and serve nobody.
        detectors = Detectors.open(model, device, faces=False)
    except ModelMissing as error:
        raise ModelMissing(
            f"{clip.path}: found a plain video, and {error.message}",
            hint=f"{error.hint or 'name a model with detectors'}; if these are skeletons, say --motion-kind skeleton",
        ) from None
    seen = extract_motion(clip, detectors, reporter=reporter)
    if seen.repairs.frames or seen.repairs.points or seen.repairs.gaps:
        reporter.info(f"{clip.path.name}: {seen.repairs.describe()}")
    if seen.found.max() > 1:
        reporter.info(f"{clip.path.name}: up to {seen.found.max()} people, the largest is followed")
    points = None if reference is None else pose_of(reference, detectors)
    if reference is not None and points is not None:
        try:
            found = align(seen.motion, points, (reference.shape[1], reference.shape[0]), "none").after
        except NoPerson:  # too little in common to compare
            return seen.motion
        reporter.info(
            f"{clip.path.name}: {found.describe()}; sa preprocess --align affine --reference brings them together"
        )
    return seen.motion


def _counted(clip: Clip, fps: Fraction | None, size: tuple[int, int]) -> Driving:
    """As many black frames as a video's motion will have: what a plan needs to know."""
    times = [time for time, _ in clip.frames()]
    black = PoseFrames(size, [np.zeros((size[1], size[0], 3), np.uint8)])
    known = [time for time in times if time is not None]
    if len(known) < max(2, len(times)):
        blank = black.reordered([0] * len(times))
        return Driving(skeletons=blank, fps=fps or clip.fps or UNTIMED_FPS, source_size=clip.size, audio=None)
    order, rate = _at_rate(known, clip.fps or mean_rate(known), fps)
    return Driving(skeletons=black.reordered([0] * len(order)), fps=rate, source_size=clip.size, audio=None)


def _faces_beside(
    clip: Clip, start: int | None, stop: int | None, size: tuple[int, int], resize: Mode
) -> np.ndarray | None:
    """Face boxes [t,p,4] of our own skeleton video, from the motion beside it; None where that is another video's."""
    beside = clip.path.with_suffix(".npz")
    if not TAG.items() <= clip.tag.items() or not beside.is_file():
        return None
    motion = load_motion(beside)
    if len(motion) != clip.count or motion.size != clip.size:
        return None
    return _faces(resize_transform(motion.size, size, resize).transform_motion(motion))[start:stop]


def _from_clip(
    clip: Clip,
    first: int,
    fps: Fraction | None,
    size: tuple[int, int],
    resize: Mode,
    reporter: Reporter,
    faces: np.ndarray | None,
) -> Driving:
    there = resize_transform(clip.size, size, resize)
    report_crop(there, clip.path, reporter)
    skeletons, times = PoseFrames(size), []
    with reporter.progress(clip.count, "read motion", "frame") as bar:
        for time, picture in clip.frames():
            # bicubic, as the reference implementation resizes skeleton pictures
            skeletons.append(there.apply_image(picture, resample="bicubic"))
            times.append(time)
            bar.update()
    if not times:
        raise BadInput(clip.path, "no frames", "at least one")
    if None in times or len(times) == 1:
        rate = fps or clip.fps or UNTIMED_FPS
        start = times[0] or Fraction(0)
        audio = (clip.path, start, start + len(times) / rate) if clip.audio else None
        return Driving(
            skeletons=skeletons, fps=rate, source_size=clip.size, audio=audio, faces=faces,
            motion_frames=tuple(range(first, first + len(times))),
        )  # fmt: skip
    own = clip.fps or mean_rate(times)
    order, rate = _at_rate(times, own, fps)
    audio = (clip.path, times[0], times[-1] + 1 / own) if clip.audio else None
    if faces is not None:
        faces = faces[list(order)]
    return Driving(
        skeletons=skeletons.reordered(order),
        fps=rate,
        source_size=clip.size,
        audio=audio,
        faces=faces,
        motion_frames=tuple(first + index for index in order),
        motion_times=tuple(times[index] for index in order),
    )


def _from_motion(
    motion: Motion,
    path: Path,
    start: int | None,
    stop: int | None,
    fps: Fraction | None,
    size: tuple[int, int],
    resize: Mode,
    reporter: Reporter,
) -> Driving:
    indices = range(len(motion))[start:stop]
    if not indices:
        raise BadInput(
            path,
            f"{len(motion)} frames",
            f"frames in {start or 0}:{'' if stop is None else stop}",
            hint="A:B counts from 0 and leaves B out",
        )
    if not motion.present[list(indices)].any():
        raise BadInput(path, "nobody in any frame", "at least one person", hint="choose other --frames")
    there = resize_transform(motion.size, size, resize)
    report_crop(there, path, reporter)

    fitted = there.transform_motion(motion)
    faces = _faces(fitted)[list(indices)]

    def drawn() -> Iterator[np.ndarray]:
        with reporter.progress(len(indices), "draw skeletons", "frame") as bar:
            for index in indices:
                yield draw_skeleton(fitted.keypoints[index][fitted.present[index]], size)
                bar.update()

    skeletons = PoseFrames(size, drawn())
    if motion.times is None:
        return Driving(
            skeletons=skeletons, fps=fps or UNTIMED_FPS, source_size=motion.size, audio=None, faces=faces,
            motion_frames=tuple(indices),
        )  # fmt: skip
    times = [motion.times[index] for index in indices]
    order, rate = _at_rate(times, mean_rate(motion.times), fps)
    return Driving(
        skeletons=skeletons.reordered(order),
        fps=rate,
        source_size=motion.size,
        audio=None,
        faces=faces[list(order)],
        motion_frames=tuple(indices[index] for index in order),
        motion_times=tuple(times[index] for index in order),
    )


def _faces(motion: Motion) -> np.ndarray:
    """Face boxes float[t,p,4], largest person first: the motion's own, else round the face's points."""
    boxes = np.where(np.isfinite(motion.face_boxes), motion.face_boxes, face_box(motion.keypoints))
    boxes = np.where(motion.present[..., None], boxes, np.nan)
    sides = np.nan_to_num(boxes[..., 2:] - boxes[..., :2])
    return boxes[:, np.argsort(-sides.prod(axis=-1).mean(axis=0), kind="stable")]


def _at_rate(times: Sequence[Fraction], own: Fraction, wanted: Fraction | None) -> tuple[Sequence[int], Fraction]:
    """Which frames make a constant rate: all of them where they have it already, else the one shown at each tick."""
    rate = wanted or own
    if rate == own and is_regular(times, own):
        return range(len(times)), rate
    return frame_indices_at(times, rate, 1 / own), rate


def report_crop(there: ResizeTransform, path: Path, reporter: Reporter) -> None:
    """Say it where fitting cuts away or distorts much of what the user gave."""
    (x0, y0, x1, y1), (width, height) = there.box, there.source
    kept = (x1 - x0) * (y1 - y0) / (width * height)
    if kept < 0.9:
        reporter.info(
            f"{path.name}: {1 - kept:.0%} of the picture is cut off at the sides; --resize pad keeps all of it"
        )
    across, down = there.scale
    stretch = max(across, down) / min(across, down)
    if stretch > 1.1:
        reporter.info(f"{path.name}: stretched by {stretch:.2f} on one side, as --resize asks")
