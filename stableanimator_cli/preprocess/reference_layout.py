"""The reference implementation's training layout: ``rec|vec/00001/{images,poses,faces}/frame_0.png`` and path lists.

Square videos go to ``rec``, others to ``vec``, by which of 1:1 and 9:16 is nearer. Skeletons are those of
``motion.skeleton``. A face mask is white in every face's box and, as in the original, entirely white if no face was
found. Folders have the numbers of the videos in the list, so a video that was left out leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from stableanimator_cli.clip_folder import FaceTable
from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.media import write_image
from stableanimator_cli.media.image import save_image
from stableanimator_cli.motion.masks import face_mask
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.records import Motion

SQUARE, TALL = "rec", "vec"
LISTS = {SQUARE: "video_rec_path.txt", TALL: "video_vec_path.txt"}
_BETWEEN = math.sqrt(9 / 16)  # the aspect half way, by ratio, between 9:16 and 1:1
_THREADS = 4


def folder_name(number: int, size: tuple[int, int]) -> str:
    """``rec/00001`` or ``vec/00001`` for a video of ``size`` (width, height)."""
    return f"{TALL if size[0] / size[1] < _BETWEEN else SQUARE}/{number:05d}"


def folder_names(number: int) -> tuple[str, str]:
    """Both folders that a video of this number may have."""
    return f"{SQUARE}/{number:05d}", f"{TALL}/{number:05d}"


class ImageWriter:
    """Writes frames as PNGs, several at a time. A batch is on disk before ``add_batch`` returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0

    def __enter__(self) -> ImageWriter:
        self._folder.mkdir(parents=True)
        self._pool = ThreadPoolExecutor(_THREADS)
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add_batch(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> None:
        paths = [self._folder / f"frame_{self._written + k}.png" for k in range(len(frames))]
        self._written += len(frames)
        for _ in self._pool.map(write_image, paths, frames):
            pass


def write_poses(folder: Path, motion: Motion, faces: FaceTable) -> None:
    """``poses/frame_N.png`` and ``faces/frame_N.png`` for every frame of a motion."""
    for name in ("poses", "faces"):
        (folder / name).mkdir()

    def write(index: int) -> None:
        write_image(folder / "poses" / f"frame_{index}.png", draw_frame(motion, index))
        mask = face_mask(faces.boxes[faces.at(index)], motion.size, missing="full")
        # One channel: masks in colour break the shapes of the original's batches.
        save_image(folder / "faces" / f"frame_{index}.png", Image.fromarray(mask), "PNG", compress_level=4)

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(write, range(len(motion))):
            pass


def write_lists(out: Path, folders: Iterable[Path]) -> None:
    """The path lists that the reference implementation's training reads: absolute folders, one per line."""
    lines: dict[str, list[str]] = {kind: [] for kind in LISTS}
    for folder in folders:
        lines[folder.parent.name].append(f"{folder.resolve()}\n")
    for kind, name in LISTS.items():
        with atomic_write(out / name) as temp, translate_os_errors(out / name):
            temp.write_text("".join(lines[kind]), encoding="utf-8", errors="surrogateescape")
