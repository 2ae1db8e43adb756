"""Frames to an animated image (GIF or WebP), for pages and messages that show no video."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from stableanimator_cli.config.animate import ANIMATION_SUFFIXES
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.files import MARK, atomic_write, translate_os_errors
from stableanimator_cli.media.encode import VideoWriter
from stableanimator_cli.media.frames_folder import FramesWriter
from stableanimator_cli.media.image import check_frame

_TICKS = {".gif": 10, ".webp": 1}  # milliseconds that the format counts in
_SHORTEST = 11  # milliseconds: browsers show a shorter frame for 100
_QUALITY = 90  # of WebP


class AnimationWriter:
    """Collect frames and write them at the end of the ``with`` block as an animation that repeats, without sound.

    ``size`` is (width, height). GIF has one palette of 256 colours for all frames and counts hundredths of a second,
    WebP counts milliseconds: the start of each frame is rounded. A rate too high for browsers (above 50 or 90) is
    lowered. The file appears complete or not at all. Frames stay in memory. Raises ``ConfigError`` for another suffix,
    ``BadInput`` if the system refuses, ``ValueError`` for a frame of another size.
    """

    def __init__(self, path: Path | str, size: tuple[int, int], fps: Fraction | int) -> None:
        self.path, self.size, self.fps = Path(path), size, Fraction(fps)
        if self.path.suffix.lower() not in ANIMATION_SUFFIXES:
            raise ConfigError(
                "animation to write", self.path.name, f"a name ending in {' or '.join(ANIMATION_SUFFIXES)}"
            )
        self._tick = _TICKS[self.path.suffix.lower()]
        self._shortest = -(-_SHORTEST // self._tick) * self._tick
        self._frames: list[np.ndarray] = []

    @property
    def duration(self) -> float:
        """Mean milliseconds that a frame is shown."""
        return float(max(self._shortest, 1000 / self.fps))

    def durations(self, count: int) -> list[int]:
        """Milliseconds that each frame is shown: whole ticks of the format, whose sum does not drift from ``fps``."""
        starts = [round(index * 1000 / self.fps / self._tick) * self._tick for index in range(count + 1)]
        return [max(self._shortest, end - start) for start, end in itertools.pairwise(starts)]

    def __enter__(self) -> AnimationWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None and self._frames:
            self._save()

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, RGB uint8[h,w,3]."""
        check_frame(frame)
        if frame.shape[1::-1] != self.size:
            raise ValueError(f"a frame of {frame.shape[1]}x{frame.shape[0]} in an animation of {self.size}")
        self._frames.append(np.array(frame))

    def _save(self) -> None:
        durations = self.durations(len(self._frames))
        images, settings = [Image.fromarray(frame) for frame in self._frames], {}
        if self.path.suffix.lower() == ".gif":
            palette = Image.fromarray(np.concatenate([frame[::2, ::2] for frame in self._frames])).quantize(256)
            images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
            settings: dict[str, Any] = {"format": "GIF", "comment": MARK.encode()}
        else:
            settings = {"format": "WEBP", "quality": _QUALITY, "xmp": MARK.encode()}
        with atomic_write(self.path, marked=True) as temp, translate_os_errors(self.path):
            images[0].save(temp, save_all=True, append_images=images[1:], duration=durations, loop=0, **settings)


def write_animation(path: Path | str, frames: Sequence[np.ndarray], fps: Fraction | int) -> None:
    """Write RGB uint8[h,w,3] frames as one ``AnimationWriter`` file."""
    with AnimationWriter(path, frames[0].shape[1::-1], fps) as writer:
        for frame in frames:
            writer.write(frame)


def open_writer(
    path: Path, size: tuple[int, int], fps: Fraction | int, **video: Any
) -> VideoWriter | AnimationWriter | FramesWriter:
    """The writer of an output by its suffix; ``video`` are the options of ``VideoWriter``, which others ignore."""
    if path.suffix.lower() == ".png":
        return FramesWriter(path, size)
    if path.suffix.lower() in ANIMATION_SUFFIXES:
        return AnimationWriter(path, size, fps)
    return VideoWriter(path, size, fps, **video)
