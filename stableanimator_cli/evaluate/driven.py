"""What a video was driven with, as points of the output's pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.motion.geometry import Mode, fit
from stableanimator_cli.motion.interchange import load_motion
from stableanimator_cli.motion.openpose import load_openpose
from stableanimator_cli.motion.track import largest

KINDS = (".npz", ".json")


def find_poses(path: Path) -> dict[str, Path]:
    """Motions by name: one ``.npz`` or OpenPose ``.json``, or a folder of such files. ``BadInput`` for none."""
    if path.is_file():
        return {path.stem: path}
    files = sorted(path.glob("*.npz")) or sorted(path.glob("*.json")) if path.is_dir() else []
    if not files:
        raise BadInput(
            path, "no motion", "a poses.npz, OpenPose JSON, or a folder of them, one a video",
            hint="`sa preprocess VIDEO -o poses.npz` makes one of a video",
        )  # fmt: skip
    return {file.stem: file for file in files}


def driven_points(
    path: Path, size: tuple[int, int], frames: int, *, resize: Mode = "crop", start: int = 0
) -> np.ndarray:
    """The largest person's points float32[t,134,3] in pixels of ``size``, fitted by ``resize`` as ``sa animate`` does;
    ``start`` is the motion's frame that the video begins with.

    Score 0 where they are absent. ``BadInput`` where the motion is shorter than the video.
    """
    motion = load_motion(path) if path.suffix.lower() == ".npz" else load_openpose(path).motion
    if len(motion) < start + frames:
        raise BadInput(path, f"{len(motion)} frames", f"{start + frames} or more, as the video has")
    motion = fit(motion.size, size, resize).transform_motion(motion)
    who = largest(motion)
    points = motion.keypoints[:, who].copy()
    points[~motion.present[:, who], :, 2] = 0
    return points[start : start + frames]
