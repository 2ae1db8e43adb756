"""The crops and sizes that numbers depend on."""

from __future__ import annotations

import numpy as np
from PIL import Image

from stableanimator_cli.evaluate.protocols import PROTOCOLS, centre_square
from stableanimator_cli.metrics import flicker, identity, motion, perceptual, pixel, seams, video
from stableanimator_cli.metrics.result import METRICS


def test_a_tiktok_frame_is_cut_as_discos_evaluation_cuts_it() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1080, 604, 3), dtype=np.uint8)
    expected = Image.fromarray(frame).crop((0, 238, 604, 842)).resize((256, 256), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(PROTOCOLS["disco256"].prepare(frame), np.asarray(expected))


def test_a_square_of_the_right_size_is_left_alone() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_square(frame, 256), frame)
    wide = np.pad(frame, ((0, 0), (7, 7), (0, 0)))
    np.testing.assert_array_equal(centre_square(wide, 256), frame)


def test_native_changes_nothing() -> None:
    frame = np.zeros((30, 40, 3), np.uint8)
    assert PROTOCOLS["native"].prepare(frame) is frame


def test_columns_and_networks_are_metrics_that_exist() -> None:
    assert all((flicker, identity, motion, perceptual, pixel, seams, video))  # their import registers them
    for protocol in PROTOCOLS.values():
        assert {*protocol.table, *protocol.networks} <= set(METRICS)
        assert set(protocol.to_json()) >= {"crop", "size", "pairing", "faces", "no_face", "mean", "clips"}
