"""Conversion of motions: ``poses.npz``, OpenPose JSON, plain arrays, skeleton videos and images.

Among npz, JSON and arrays nothing that both formats hold is changed. A skeleton video keeps its motion beside it, as
scores and order cannot be read from drawings.
"""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import numpy as np

from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.config.schema import to_toml
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import atomic_write, check_apart, locked_output, require_file, translate_os_errors
from stableanimator_cli.media import VideoWriter, open_clip, resample, take, write_image
from stableanimator_cli.media.decode import VIDEO_SUFFIXES
from stableanimator_cli.media.image import is_image
from stableanimator_cli.media.numbering import warn_of_missing_numbers
from stableanimator_cli.motion.keypoints import COUNT, face_box, from_wholebody, to_wholebody
from stableanimator_cli.motion.motion_file import (
    LONGEST_SIDE,
    UNTIMED_FPS,
    check_points,
    load_motion,
    save_motion,
    write_array,
)
from stableanimator_cli.motion.openpose import load_openpose, save_openpose
from stableanimator_cli.motion.repair import smoothed
from stableanimator_cli.motion.skeleton import TAG, draw_frame, is_tagged, looks_like_skeleton
from stableanimator_cli.motion.track import select
from stableanimator_cli.preprocess.clip import person_of
from stableanimator_cli.preprocess.inputs import count_frames
from stableanimator_cli.preprocess.outputs import check_files, inputs_of, poses_files, remove_unfinished
from stableanimator_cli.preprocess.poses import (
    Reference,
    align_to,
    even_frames,
    read_reference,
    write_poses,
    write_poses_and_preview,
)
from stableanimator_cli.preprocess.report import PreprocessPlan, PreprocessReport
from stableanimator_cli.progress import Reporter
from stableanimator_cli.readers import read_npy
from stableanimator_cli.records import Clip, ModelFolder, Motion

VIDEOS = (".mp4", ".mov", ".m4v")
MOTIONS = (".npz", ".npy", ".json")
_WHOLEBODY = 133
_CHECKED_FRAMES = 8


def is_motion(inputs: Sequence[Path]) -> bool:
    """Whether the only input is a motion: a file of keypoints, a folder of JSON, or drawn skeletons."""
    if len(inputs) != 1:
        return False
    path = inputs[0]
    if path.is_file() and path.suffix.lower() in MOTIONS:
        return True
    if path.is_dir() and any(path.glob("*.json")):
        files = [file for file in path.iterdir() if file.is_file()]
        if any(file.suffix.lower() in VIDEO_SUFFIXES for file in files) and not any(path.glob("*_keypoints.json")):
            return False  # JSON beside videos describes them: run records, or what a downloader writes
        return not any(map(is_image, files)) and not _is_dataset(path)
    return _is_skeletons(path)


def run(
    config: PreprocessConfig, reporter: Reporter, model: ModelFolder | None = None, *, plan_only: bool = False
) -> PreprocessReport | PreprocessPlan:
    """Convert the only input to ``-o``, to ``--poses`` or to both. ``model`` detects the person of ``--reference``.

    ``plan_only``: check and count, write nothing.
    """
    path = config.inputs[0]
    warn_of_missing_numbers(path, reporter)
    outputs = [one for one in dict.fromkeys((config.output, config.poses)) if one is not None]
    if not outputs:
        raise ConfigError("--output", None, "a motion to write: .npz, .json, .npy, .mp4 or a folder")
    beside = path.with_suffix(".npz")
    drawn = path.suffix.lower() not in MOTIONS and _is_skeletons(path)
    pixels = drawn and not beside.is_file()
    inputs = inputs_of(config) + ([beside] if drawn and not pixels else [])
    for output in outputs:
        _check_output(output, config, inputs)
    if pixels:
        _check_drawings(path, outputs, config)
    _warn_of_no_effect(config, outputs, reporter)
    if plan_only:
        frames = (
            count_frames(path, config.frames, config.fps)
            if pixels
            else len(read_motion(beside if drawn else path, config, reporter))
        )
        return PreprocessPlan(
            data={"output": str(outputs[0]), "frames": frames, "config": tomllib.loads(to_toml(config))}
        )
    with ExitStack() as locks:
        for output in outputs:
            locks.enter_context(locked_output(output, "sa preprocess"))
            remove_unfinished([output, *_files(output, config)])
        if pixels:
            return _copy_drawings(path, outputs, config, reporter)
        if drawn:
            reporter.info(f"{path.name}: its motion is read from {beside.name}")
        return _convert(beside if drawn else path, config, reporter, model)


def _warn_of_no_effect(config: PreprocessConfig, outputs: Sequence[Path], reporter: Reporter) -> None:
    """One warning of options about another form of output."""
    suffixes = {one.suffix.lower() for one in outputs}
    unused = [
        flag
        for flag, given, suffix in (("--to", config.to != "json", ""), ("--order", config.order != "134", ".npy"))
        if given and suffix not in suffixes
    ]
    if unused:
        reporter.warning(f"{', '.join(unused)}: no effect on {', '.join(one.name for one in outputs)}")


