"""REFERENCE and MOTION as files: opened before torch is imported, so that a mistake is reported at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stableanimator_cli.clip_folder import MOTION, RECORD, is_clip
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.errors import BadInput, command
from stableanimator_cli.files import require_file
from stableanimator_cli.media import open_clip, read_image
from stableanimator_cli.media.image import is_image
from stableanimator_cli.motion.motion_file import load_motion
from stableanimator_cli.motion.openpose import load_openpose

SMALLEST_REFERENCE = 32  # pixels per side


def check_inputs(config: AnimateConfig) -> None:
    """Raise ``BadInput`` if REFERENCE is no image or MOTION no motion, with a hint if they are swapped."""
    reference, motion = config.reference, config.motion
    require_file(reference, "an image (PNG, JPEG, WebP or BMP)")
    if not motion.is_dir():
        require_file(motion, "a video, a folder of images, a motion (.npz) or OpenPose JSON")
    try:
        read_reference(reference)
    except BadInput:
        if not _is_motion(reference):
            raise
        hint = "name an image of the person first, then the motion"
        if motion.is_file() and is_image(motion):
            hint = f"swapped? {command('sa', 'animate', motion, reference, '-o', config.output)}"
        raise BadInput(reference, "a video or a motion", "an image of the person", hint=hint) from None
    for path in config.people.face_files.values():
        read_reference(require_file(path, "an image of the face (PNG, JPEG, WebP or BMP)"))
    check_motion(motion)


def read_reference(path: Path) -> np.ndarray:
    """Read the reference image, RGB uint8[h,w,3]. Raises ``BadInput`` if it is missing, damaged or too small."""
    image = read_image(path)
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_REFERENCE:
        raise BadInput(
            path,
            f"{width}x{height} pixels",
            f"an image of {SMALLEST_REFERENCE} pixels per side or more",
            hint="use a larger image of the person",
        )
    return image


def check_motion(path: Path) -> None:
    """Open a motion in any accepted form, without the frames of a video. Raises ``BadInput``."""
    if is_clip(path):
        load_motion(path / MOTION)
    elif clips := sorted(path.glob(f"*/{RECORD}")):
        hint = f"name one of them: {clips[0].parent}"
        raise BadInput(path, f"a folder of {len(clips)} clip(s)", "one motion", hint=hint)
    elif path.suffix.lower() == ".npz" and path.is_file():
        load_motion(path)
    elif is_openpose(path):
        load_openpose(path)
    else:
        open_clip(path)


def is_openpose(path: Path) -> bool:
    """Whether ``path`` is a .json file, or a folder of them without images."""
    if not path.is_dir():
        return path.suffix.lower() == ".json" and path.is_file()
    return any(path.glob("*.json")) and not any(is_image(file) for file in path.iterdir() if file.is_file())


def _is_motion(path: Path) -> bool:
    """Whether a file that is no image is a motion."""
    try:
        check_motion(path)
    except BadInput:
        return False
    return not is_image(path)
