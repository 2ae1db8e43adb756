"""Frames to an H.264 video in MP4 (PyAV, x264), streamed, with the audio of the source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from stableanimator_cli.errors import BadInput, ConfigError, system_reason
from stableanimator_cli.files import MARK, atomic_write, translate_os_errors, write_refused
from stableanimator_cli.media.audio import AudioTrack
from stableanimator_cli.media.decode import ACCURATE
from stableanimator_cli.media.image import check_frame

_SUFFIXES = (".mp4", ".m4v", ".mov")
# x264 cuts a frame into slices of rows by threads: a fixed number keeps files equal on every machine.
_THREADS = 4
# The mark of our files as the last box of the container: free space, which players skip. Metadata are at the beginning
# behind tables that grow with the video, too far from either end of a long one.
_MARK_BOX = (8 + len(MARK)).to_bytes(4, "big") + b"free" + MARK.encode()
_BT709 = 1  # primaries, transfer and matrix of ITU-R BT.709 in the numbering of ITU-T H.273
_SRGB_TRANSFER, _RGB_MATRIX = 13, 0


class VideoWriter:
    """Writes frames to a video, which appears when the ``with`` block ends without an error.

    ``size`` is (width, height), ``fps`` the exact rate. Normally H.264 yuv420p at ``crf`` (17: visually close to
    the source), in BT.709 and tagged so, playable everywhere; both sides must be even. ``lossless`` writes H.264 in
    RGB: any size, exact pixels, but few players show it. ``audio_from`` names a file whose audio is
    added, copied if MP4 can hold it, else as AAC; ``audio_range`` cuts it, in seconds after the first
    frame of that file. Audio ends with the last frame at the latest. ``tag`` is stored in the metadata and read as
    ``Clip.tag``.

    ``finish`` completes the temporary file within the block, for files that may only appear together with the video.

    Raises ``ConfigError`` for invalid sizes, rates and names. Raises ``BadInput`` if the disk is full or the audio
    cannot be read, and ``ValueError`` for a frame that is not uint8[h,w,3] of that size.
    """

    def __init__(
        self,
        path: Path | str,
        size: tuple[int, int],
        fps: Fraction | int,
        *,
        lossless: bool = False,
        audio_from: Path | str | None = None,
        audio_range: tuple[Fraction | float, Fraction | float] | None = None,
        tag: Mapping[str, str] | None = None,
        crf: int = 17,
        preset: str = "medium",
    ) -> None:
        self.path = Path(path)
        self.size = (int(size[0]), int(size[1]))
        self.fps = Fraction(fps)
        self.lossless = lossless
        self.audio_from = None if audio_from is None else Path(audio_from)
        self.audio_range = audio_range
        self.tag = dict(tag or {})
        # x264's macroblock tree reads uninitialised memory: with it the same frames give different files. Without it
        # they give one file; it costs some bits at the same quality.
        quality = {"qp": "0"} if lossless else {"crf": str(crf), "x264-params": "mbtree=0"}
        self.settings = {"preset": preset} | quality
        self.frames = 0
        self._finished = False
        self._check()
        self._stack = contextlib.ExitStack()
        self._scaler = VideoReformatter()
        self._audio: AudioTrack | None = None

    def _check(self) -> None:
        width, height = self.size
        if self.path.suffix.lower() not in _SUFFIXES:
            raise ConfigError("video to write", self.path.name, f"a name ending in {', '.join(_SUFFIXES)}")
        if self.fps <= 0:
            raise ConfigError("fps", str(self.fps), "a rate above 0")
        if width < 1 or height < 1:
            raise ConfigError("size", f"{width}x{height}", "at least 1x1")
        if not self.lossless and (width % 2 or height % 2):
            raise ConfigError(
                "size",
                f"{width}x{height}",
                "an even width and height, which H.264 needs",
                hint=f"use {width + width % 2}x{height + height % 2}, or write lossless",
            )
        if self.audio_range is not None and not 0 <= self.audio_range[0] < self.audio_range[1]:
            raise ConfigError("audio range", self.audio_range, "a start from 0 on and an end after it, in seconds")

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as stack:
            self._part = part = stack.enter_context(atomic_write(self.path, marked=True))
            with self._guarded():
                self._output = av.open(
                    str(part),
                    mode="w",
                    format="mov" if self.path.suffix.lower() == ".mov" else "mp4",
                    options={"movflags": "faststart+use_metadata_tags"},
                )
            stack.callback(self._abandon)
            self._output.metadata.update(self.tag)
            self._add_frame()
            if self.audio_from is not None:
                start, end = self.audio_range or (0, None)
                track = AudioTrack(
                    self.audio_from, self._output, Fraction(start), None if end is None else Fraction(end)
                )
                self._audio = stack.enter_context(track)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The stack sees an error of the block, or of finishing, and then removes the temporary file.
        with self._stack:
            if error is not None:
                raise error
            self.finish()

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, RGB uint8[h,w,3]."""
        check_frame(frame)
        width, height = self.size
        if frame.shape[:2] != (height, width):
            raise ValueError(f"a frame of {frame.shape[1]}x{frame.shape[0]} in a video of {width}x{height}")
        image = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if not self.lossless:
            image = self._scaler.reformat(
                image,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=ACCURATE,
            )
        image.pts = self.frames
        image.time_base = 1 / self.fps
        with self._guarded():
            self._mux(self._stream.encode(image))
            self.frames += 1
            if self._audio is not None:
                self._audio.pump(self.frames / self.fps)

    def _add_frame(self) -> None:
        stream = self._output.add_stream(
            "libx264rgb" if self.lossless else "libx264", rate=self.fps, options=self.settings
        )
        stream.width, stream.height = self.size
        stream.pix_fmt = "rgb24" if self.lossless else "yuv420p"
        stream.time_base = 1 / self.fps
        context = stream.codec_context
        context.time_base = 1 / self.fps
        context.thread_count = _THREADS
        context.color_primaries = _BT709
        context.color_trc = _SRGB_TRANSFER if self.lossless else _BT709
        context.colorspace = _RGB_MATRIX if self.lossless else _BT709
        context.color_range = ColorRange.JPEG if self.lossless else ColorRange.MPEG
        self._stream = stream

    def finish(self) -> None:
        """Complete the video, which still appears at the end of the block. No frame may follow."""
        if self._finished:
            return
        if self.frames == 0:
            raise BadInput(
                self.path, "no frame to write", "at least one frame", hint="the source gave none: look at it"
            )
        with self._guarded():
            self._mux(self._stream.encode(None))
            if self._audio is not None:
                self._audio.finish(self.frames / self.fps)
            self._output.close()
        with translate_os_errors(self.path), self._part.open("ab") as file:
            file.write(_MARK_BOX)
        self._finished = True

    def _mux(self, packets: list[Packet]) -> None:
        for packet in packets:
            # Without a duration the last frame would have none, and the mean rate would be wrong.
            packet.duration = packet.duration or 1
            self._output.mux(packet)

    def _abandon(self) -> None:
        with contextlib.suppress(FFmpegError, OSError):
            self._output.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except FFmpegError as error:
            if isinstance(error, OSError):
                raise write_refused(self.path, error, frame=self.frames) from error
            reason = system_reason(error)
            raise BadInput(
                self.path, f"an encoder that gave up ({reason})", "a video of this size and rate", frame=self.frames
            ) from error
