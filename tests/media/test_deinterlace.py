"""Interlaced video: no combs, as many frames at the same times, and what stands still stays sharp."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph
from av.video.reformatter import Colorspace

from stableanimator_cli.errors import BadInput
from stableanimator_cli.media import open_clip
from stableanimator_cli.media.deinterlace import deinterlaced
from stableanimator_cli.media.seek import frames_at

COUNT = 8
FORMS = {
    "top.mp4": ("libx264", {"x264-params": "interlaced=1:crf=8"}),
    "bottom.mkv": ("libx264", {"x264-params": "interlaced=1:crf=8"}),
    "top.mpg": ("mpeg2video", {"flags": "+ildct+ilme", "b": "8M"}),
    "bottom.avi": ("dvvideo", {}),
}
"""File -> codec and options; the name tells which field is the first, the top one or the bottom one."""


def moment(time: float, size: tuple[int, int]) -> np.ndarray:
    """A bar that moves by 8 pixels per frame over a background with fine still lines."""
    width, height = size
    image = np.full((height, width, 3), 40, np.uint8)
    image[:20:4] = 200
    left = 10 + round(8 * time)
    image[30 : height - 20, left : left + 30] = (230, 200, 40)
    return image


def interlaced(size: tuple[int, int], *, bottom_first: bool = False) -> list[np.ndarray]:
    frames = []
    for index in range(COUNT):
        first, second = (moment(index + half / 2, size) for half in (0, 1))
        frame = first.copy()
        frame[int(not bottom_first) :: 2] = second[int(not bottom_first) :: 2]
        frames.append(frame)
    return frames


def write(path: Path, *, matrix: Colorspace | None = None) -> list[np.ndarray]:
    codec, options = FORMS[path.name]
    bottom_first = path.stem == "bottom"
    frames = interlaced((720, 576) if codec == "dvvideo" else (160, 128), bottom_first=bottom_first)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        graph = Graph()  # frames that say which field is the first
        source = graph.add_buffer(width=stream.width, height=stream.height, format="yuv420p", time_base=Fraction(1, 25))
        field = graph.add("setfield", "bff" if bottom_first else "tff")
        sink = graph.add("buffersink")
        source.link_to(field)
        field.link_to(sink)
        graph.configure()
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            graph.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))
    return frames


def combs(image: np.ndarray) -> float:
    """Mean distance of lines from the mean of their neighbours where the bar moves."""
    lines = image[40:-30].astype(float)
    return float(np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean())


@pytest.mark.parametrize("name", FORMS)
def test_interlaced_frames_lose_their_combs_and_keep_their_number_and_times(name: str, tmp_path: Path) -> None:
    frames = write(tmp_path / name)
    shown = list(open_clip(tmp_path / name).frames())
    assert [time for time, _ in shown] == [Fraction(index, 25) for index in range(COUNT)]
    for index, (_, image) in enumerate(shown):
        assert combs(image) < combs(frames[index]) / 4
        # The moment is that of the first field: edges are where they were, not half a frame later.
        stretch = image.shape[1] / frames[0].shape[1]  # pixels of DV are not square
        bar = image[60, :, 0] > 135
        assert abs(int(np.argmax(bar)) - stretch * (10 + 8 * index)) <= 1
        assert np.abs(image[:16, :100].astype(int) - frames[0][:16, :100]).mean() < 2


def test_the_colours_stay(tmp_path: Path) -> None:
    for matrix in (Colorspace.ITU709, Colorspace.ITU601):
        write(tmp_path / "top.mp4", matrix=matrix)
        with av.open(str(tmp_path / "top.mp4")) as container:
            raw = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for before, (_, after) in zip(raw, open_clip(tmp_path / "top.mp4").frames(), strict=True):
            assert np.abs(before[110:].astype(int) - after[110:]).mean() < 2


def test_frames_by_number_come_from_the_start(tmp_path: Path) -> None:
    write(tmp_path / "top.mp4")
    assert frames_at(tmp_path / "top.mp4", [3], COUNT) is None


def test_good_frames_come_before_an_error(tmp_path: Path) -> None:
    write(tmp_path / "top.mp4")

    def cut(frames):
        for index, frame in enumerate(frames):
            if index == 5:
                raise BadInput(tmp_path / "top.mp4", "a cut-off frame", "a whole video", frame=5)
            yield frame

    with av.open(str(tmp_path / "top.mp4")) as container:
        stream = container.streams.video[0]
        frames = deinterlaced(cut(container.decode(stream)), stream.time_base)
        assert [next(frames).pts * stream.time_base for _ in range(5)] == [Fraction(index, 25) for index in range(5)]
        with pytest.raises(BadInput, match="frame 5"):
            next(frames)


def test_progressive_frames_pass_until_the_first_interlaced_one(tmp_path: Path) -> None:
    write(tmp_path / "top.mp4")

    def mixed():
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(moment(index, (160, 128)), format="rgb24").reformat(format="yuv420p")
            frame.pts = index
            yield frame
        with av.open(str(tmp_path / "top.mp4")) as container:
            for index, frame in enumerate(container.decode(video=0)):
                frame.pts = 3 + index
                yield frame
        small = av.VideoFrame.from_ndarray(moment(0, (80, 64)), format="rgb24").reformat(format="yuv420p")
        small.pts = 3 + COUNT
        yield small

    first = next(mixed())
    frames = list(deinterlaced(mixed(), Fraction(1, 25)))
    assert [frame.pts for frame in frames] == list(range(4 + COUNT))
    assert np.array_equal(frames[0].to_ndarray(), first.to_ndarray())
    assert not any(frame.interlaced_frame for frame in frames)
    assert frames[-1].width == 80
