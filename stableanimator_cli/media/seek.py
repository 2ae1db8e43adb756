"""Random access to single frames of a video: ``frames_at``."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stableanimator_cli.media.decode import _Converter, open_container, video_stream


@dataclass(frozen=True, slots=True)
class _Index:
    """Timestamps of all frames in display order, and those of key frames."""

    times: tuple[int, ...]
    starts: tuple[int, ...]


def frames_at(path: Path, numbers: Sequence[int], count: int) -> dict[int, np.ndarray] | None:
    """The frames ``numbers`` of a video as uint8[h,w,3] RGB, equal to those of ``open_clip``.

    Decodes from the last key frame before each. None if this is not possible: another number of frames than ``count``,
    missing or repeated timestamps, frames removed by an edit list, interlaced frames, alpha, damage. Decode it from its
    start then.
    """
    state = path.stat()
    index = _index(path, state.st_size, state.st_mtime_ns)
    if index is None or len(index.times) != count or not all(0 <= number < count for number in numbers):
        return None
    try:
        return _read(path, sorted(set(numbers)), index)
    except FFmpegError:
        return None


def _read(path: Path, numbers: Sequence[int], index: _Index) -> dict[int, np.ndarray] | None:
    found: dict[int, np.ndarray] = {}
    with open_container(path) as container:
        stream = video_stream(container, path)
        convert = _Converter(stream, path)
        frames: Iterator[VideoFrame] = iter(())
        reached = -1  # the timestamp up to which frames were decoded
        for number in numbers:
            time = index.times[number]
            start = index.starts[bisect.bisect_right(index.starts, time) - 1]
            if reached < start:
                frames = _forward(container, stream, start)
            for frame in frames:
                reached = time if frame.pts is None else frame.pts
                if reached >= time:
                    break
            else:
                return None
            if frame.pts != time or frame.is_corrupt or frame.interlaced_frame:
                return None
            found[number] = convert(frame, number)
    return found


def _forward(container: InputContainer, stream: VideoStream, time: int) -> Iterator[VideoFrame]:
    """Frames from a key frame onwards."""
    container.seek(time, stream=stream)
    for frame in container.decode(stream):
        if frame.pts is None or frame.pts >= time:  # earlier frames may lack their references
            yield frame


@lru_cache(maxsize=4096)
def _index(path: Path, size: int, modified: int) -> _Index | None:
    """The index from packets, without decoding; cached per version of a file."""
    times: list[int] = []
    starts: list[int] = []
    with open_container(path) as container:
        stream = video_stream(container, path)
        if stream.metadata.get("alpha_mode") == "1":
            return None
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.pts is None or packet.is_discard or packet.is_corrupt:
                    return None
                times.append(packet.pts)
                if packet.is_keyframe:
                    starts.append(packet.pts)
        except FFmpegError:
            return None
    times.sort()
    starts.sort()
    if not starts or starts[0] != times[0] or len(set(times)) != len(times) or times[0] < 0:
        return None
    return _Index(tuple(times), tuple(starts))