def _check_output(output: Path, config: PreprocessConfig, inputs: Sequence[Path]) -> None:
    """Raise ``BadInput`` for an output that is an input or may not be replaced."""
    check_apart(output, inputs)
    check_files(_files(output, config), inputs)


def _files(output: Path, config: PreprocessConfig) -> list[Path]:
    """The files that are written for ``output``; none if it is a folder."""
    if config.poses == output:
        return poses_files(config)
    video = output.suffix.lower() in VIDEOS
    return [output, output.with_suffix(".npz")] if video else [output] if output.suffix else []


def _convert(path: Path, config: PreprocessConfig, reporter: Reporter, model: ModelFolder | None) -> PreprocessReport:
    motion = read_motion(path, config, reporter)
    reference = None if model is None else open_reference(config, model)
    motion, alignment = align_to(reference, motion, config, reporter)
    if config.output is not None:
        write_motion(config.output, motion, config, reporter)
    poses = None
    if config.poses is not None:
        poses = write_poses_and_preview(config, motion, alignment, reference, reporter)
    return PreprocessReport(output=config.output or config.poses or path, frames=len(motion), poses=poses)


def open_reference(config: PreprocessConfig, model: ModelFolder) -> Reference | None:
    """The image of ``--reference`` and its person's keypoints."""
    if config.reference is None:
        return None
    return read_reference(config.reference, Detectors.open(model, config.device, faces=False))


def read_motion(path: Path, config: PreprocessConfig, reporter: Reporter) -> Motion:
    """A motion from any file of keypoints, after ``--frames``, ``--fps``, ``--person``, ``--people``, ``--smooth``."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        motion = load_motion(path)
    elif suffix == ".npy":
        motion = _from_array(path, config.size, reporter)
    else:
        read = load_openpose(path, size=config.size)
        motion = read.motion
        if read.size_from == "extent":
            _warn_of_guessed_size(path, motion.size, reporter)
    if config.size not in (None, motion.size):
        reporter.warning(f"--size: no effect on {path.name}, which has a size of {motion.size[0]}x{motion.size[1]}")
    if config.frames is not None:
        motion = _take(motion, range(len(motion))[slice(*config.frames)])
        if not len(motion):
            first, last = config.frames
            text = f"frames in {'' if first is None else first}:{'' if last is None else last}"
            raise BadInput(path, "no frame in the range", text)
    if config.fps is not None:
        indices, rate = range(len(motion)), config.fps
        if motion.times is not None:
            indices, rate = even_frames(motion, config.fps)
        motion = dataclasses.replace(_take(motion, indices), times=tuple(k / rate for k in range(len(indices))))
    if config.person is not None or config.people is not None:
        motion = select(motion, person_of(config))
    return smoothed(motion, config.smooth) if config.smooth else motion


def _warn_of_guessed_size(path: Path, size: tuple[int, int], reporter: Reporter) -> None:
    guess = f"{size[0]}x{size[1]} is guessed; --size gives it"
    reporter.warning(f"{path.name}: the size of its frames is unknown, {guess}")


def write_motion(output: Path, motion: Motion, config: PreprocessConfig, reporter: Reporter) -> None:
    """Write a motion in the format of the name ``output``. Raises ``BadInput`` if it cannot be written."""
    suffix = output.suffix.lower()
    if suffix == ".npz":
        save_motion(output, motion)
    elif suffix == ".json":
        save_openpose(output, motion)
    elif suffix == ".npy":
        points = np.where(motion.present[..., None, None], motion.keypoints, np.float32(0))
        write_array(output, to_wholebody(points) if config.order == "133" else points)
    elif suffix in VIDEOS:
        write_poses(output, motion, fps=config.fps, reporter=reporter)
    elif suffix:
        expected = "a name ending in .npz, .json, .npy or .mp4, or a folder without one"
        raise ConfigError("--output", str(output), expected)
    elif config.to == "json":
        save_openpose(output, motion)
    else:
        _write_images(output, (draw_frame(motion, index) for index in range(len(motion))))


def _take(motion: Motion, indices: Sequence[int]) -> Motion:
    frames = list(indices)
    return dataclasses.replace(
        motion,
        keypoints=motion.keypoints[frames],
        present=motion.present[frames],
        face_boxes=motion.face_boxes[frames],
        times=None if motion.times is None else tuple(motion.times[frame] for frame in frames),
    )


def _from_array(path: Path, size: tuple[int, int] | None, reporter: Reporter) -> Motion:
    """float[t,133,3], [t,134,3], [t,p,133,3] or [t,p,134,3]: COCO-WholeBody's order or ours, x and y in pixels."""
    expected = "points of the shape [t,p,134,3] or [t,p,133,3] (.npy)"
    array = read_npy(require_file(path, expected), expected)
    found = f"{array.dtype}{list(array.shape)}"
    if array.ndim == 3:
        array = array[:, None]
    fits = array.ndim == 4 and array.shape[2] in (COUNT, _WHOLEBODY) and array.shape[3] == 3 and len(array) > 0
    if not fits or not np.issubdtype(array.dtype, np.floating):
        raise BadInput(path, found, expected)
    check_points(path, np.nan_to_num(array, posinf=0, neginf=0), np.ones(array.shape[:2], bool))
    points = array.astype(np.float32)
    points = np.where(np.isfinite(points).all(axis=-1, keepdims=True), points, np.float32(0))
    present = np.asarray((points[..., 2] > 0).any(axis=-1))
    points = from_wholebody(points) if points.shape[2] == _WHOLEBODY else points
    if size is None:
        extent = points[points[..., 2] > 0][:, :2].max(axis=0, initial=1.0)
        size = int(np.ceil(extent[0])), int(np.ceil(extent[1]))
        if max(size) > LONGEST_SIDE:
            found = f"points as far as {size[0]}x{size[1]}"
            raise BadInput(path, found, f"points within {LONGEST_SIDE} pixels", hint="give the frames' --size")
        _warn_of_guessed_size(path, size, reporter)
    return Motion(
        keypoints=points,
        present=present,
        track=np.arange(present.shape[1], dtype=np.int64),
        face_boxes=np.where(present[..., None], face_box(points), np.float32(np.nan)),
        size=size,
        times=None,
    )


