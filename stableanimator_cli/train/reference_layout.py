"""A clip of the reference implementation: ``images``, ``poses`` and ``faces`` with a picture a frame.

Names are ``frame_N`` or ``N``; a picture belongs to the frame of its number. A mask that is white all over means that
no face was found, and counts for none. Identity vectors are no part of the layout: ``build_cache`` with a face reader
puts ``faces.npz`` beside the pictures.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stableanimator_cli.clip_folder import FaceTable, check_frames, load_faces
from stableanimator_cli.errors import BadInput
from stableanimator_cli.media import read_picture
from stableanimator_cli.media.image import picture_size
from stableanimator_cli.motion.geometry import Mode, resize_transform
from stableanimator_cli.train.annotations import CELL, Faces, latent_mask
from stableanimator_cli.train.clips import IMAGES, TrainingClip, picture_files

POSES, MASKS = "poses", "faces"
_LAYOUT = "sa preprocess VIDEOS -o OUT makes folders that are whole"


def open_upstream(path: Path) -> TrainingClip:
    """The clip in ``path``. ``BadInput`` where it has no frames, or a frame has no skeleton."""
    if not path.is_dir():
        raise BadInput(path, "nothing there", "a folder with images and poses", hint=_LAYOUT)
    images = _numbered(path / IMAGES)
    if not images:
        raise BadInput(path / IMAGES, "no pictures", "a frame_N.png a frame", hint=_LAYOUT)
    missing = sorted(set(images) - set(_numbered(path / POSES)))
    if missing:
        found = f"no skeleton for {len(missing)} of {len(images)} frames (first: {missing[0]})"
        raise BadInput(path / POSES, found, "a frame_N.png for every frame", hint=_LAYOUT)
    files = picture_files(path / IMAGES)
    size = picture_size(files[0])
    whole = hashlib.sha256()
    for file in files:  # names and bytes: content would have to be read at every start
        whole.update(os.fsencode(f"{file.name} {file.stat().st_size}\n"))
    return TrainingClip(
        name=f"{path.parent.name}/{path.name}", path=path, frames=len(files), size=size, key=whole.hexdigest()
    )


class DrawnClip:
    """Skeletons and masks as pictures, resized as the reference implementation does."""

    def __init__(self, poses: list[Path], masks: list[Path | None], table: FaceTable | None) -> None:
        self._poses = poses
        self._masks = masks
        nobody = FaceTable.of([], "bgr")
        self.faces = Faces.of(table or nobody, 0)

    @classmethod
    def open(cls, clip: TrainingClip) -> DrawnClip:
        numbers = [_number(file) for file in picture_files(clip.path / IMAGES)]
        poses, masks = _numbered(clip.path / POSES), _numbered(clip.path / MASKS)
        file, table = clip.faces_file(), None
        if file.exists():
            table = check_frames(file, load_faces(file), clip.frames)
        return cls([poses[number] for number in numbers], [masks.get(number) for number in numbers], table)

    def skeleton(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        picture = read_picture(self._poses[frame])
        return resize_transform(picture.shape[1::-1], size, mode).apply_image(picture, "bicubic")

    def mask(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        file = self._masks[frame]
        mask = None if file is None else read_picture(file)[..., 0]
        if mask is None or mask.min() == 255:
            return np.zeros((size[1] // CELL, size[0] // CELL), np.uint8)
        return latent_mask(np.ascontiguousarray(mask), resize_transform(mask.shape[1::-1], size, mode))

    def face_box(self, frame: int) -> np.ndarray | None:
        rows = np.flatnonzero(self.faces.frame == frame)
        return self.faces.boxes[rows[0]] if len(rows) else None

    def bytes(self) -> int:
        return 200 * len(self._poses) + self.faces.vectors.nbytes


def _number(file: Path) -> int:
    """The frame that a picture is of: the number its name ends with. ``BadInput`` where there is none."""
    match = re.search(r"(\d+)$", file.stem)
    if match is None:
        raise BadInput(file, "a name without a number", "frame_N or N", hint="rename it, or move it elsewhere")
    if len(match[1]) > 12:
        raise BadInput.because(file, f"the number in its name has {len(match[1])} digits", hint="rename it")
    return int(match[1])


def _numbered(folder: Path) -> dict[int, Path]:
    """Pictures by their number; none where there is no folder. ``BadInput`` where two have one number."""
    files: Iterable[Path] = picture_files(folder) if folder.is_dir() else ()
    found: dict[int, Path] = {}
    for file in files:
        other = found.setdefault(_number(file), file)
        if other is not file:
            raise BadInput(file, f"the number of {other.name}", "a number a picture", hint="move one of the two away")
    return found
