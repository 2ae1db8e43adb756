"""Clips in the reference implementation's layout: ``images``, ``poses`` and ``faces`` with one image per frame.

Files are named ``frame_N`` or ``N`` and belong to frame N. A mask that is white everywhere means that no face was
found. The layout has no face embeddings: ``build_cache`` with a face reader adds ``faces.npz``.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from stableanimator_cli.clip_folder import FaceTable, check_frames, load_faces
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import translate_read_errors
from stableanimator_cli.media import read_image
from stableanimator_cli.media.image import image_size_of
from stableanimator_cli.motion.geometry import Mode, resize_transform
from stableanimator_cli.train.annotations import CELL, Faces, latent_mask
from stableanimator_cli.train.clips import IMAGES, TrainingClip, image_files

POSES, MASKS = "poses", "faces"
_CHECKSUM = 64
"""Bytes at the end of a PNG: the Adler-32 of its pixels (4), the CRC of their chunk (4), the last chunk (12), and room
for a short one between."""
_LAYOUT = "make clip folders with: sa preprocess VIDEOS -o DATASET"


def open_reference_clip(path: Path) -> TrainingClip:
    """Open the clip folder ``path``. Raises ``BadInput`` if it has no frames, or a frame has no skeleton."""
    if not path.is_dir():
        raise BadInput(path, "no such folder", "a folder with images and poses", hint=_LAYOUT)
    images = _by_number(path / IMAGES)
    if not images:
        raise BadInput(path / IMAGES, "no images", "one frame_N.png per frame", hint=_LAYOUT)
    poses, masks = _by_number(path / POSES), _by_number(path / MASKS)
    missing = sorted(set(images) - set(poses))
    if missing:
        problem = f"no skeleton for {len(missing)} of {len(images)} frames (first: {missing[0]})"
        raise BadInput(path / POSES, problem, "a frame_N.png for every frame", hint=_LAYOUT)
    files = image_files(path / IMAGES)
    digest, former = hashlib.sha256(), hashlib.sha256()
    for file in files:
        former.update(line := os.fsencode(f"{file.name} {file.stat().st_size}\n"))
        digest.update(line + _end(file))
    annotations, former_annotations = hashlib.sha256(), hashlib.sha256()
    for folder, found in ((POSES, poses), (MASKS, masks)):
        for number in sorted(images.keys() & found.keys()):  # others are not read
            former_annotations.update(line := f"{folder} {number} {found[number].stat().st_size}\n".encode())
            annotations.update(line + _end(found[number]))
    return TrainingClip(
        name=f"{path.parent.name}/{path.name}",
        path=path,
        frames=len(files),
        size=image_size_of(files[0]),
        key=digest.hexdigest(),
        annotations_key=annotations.hexdigest(),
        former_key=former.hexdigest(),
        former_annotations_key=former_annotations.hexdigest(),
    )


def _end(file: Path) -> bytes:
    """The last bytes of a file. In a PNG they hold the checksum of all pixels; hashing the files at every start would
    take too long."""
    with translate_read_errors(file), file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _CHECKSUM))
        return stream.read(_CHECKSUM)


class ImageAnnotations:
    """``MotionAnnotations`` of one person from images of skeletons and masks, resized like in the reference
    implementation. These images do not distinguish people."""

    people = (0,)

    def __init__(self, clip: TrainingClip) -> None:
        poses, masks = _by_number(clip.path / POSES), _by_number(clip.path / MASKS)
        numbers = [_number(file) for file in image_files(clip.path / IMAGES)]
        self._poses = [poses[number] for number in numbers]
        self._masks = [masks.get(number) for number in numbers]
        file, table = clip.faces_path, FaceTable.of([], "bgr")
        if file.exists():
            table = check_frames(file, load_faces(file), clip.frames)
        self.faces = Faces.of(table, 0)

    def skeleton(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        image = read_image(self._poses[frame])
        return resize_transform(image.shape[1::-1], size, mode).apply_image(image, "bicubic")

    def mask(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        file = self._masks[frame]
        mask = None if file is None else read_image(file)[..., 0]
        if mask is None or mask.min() == 255:
            return np.zeros((size[1] // CELL, size[0] // CELL), np.uint8)
        return latent_mask(np.ascontiguousarray(mask), resize_transform(mask.shape[1::-1], size, mode))

    @property
    def has_faces(self) -> bool:
        return len(self.faces.frame) > 0

    def embedding(self, frame: int, person: int = 0) -> np.ndarray | None:
        return self.faces.embedding(frame)

    def face_box(self, frame: int, person: int = 0) -> np.ndarray | None:
        rows = np.flatnonzero(self.faces.frame == frame)
        return self.faces.boxes[rows[0]] if len(rows) else None

    @property
    def nbytes(self) -> int:
        return 200 * len(self._poses) + self.faces.embeddings.nbytes


def _number(file: Path) -> int:
    """The frame number at the end of a file's name. Raises ``BadInput`` if there is none."""
    match = re.search(r"(\d+)$", file.stem)
    if match is None:
        raise BadInput(file, "a name without a number", "frame_N or N", hint="rename it, or move it elsewhere")
    if len(match[1]) > 12:
        raise BadInput.because(file, f"the number in its name has {len(match[1])} digits", hint="rename it")
    return int(match[1])


def _by_number(folder: Path) -> dict[int, Path]:
    """Images by frame number, empty if ``folder`` is missing. Raises ``BadInput`` for two with one number."""
    found: dict[int, Path] = {}
    for file in image_files(folder) if folder.is_dir() else []:
        other = found.setdefault(_number(file), file)
        if other is not file:
            raise BadInput(file, f"the number of {other.name}", "one image per number", hint="move one of them away")
    return found
