"""A small video of the skeletons of a motion file, so that people see what they chose."""

from __future__ import annotations

from pathlib import Path

from stableanimator_cli.media import VideoWriter
from stableanimator_cli.motion.frame_rate import mean_rate
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.motion_file import UNTIMED_FPS, load_motion
from stableanimator_cli.motion.skeleton import draw_frame

LONGEST_SIDE, FRAMES = 256, 96


def write_motion_preview(motion_file: Path, target: Path) -> Path:
    """Draw the first frames of a motion ``.npz`` into the video ``target``. Raises ``BadInput``."""
    motion = load_motion(motion_file)
    scale = LONGEST_SIDE / max(motion.size)
    width, height = (max(2, 2 * round(side * scale / 2)) for side in motion.size)
    motion = resize_transform(motion.size, (width, height), "stretch").transform_motion(motion)
    rate = UNTIMED_FPS if motion.times is None else mean_rate(motion.times)
    with VideoWriter(target, (width, height), rate) as video:
        for index in range(min(FRAMES, len(motion))):
            video.write(draw_frame(motion, index))
    return target
