"""Video of high dynamic range: what a display of that kind shows is what sRGB shows, and highlights are not cut."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from stableanimator_cli import media
from stableanimator_cli.media.tone_map import BT2020, HLG, PQ, to_srgb

BT709 = 1
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # ITU-R BT.2087


def pq_signal(nits: np.ndarray) -> np.ndarray:
    """The value 0 to 255 that shows light in cd/m2 (SMPTE ST 2084)."""
    power = (nits / 10000) ** (2610 / 16384)
    return 255 * ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def linear(srgb: np.ndarray) -> np.ndarray:
    value = srgb / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def grey(value: float) -> np.ndarray:
    return np.full((4, 6, 3), round(value), np.uint8)


@pytest.mark.parametrize(
    ("transfer", "signal", "expected"),
    [
        (HLG, 0, 0),
        (HLG, 0.5 * 255, 137),  # 50 cd/m2 of 203: a quarter of white
        (HLG, 0.75 * 255, 242),  # reference white leaves room above
        (HLG, 255, 255),
        (PQ, 0, 0),
        (PQ, float(pq_signal(np.array(50.75))), 137),
        (PQ, float(pq_signal(np.array(203.0))), 242),
        (PQ, 255, 255),
    ],
)
def test_light_keeps_its_brightness_below_white(transfer: int, signal: float, expected: int) -> None:
    shown = to_srgb(grey(signal), transfer, BT2020).astype(int)
    assert np.abs(shown - expected).max() <= 2


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_a_brighter_value_is_never_darker(transfer: int) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    shown = to_srgb(ramp, transfer, BT2020)[0, :, 0].astype(int)
    assert (np.diff(shown) >= 0).all()
    assert shown[-1] == 255


@pytest.mark.parametrize("colour", [(200, 120, 90), (40, 90, 180), (60, 160, 70), (190, 40, 40)])
def test_colours_are_those_of_srgb(colour: tuple[int, int, int]) -> None:
    light = linear(np.array(colour, float))
    for primaries, given in ((BT2020, TO_BT2020 @ light), (BT709, light)):
        signal = np.rint(pq_signal(203 * given)).astype(np.uint8)
        shown = to_srgb(np.broadcast_to(signal, (4, 6, 3)).copy(), PQ, primaries).astype(int)
        assert np.abs(shown - colour).max() <= 6  # eight bits of PQ are coarse


@pytest.mark.parametrize(("transfer", "expected"), [(HLG, 137), (1, 128)])
def test_a_video_is_converted_by_its_tag(tmp_path: Path, transfer: int, expected: int) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 128, np.uint8), format="rgb24")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
    path = tmp_path / "phone.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        context = stream.codec_context
        context.colorspace = frame.colorspace = 1
        context.color_trc = frame.color_trc = transfer
        context.color_primaries = frame.color_primaries = BT2020
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    [(_, seen)] = media.open_clip(path).frames()
    assert seen.dtype == np.uint8
    assert np.abs(seen.astype(int) - expected).max() <= 2