def _is_dataset(path: Path) -> bool:
    return any((path / name).exists() for name in ("clip.json", "puppets.json", "report.json"))


def _is_skeletons(path: Path) -> bool:
    """Whether a video or a folder of images shows drawn skeletons: by its tag, else by most of its first frames."""
    has_images = path.is_dir() and any(is_image(file) for file in path.iterdir() if file.is_file())
    if not has_images and path.suffix.lower() not in VIDEOS:
        return False
    try:
        clip = open_clip(path)
        if is_tagged(clip.tag):
            return True
        frames = [frame for _, frame in itertools.islice(clip.frames(), _CHECKED_FRAMES)]
    except BadInput:
        return False  # reported when it is opened as a video
    return sum(map(looks_like_skeleton, frames)) * 2 > len(frames)


def _check_drawings(path: Path, outputs: Sequence[Path], config: PreprocessConfig) -> None:
    """Raise ``BadInput`` for what needs the points of skeletons that are there as pixels alone."""
    needing = [
        flag
        for flag, given in (
            ("--align", config.align != "none"), ("--reference", config.reference), ("--person", config.person),
            ("--people", config.people), ("--smooth", config.smooth), ("--preview", config.preview),
        )
        if given
    ]  # fmt: skip
    forms = [one for one in outputs if one.suffix and one.suffix.lower() not in VIDEOS]
    if needing or forms:
        beside = f"{path.with_suffix('.npz').name} beside it"
        raise BadInput(
            path, "drawn skeletons without the motion beside them", f"{beside} for {needing[0]}" if needing else beside,
            hint="scores and points cannot be read back from a drawing: convert the motion that it was drawn from, or "
            "detect in the original video",
        )  # fmt: skip


def _drawings(path: Path, config: PreprocessConfig) -> Clip:
    clip = take(open_clip(path), *(config.frames or (None, None)))
    return clip if config.fps is None else resample(clip, config.fps)


def _copy_drawings(
    path: Path, outputs: Sequence[Path], config: PreprocessConfig, reporter: Reporter
) -> PreprocessReport:
    """Convert a skeleton video to images, or images to a video, without changing a pixel."""
    frames = 0
    for output in outputs:
        clip = _drawings(path, config)
        if output.suffix:
            frames = _write_video(output, clip, reporter)
        else:
            frames = _write_images(output, (image for _, image in clip.frames()))
    return PreprocessReport(output=outputs[0], frames=frames)


def _write_video(output: Path, clip: Clip, reporter: Reporter) -> int:
    rate = Fraction(clip.fps or UNTIMED_FPS)
    with (
        VideoWriter(output, clip.size, rate, lossless=True, tag=TAG) as video,
        reporter.progress(clip.count, "convert", "frame") as bar,
    ):
        for _, image in clip.frames():
            video.write(image)
            bar.update()
    return video.frames


def _write_images(output: Path, images: Iterable[np.ndarray]) -> int:
    """``frame_0.png`` and so on, in a folder that appears complete."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(output, "an existing path", "a new or an empty folder", hint="choose another -o")
    count = 0
    with atomic_write(output, folder=True) as temp, translate_os_errors(output):
        temp.mkdir()
        for image in images:
            write_image(temp / f"frame_{count}.png", image)
            count += 1
    return count
