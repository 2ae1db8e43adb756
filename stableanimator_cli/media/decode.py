"""Video files to a stream of (time, RGB uint8[h,w,3]) by PyAV (FFmpeg); the entry point is ``media.open_clip``.

Rotation, mirroring, pixel aspect, colour matrix and range, bit depth, high dynamic range, interlacing and alpha are
converted here, so that no other module handles them.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from stableanimator_cli.errors import BadInput, system_reason
from stableanimator_cli.files import require_file
from stableanimator_cli.media.declared_end import early_end
from stableanimator_cli.media.deinterlace import deinterlaced
from stableanimator_cli.media.image import on_black
from stableanimator_cli.media.tone_map import is_high_dynamic_range, to_srgb
from stableanimator_cli.records import Clip

ACCURATE = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
"""Of files that a folder of videos is searched for; a file that is named may have any."""
_VIDEO = "a video (MP4, MOV, WebM, MKV, GIF ...)"
_UNDECODABLE = "a frame that cannot be decoded"
_AGAIN = "copy or download it again, or re-encode it to MP4"
_UNKNOWN_MATRIX = frozenset({2, 3})  # AVCOL_SPC_UNSPECIFIED, AVCOL_SPC_RESERVED (ITU-T H.273, table 4)
_SQUARE = Fraction(1, 100)  # pixel aspects nearer to 1 than this are rounding of the encoder


def open_video(path: Path) -> Clip:
    """The video in ``path`` as a clip. One frame is decoded, for size and rotation; see ``media.open_clip``."""
    with open_container(path) as container:
        stream = video_stream(container, path)
        first = _first_frame(container, stream, path)
        height, width = _Converter(stream, path)(first, 0).shape[:2]
        return Clip(
            path=path,
            size=(width, height),
            fps=_mean_rate(stream),
            count=_count(stream),
            audio=audio_stream(container) is not None,
            frames=lambda: _frames(path, (width, height)),
            tag=dict(container.metadata),
        )


def first_time(path: Path) -> Fraction:
    """Seconds on the file's own clock at which its video starts, or the file if it has no video."""
    with open_container(path) as container:
        if any(True for _ in _video_streams(container)):
            stream = video_stream(container, path)
            frame = _first_frame(container, stream, path)
            return Fraction(0) if frame.pts is None else frame.pts * _tick(stream)
        return Fraction(container.start_time or 0, av.time_base)


