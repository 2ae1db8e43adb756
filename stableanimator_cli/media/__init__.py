"""Images and video to uint8 RGB arrays and back: the only reader and writer of pixels.

Reading: ``open_clip`` (a video, an image, a folder of images), ``take`` (a slice of frames), ``resample`` (another
rate), ``frame_range``, ``read_image``. Writing: ``open_writer`` (``VideoWriter``, ``AnimationWriter`` for GIF and
WebP, ``FramesWriter`` for PNG files), in a thread ``WriterBehind``, ``write_image``, ``write_animation``. Videos
stream: memory does not grow with their length.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import require_file
from stableanimator_cli.media.animation import AnimationWriter, open_writer, write_animation
from stableanimator_cli.media.decode import has_unreadable_audio, open_video
from stableanimator_cli.media.encode import VideoWriter
from stableanimator_cli.media.frames_folder import FramesWriter
from stableanimator_cli.media.image import (
    is_image,
    open_folder,
    open_image,
    read_image,
    write_image,
)
from stableanimator_cli.media.threaded import WriterBehind
from stableanimator_cli.records import Clip

__all__ = [
    "AnimationWriter",
    "FramesWriter",
    "VideoWriter",
    "WriterBehind",
    "frame_range",
    "has_unreadable_audio",
    "open_clip",
    "open_writer",
    "read_image",
    "resample",
    "take",
    "write_animation",
    "write_image",
]

_SOURCE = "a video, an image or a folder of images"
# Containers round times to their own ticks (Matroska: 1 ms), so a frame may seem to start this much too late.
_TICK = Fraction(1, 1000)

Frames = Iterator[tuple[Fraction | None, np.ndarray]]


def open_clip(path: Path | str) -> Clip:
    """Open a video, an image or a folder of images (in natural order; hidden and other files are ignored).

    ``frames()`` of the clip decodes again each time and yields ``(time, RGB uint8[h,w,3])``. Rotation, mirroring, EXIF
    orientation and pixel aspect are applied. 10 and 16 bits become 8; transparency is composited on black. ``time`` is
    the exact timestamp in seconds after the first frame, also at a variable rate. Images and folders have no clock:
    ``time`` and ``fps`` are ``None``. ``fps`` is the mean rate of the container, possibly estimated. ``count`` is
    exact, or ``None`` if only decoding would show it; MP4, MOV, GIF, images and folders store it. ``tag`` is the
    container's metadata.

    One frame is decoded here, for the size as displayed and to reject other files early. Raises ``BadInput`` for these
    and, while iterating, naming the frame, for data that are truncated or change size.
    """
    path = Path(path)
    if path.is_dir():
        return open_folder(path)
    require_file(path, _SOURCE)
    return open_image(path) if is_image(path) else open_video(path)


def frame_range(clip: Clip, start: int | None, stop: int | None) -> tuple[int, int | None]:
    """The index of the first of the frames ``start:stop`` and that behind the last, None if unknown."""
    return (start or 0, stop) if clip.count is None else slice(start, stop).indices(clip.count)[:2]


def take(clip: Clip, start: int | None = None, stop: int | None = None) -> Clip:
    """Frames ``start:stop`` of a clip, half-open, as a Python slice; ``None`` is an open end.

    Frames keep their times (the first need not be at 0), so that audio can be cut to the same range. Raises
    ``ConfigError`` for negative numbers, which count from the end, without ``clip.count``, and ``BadInput`` for a slice
    without frames.
    """
    if start is None and stop is None:
        return clip
    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    total = clip.count
    if total is None and ((start or 0) < 0 or (stop or 0) < 0):
        raise ConfigError(
            "frames",
            text,
            f"numbers from 0, as {clip.path.name} does not record its length",
            hint="re-encode it to MP4",
        )
    first, last = frame_range(clip, start, stop)
    count = None if total is None or last is None else max(0, last - first)
    empty = BadInput(
        clip.path,
        "no frame in the range" if total is None else f"{total} frames",
        f"frames in {text}",
        hint="A:B counts from 0 and leaves B out",
    )
    if count == 0 or (last is not None and last <= first):
        raise empty

    def frames() -> Frames:
        some = False
        # Nothing after the last frame is decoded: the good part of a damaged video can be used.
        for item in itertools.islice(clip.frames(), first, last):
            some = True
            yield item
        if not some:
            raise empty

    return dataclasses.replace(clip, count=count, frames=frames)


def resample(clip: Clip, fps: Fraction | int) -> Clip:
    """The clip at another constant rate: frame n is the one that is shown at ``n / fps`` seconds after the first.

    Timestamps are exact fractions, so a variable rate is exact and the duration is right to a frame. A repeated frame
    is the same array: do not write into it. A clip without a clock only gets times at ``fps``. Raises ``ConfigError``
    for a rate that is not positive.
    """
    rate = Fraction(fps)
    if rate <= 0:
        raise ConfigError("fps", str(fps), "a rate above 0")
    if clip.fps is None:

        def clocked() -> Frames:
            for index, (_, image) in enumerate(clip.frames()):
                yield index / rate, image

        return dataclasses.replace(clip, fps=rate, frames=clocked)
    slack = min(_TICK, 1 / (4 * rate))
    last_span = 1 / clip.fps

    def frames() -> Frames:
        shown = 0
        origin = due = Fraction(0)
        pending: np.ndarray | None = None
        end = Fraction(0)
        for time, image in clip.frames():
            now = Fraction(0) if time is None else time
            if pending is None:
                origin = due = now
            while pending is not None and due + slack < now:
                yield due, pending
                shown += 1
                due = origin + shown / rate
            pending, end = image, now + last_span
        while pending is not None and due + slack < end:
            yield due, pending
            shown += 1
            due = origin + shown / rate

    return dataclasses.replace(clip, fps=rate, count=None, frames=frames)
