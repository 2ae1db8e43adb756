"""Single frames of a video are those of decoding it whole, and cost a few frames each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stableanimator_cli.media import open_clip, seek

FRAMES, GROUP = 60, 8


def write(path: Path, codec: str = "libx264", **options: str) -> Path:
    """Frames that differ, a key frame in every ``GROUP``, and frames that refer to later ones."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", GROUP
        stream.options = options
        generator = np.random.default_rng(0)
        base = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        for number in range(FRAMES):
            picture = np.roll(base, number, axis=1) // 2 + np.uint8(2 * number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"bf": "3", "preset": "veryfast"}), ("b.mp4", "mpeg4", {"bf": "2"}),
     ("c.mkv", "libx264", {"x264-params": "open-gop=1:bframes=3"}), ("d.webm", "libvpx-vp9", {})],
)  # fmt: skip
def test_frames_are_those_of_the_whole_video(tmp_path, name, codec, options):
    path = write(tmp_path / name, codec, **options)
    whole = [picture for _, picture in open_clip(path).frames()]
    assert len(whole) == FRAMES
    generator = np.random.default_rng(1)
    for _ in range(6):
        numbers = generator.choice(FRAMES, size=4, replace=False).tolist()
        found = seek.frames_at(path, numbers, FRAMES)
        assert found is not None
        assert sorted(found) == sorted(numbers)
        assert all(np.array_equal(found[number], whole[number]) for number in numbers)


def test_no_more_is_decoded_than_a_group(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", preset="veryfast")
    forward, decoded = seek._forward, []

    def counted(*given: Any) -> Any:
        for frame in forward(*given):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(seek, "_forward", counted)
    assert seek.frames_at(path, [FRAMES - 1], FRAMES) is not None
    assert 1 <= len(decoded) <= GROUP
    decoded.clear()
    assert seek.frames_at(path, [17, 19, 50], FRAMES) is not None
    assert len(decoded) <= 2 * GROUP


def test_what_cannot_be_sought_in_is_left_to_decoding(tmp_path):
    path = write(tmp_path / "a.mp4")
    assert seek.frames_at(path, [3], FRAMES - 1) is None  # other frames than the clip was made of
    assert seek.frames_at(path, [FRAMES], FRAMES) is None
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(write(tmp_path / "b.mkv").read_bytes()[:-3000])
    assert seek.frames_at(cut, [3], FRAMES) is None
