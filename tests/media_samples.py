"""Small pictures and videos made on the spot, with known content, for the tests of the media room.

``numbered`` frames tell their index by their grey level, so a test can see which frame it got after any codec.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

STEP = 8  # grey levels between two numbered frames: more than any codec here loses


def numbered(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Flat grey frames, ``index * STEP`` bright (up to 31 of them)."""
    width, height = size
    return [np.full((height, width, 3), index * STEP, np.uint8) for index in range(count)]


def number_of(frame: np.ndarray) -> int:
    """The index that a ``numbered`` frame carries."""
    return round(float(frame.mean()) / STEP)


def corners(size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Black, with a red top-left, a green top-right and a blue bottom-left quarter: every turn and mirroring shows."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    return picture


def corner_names(picture: np.ndarray) -> str:
    """The colours of the quarters, read as text: top-left, top-right, bottom-left, bottom-right."""
    height, width = picture.shape[:2]
    names = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b"}
    centres = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return "".join(names.get(tuple(bool(v > 127) for v in picture[y, x]), "k") for y, x in centres)


def noise(count: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Frames that no lossy codec can hide in."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(count)]


def make_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: Fraction | int = 10,
    ticks: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 1000),
    rotation: int | None = None,
    mirrored: bool = False,
    aspect: Fraction | None = None,
    sound: np.ndarray | None = None,
    sound_codec: str = "aac",
    sound_rate: int = 44100,
    source_format: str = "rgb24",
    **container_options: str,
) -> Path:
    """Write ``frames`` (uint8 or, with ``source_format``, any array PyAV takes) with PyAV alone.

    ``ticks`` are timestamps in ``time_base`` for a varying rate or a late start; ``rotation`` degrees counter-clockwise
    go into the display matrix; ``sound`` float32[channels,samples] goes beside the picture.
    """
    frames = list(frames)
    with av.open(str(path), "w", options=container_options) as output:
        stream = output.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None or mirrored:
            stream.set_display_rotation(rotation or 0, hflip=mirrored)
        if ticks is not None:
            stream.time_base = stream.codec_context.time_base = time_base
        heard = None
        if sound is not None:
            layout = "mono" if len(sound) == 1 else "stereo"
            heard = output.add_stream(sound_codec, rate=sound_rate, layout=layout)
        for index, pixels in enumerate(frames):
            frame = VideoFrame.from_ndarray(pixels, format=source_format).reformat(format=pix_fmt)
            if ticks is not None:
                frame.pts, frame.time_base = ticks[index], time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if heard is not None and sound is not None:
            form = heard.codec_context.format.name
            planar = AudioFrame.from_ndarray(sound.astype(np.float32), format="fltp", layout=layout)
            planar.sample_rate, planar.pts, planar.time_base = sound_rate, 0, Fraction(1, sound_rate)
            resampler = av.AudioResampler(format=form, layout=layout, rate=sound_rate)
            for part in resampler.resample(planar):
                output.mux(heard.encode(part))
            output.mux(heard.encode(None))
    return path


def beep(seconds: float, start: float, *, rate: int = 44100, channels: int = 1) -> np.ndarray:
    """Silence, then from ``start`` a 1 kHz sine: float32[channels,samples]."""
    time = np.arange(round(seconds * rate)) / rate
    wave = np.where(time >= start, 0.5 * np.sin(2 * np.pi * 1000 * time), 0.0)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def heard(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Codec, seconds after the first frame of the picture, and level of the first sound channel of ``path``."""
    with av.open(str(path)) as container:
        picture = next(container.decode(video=0))
        origin = float(picture.pts * picture.time_base)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        times, levels = [], []
        for frame in container.decode(stream):
            wave = frame.to_ndarray()
            wave = wave[0] if frame.format.is_planar else wave[0, :: len(frame.layout.channels)]
            times.append(float(frame.pts * frame.time_base) - origin + np.arange(len(wave)) / frame.sample_rate)
            levels.append(wave / (32768.0 if wave.dtype == np.int16 else 1.0))
        return stream.codec_context.codec.canonical_name, np.concatenate(times), np.concatenate(levels)


def onset(times: np.ndarray, levels: np.ndarray) -> float:
    """Seconds at which the beep begins."""
    return float(times[np.argmax(np.abs(levels) > 0.1)])
