"""Interlaced frames to progressive ones: two moments in alternate lines would be seen as combs at every moving edge."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

from av.error import BlockingIOError as NotYet
from av.error import EOFError as Finished
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from stableanimator_cli.errors import BadInput


def deinterlaced(frames: Iterator[VideoFrame], tick: Fraction) -> Iterator[VideoFrame]:
    """As many frames at the same times, interlaced ones at the moment of their first field.

    FFmpeg's ``bwdif`` interpolates the lines of the other field where they moved. Frames before the first interlaced
    one pass unchanged. ``tick`` is the unit of ``pts`` in seconds. If ``frames`` ends with ``BadInput``, the frames
    before come first.
    """
    filtered: _Deinterlacer | None = None
    try:
        for frame in frames:
            if filtered is not None and filtered.kind != _kind(frame):
                yield from filtered.last()
                filtered = None
            if filtered is None and frame.interlaced_frame:
                filtered = _Deinterlacer(frame, tick)
            if filtered is None:
                yield frame
            else:
                yield from filtered.next(frame)
    except BadInput:
        if filtered is not None:
            yield from filtered.last()
        raise
    if filtered is not None:
        yield from filtered.last()


def _kind(frame: VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


class _Deinterlacer:
    """One filter graph, for frames of one size and pixel format. It returns a frame after it got the next one.

    The first frame is pushed twice: without one before it, ``bwdif`` interpolates all of its second field.
    """

    def __init__(self, frame: VideoFrame, tick: Fraction) -> None:
        self.kind = _kind(frame)
        self.times: deque[int | None] = deque()
        width, height, form = self.kind
        self.graph = Graph()
        source = self.graph.add_buffer(width=width, height=height, format=VideoFormat(form), time_base=tick)
        deinterlace = self.graph.add("bwdif", "mode=send_frame:deint=interlaced")
        sink = self.graph.add("buffersink")
        source.link_to(deinterlace)
        deinterlace.link_to(sink)
        self.graph.configure()
        self.graph.push(frame)
        self.repeats = 1  # in the output

    def next(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        self.times.append(frame.pts)
        self.graph.push(frame)
        return self._finished()

    def last(self) -> Iterator[VideoFrame]:
        self.graph.push(None)
        return self._finished()

    def _finished(self) -> Iterator[VideoFrame]:
        with suppress(NotYet, Finished):
            while True:
                frame = self.graph.pull()
                assert isinstance(frame, VideoFrame)
                if self.repeats:
                    self.repeats -= 1
                    continue
                frame.pts = self.times.popleft()  # the filter has a clock of its own
                yield frame