def open_container(path: Path) -> InputContainer:
    """Open ``path`` for reading. Raises ``BadInput`` for a file that FFmpeg cannot open."""
    require_file(path, _VIDEO)
    try:
        # With the prefix a name such as "a:b.mp4" is no protocol.
        return av.open(f"file:{path}", mode="r", metadata_errors="replace")
    except FFmpegError as error:
        raise BadInput(path, f"data that is no video or image ({system_reason(error)})", _VIDEO, hint=_AGAIN) from error


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first video stream; the cover image of a song is none."""
    stream = next(_video_streams(container), None)
    if stream is None:
        kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
        raise BadInput(path, f"a file without video (it holds {kinds})", _VIDEO, hint="choose another file")
    return stream


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The first audio stream that can be decoded: phones and broadcasts add codecs that FFmpeg does not know."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def has_unreadable_audio(path: Path) -> bool:
    """Whether ``path`` has sound, none of which can be decoded. False for anything but a video."""
    with suppress(BadInput), open_container(path) as container:
        return bool(container.streams.audio) and audio_stream(container) is None
    return False


def _video_streams(container: InputContainer) -> Iterator[VideoStream]:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            yield stream


def _first_frame(container: InputContainer, stream: VideoStream, path: Path) -> VideoFrame:
    for frame in _decoded(container, stream, path):
        return frame
    raise AssertionError("a stream without frames is refused by _decoded")


def _frames(path: Path, size: tuple[int, int]) -> Iterator[tuple[Fraction | None, np.ndarray]]:
    with open_container(path) as container:
        stream = video_stream(container, path)
        rate, tick = _mean_rate(stream) or Fraction(25), _tick(stream)
        convert = _Converter(stream, path)
        origin: Fraction | None = None
        for index, frame in enumerate(deinterlaced(_decoded(container, stream, path), tick)):
            pixels = convert(frame, index)
            if pixels.shape[1::-1] != size:
                raise BadInput(
                    path,
                    f"{pixels.shape[1]}x{pixels.shape[0]} pixels",
                    f"{size[0]}x{size[1]} as the first frame",
                    frame=index,
                    hint="re-encode it at one size",
                )
            # Streams without a clock (raw H.264) have their nominal rate.
            time = index / rate if frame.pts is None else frame.pts * tick
            origin = time if origin is None else origin
            yield time - origin, pixels


def _decoded(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[VideoFrame]:
    """Frames in display order; ``BadInput`` names the first missing frame, if one is damaged or the data end early.

    Frames buffered in the decoder are yielded first, so the named frame is exact. Errors before the first frame are
    ignored if frames follow: recordings often start between two key frames.
    """
    decoder = _decoder(stream)
    indexed = _indexed(stream)
    strict = "mpegts" not in container.format.name  # broadcasts mark packets that decode well
    early = early_end(path, container.format.name)
    packets = shown = 0
    last: VideoFrame | None = None
    trouble: str | None = None
    damage = _Damage(stream, strict=strict)
    try:
        for packet in _without_last(container.demux(stream)) if early else container.demux(stream):
            packets += packet.size > 0
            if packet.is_corrupt and strict:
                trouble = "a cut-off frame"
                break
            damage.sent(packet)
            try:
                frames = decoder.decode(packet if packet.size else None)
            except FFmpegError as error:
                trouble = f"data that cannot be decoded ({system_reason(error)})"
                if shown:
                    break
                continue
            for frame in frames:
                if (problem := damage.problem(frame)) and shown:
                    raise _broken(path, problem, shown, indexed)
                yield (last := frame)
                shown += 1
                trouble = None
        else:
            trouble = trouble or early or _early_end(container, stream, packets, indexed, last)
    except FFmpegError as error:
        trouble = f"data that cannot be read ({system_reason(error)})"
    for frame in _drained(decoder):
        if (problem := damage.problem(frame)) and shown:
            raise _broken(path, problem, shown, indexed)
        yield frame
        shown += 1
    if not shown:
        found = "no frame at all" if trouble is None else trouble
        raise BadInput(path, found, "at least one frame", frame=None if trouble is None else 0, hint=_AGAIN)
    if trouble is None and damage.any():
        trouble = _UNDECODABLE
    if trouble is not None:
        raise _broken(path, trouble, shown, indexed)


def _without_last(packets: Iterator[Packet]) -> Iterator[Packet]:
    """All but the last packet, of which a part may be missing, and nothing that flushes the decoder."""
    filled = (packet for packet in packets if packet.size)
    return (packet for packet, _ in itertools.pairwise(filled))


def _broken(path: Path, trouble: str, good: int, indexed: int | None) -> BadInput:
    of_total = f" of {indexed}" if indexed else ""
    return BadInput(
        path,
        trouble,
        f"a complete video (frames 0 to {good - 1}{of_total} are good)",
        frame=good,
        hint=f"copy or download it again, or use the frames 0:{good}",
    )


class _Damage:
    """Times of packets whose frames are due. FFmpeg drops damaged frames of H.264 and HEVC without an error, and the
    frames behind them would move up. Fields of interlaced video are packets of their own, so it is not followed.
    Decoders of older codecs paint over damage, and mark those frames, which ``strict`` refuses."""

    def __init__(self, stream: VideoStream, *, strict: bool) -> None:
        self.strict = strict
        self.followed = stream.codec_context.codec.canonical_name in ("h264", "hevc")
        self.due: set[int] = set()

    def sent(self, packet: Packet) -> None:
        if self.followed and packet.size and packet.pts is not None and not packet.is_discard:
            self.due.add(packet.pts)

    def problem(self, frame: VideoFrame) -> str | None:
        """The problem of a frame that is damaged itself, or before which one was dropped."""
        if self._before(frame):
            return _UNDECODABLE
        return "a damaged frame" if frame.is_corrupt and self.strict else None

    def _before(self, frame: VideoFrame) -> bool:
        """Whether a frame was dropped before this one, in display order."""
        self.followed = self.followed and frame.pts is not None and not frame.interlaced_frame
        if not self.followed or frame.pts is None:
            return False
        earlier = {time for time in self.due if time < frame.pts}
        self.due -= earlier | {frame.pts}
        return bool(earlier)

    def any(self) -> bool:
        return self.followed and bool(self.due)


def _drained(decoder: Any) -> list[VideoFrame]:
    try:
        return list(decoder.decode(None))
    except FFmpegError:  # already flushed, or too broken to give more
        return []


def _decoder(stream: VideoStream) -> Any:
    # FFmpeg's own VP8 and VP9 decoders drop the alpha channel of WebM; those of libvpx keep it.
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.codec.canonical_name)
    if name is not None and stream.metadata.get("alpha_mode") == "1":
        return av.CodecContext.create(name, "r")
    return stream.codec_context


def _early_end(
    container: InputContainer, stream: VideoStream, packets: int, indexed: int | None, last: VideoFrame | None
) -> str | None:
    """The problem of a file that ended without an error but before the end in its header, else None."""
    if indexed is not None and packets < indexed:
        return f"the end of the data after {packets} of {indexed} frames"
    if "matroska" not in container.format.name or last is None or last.pts is None:
        return None
    promised = _clock(stream.metadata.get("DURATION", ""))
    if promised is None and container.duration is not None and len(container.streams) == 1:
        promised = Fraction(container.duration, av.time_base)
    frame = 1 / (_mean_rate(stream) or Fraction(25))
    end = last.pts * _tick(stream) + frame
    if promised is not None and promised - end > max(2 * frame, Fraction(1, 10)):
        return f"the end of the data at {float(end):.2f} s of {float(promised):.2f} s"
    return None


def _clock(text: str) -> Fraction | None:
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text)
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3])


def _indexed(stream: VideoStream) -> int | None:
    """Number of packets in the index of an MP4 or MOV, None if it is incomplete, as in fragmented files."""
    entries = len(stream.index_entries)
    return entries if entries > 0 and entries == stream.frames and "mp4" in stream.container.format.name else None


def _count(stream: VideoStream) -> int | None:
    """Number of displayed frames: the index without entries that an edit list removes, or the header of a GIF."""
    if _indexed(stream) is not None:
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames or None if stream.container.format.name == "gif" else None


def _tick(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1)


def _mean_rate(stream: VideoStream) -> Fraction | None:
    rate = stream.average_rate or stream.guessed_rate
    return Fraction(rate) if rate else None


class _Converter:
    """Converts frames of one stream to upright RGB uint8[h,w,3]; the scaler is reused, as its setup is slow."""

    def __init__(self, stream: VideoStream, path: Path) -> None:
        aspect = stream.sample_aspect_ratio or Fraction(1)
        self.aspect = Fraction(1) if aspect <= 0 or abs(aspect - 1) < _SQUARE else Fraction(aspect)
        self.path = path
        self.scaler = VideoReformatter()

    def __call__(self, frame: VideoFrame, index: int) -> np.ndarray:
        try:
            return _turned(self._rgb(frame), frame)
        except FFmpegError as error:
            found = f"pixels of the kind {frame.format.name} ({system_reason(error)})"
            raise BadInput(
                self.path, found, "colours that convert to RGB", frame=index, hint="re-encode it to MP4"
            ) from error

    def _rgb(self, frame: VideoFrame) -> np.ndarray:
        form = frame.format
        matrix = None
        if frame.colorspace in _UNKNOWN_MATRIX and not form.is_rgb and not form.has_palette:
            # Untagged video: high definition is BT.709, the rest BT.601, as in players.
            matrix = Colorspace.ITU709 if frame.height >= 720 or frame.width >= 1280 else Colorspace.ITU601
        alpha = form.has_palette or any(component.is_alpha for component in form.components)
        pixels = self.scaler.reformat(
            frame,
            width=max(1, round(frame.width * self.aspect)),
            format="rgba" if alpha else "rgb24",
            src_colorspace=matrix,
            interpolation=ACCURATE,
        ).to_ndarray()
        if is_high_dynamic_range(frame.color_trc) and not alpha:
            return to_srgb(pixels, frame.color_trc, frame.color_primaries)
        return on_black(pixels) if alpha else pixels


def _turned(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Apply the display matrix (ISO/IEC 14496-12, 6.2.2): quarter turns and mirrorings; other angles to the nearest."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(a) >= abs(b):  # x' = ax, y' = dy
        across, down = a, d
    else:  # x' = cy, y' = bx
        pixels = pixels.transpose(1, 0, 2)
        across, down = c, b
    pixels = pixels[:, ::-1] if across < 0 else pixels
    pixels = pixels[::-1] if down < 0 else pixels
    return np.ascontiguousarray(pixels)
