"""Frames as numbered PNG files in a folder of their own, which appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import atomic_write, carries_mark, temporary_path, translate_os_errors
from stableanimator_cli.media.image import check_frame, png_mark

_NUMBERED = re.compile(r"(?!\.)([^%]*)%(?:0[1-9]\d?)?d([^%]*\.png)", re.IGNORECASE)


def is_numbered(name: str) -> bool:
    """Whether ``name`` names numbered PNG files that are not hidden: ``%05d.png``, ``frame_%d.png``."""
    return _NUMBERED.fullmatch(name) is not None


class FramesWriter:
    """Write frames to ``FOLDER/NAME``, as ``frames/%05d.png``, numbered from 0. The pixels are exact.

    The folder appears at the end of the ``with`` block and replaces an earlier one. Raises ``BadInput`` if the system
    refuses, or for a folder that holds anything else (``check_folder``); ``ValueError`` for a frame of another size.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path, self.size, self.frames = path, size, 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> FramesWriter:
        self._part = self._stack.enter_context(_replaced(self.path.parent, self.path.name))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._stack:  # sees an error of the block, and then removes the unfinished folder
            if error is not None:
                raise error

    def write(self, frame: np.ndarray) -> None:
        """Write one frame, RGB uint8[h,w,3]."""
        check_frame(frame)
        if frame.shape[1::-1] != self.size:
            raise ValueError(f"a frame of {frame.shape[1]}x{frame.shape[0]} among frames of {self.size}")
        with translate_os_errors(self.path.parent):
            file = self._part / (self.path.name % self.frames)
            Image.fromarray(frame).save(file, format="PNG", compress_level=4, pnginfo=png_mark())
        self.frames += 1


def check_folder(folder: Path, name: str) -> None:
    """Raise ``BadInput`` unless ``folder`` is missing or empty, or holds only frames of this name that ``sa`` wrote."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        kind = "a link" if folder.is_symlink() else "not a folder"
        raise BadInput.because(folder, f"frames cannot replace it: it is {kind}", hint="choose another -o")
    if os.path.ismount(folder) or folder.samefile(Path.cwd()):
        kind = "a mounted volume" if os.path.ismount(folder) else "the current folder"
        hint = f"name a folder inside it: -o {folder / 'frames'}/"
        raise BadInput.because(folder, f"frames cannot replace it: it is {kind}", hint=hint)
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    ours = re.compile(rf"{re.escape(match[1])}\d+{re.escape(match[2])}")
    for file in sorted(folder.iterdir()):
        if not ours.fullmatch(file.name) or file.is_symlink() or not file.is_file() or not carries_mark(file):
            raise BadInput.because(
                folder, f"it holds {file.name}, which is no earlier frame, so the folder is not replaced",
                hint=f"name a folder of its own: -o {folder / 'frames'}/",
            )  # fmt: skip


@contextlib.contextmanager
def _replaced(folder: Path, name: str) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, which it replaces on success."""
    check_folder(folder, name)
    old = temporary_path(folder.with_name(f"{folder.name}.old"))
    try:
        with atomic_write(folder, folder=True) as part:
            with translate_os_errors(folder):
                part.mkdir()
            yield part
            check_folder(folder, name)
            with translate_os_errors(folder):
                if folder.exists():
                    folder.rename(old)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
