"""What LPIPS networks are fed under each name, how frames are batched, and the unweighted distance of features."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stableanimator_cli.metrics.perceptual import PREPARE, Perceptual, lpips, signed, unit_distance, unsigned
from stableanimator_cli.metrics.result import METRICS


def frames(count: int, height: int = 6, width: int = 5, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


class Told:
    """Stands for a network: mean difference; remembers what it was fed."""

    def __init__(self) -> None:
        self.fed: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self.fed.append((a, b))
        return np.abs(a - b).mean(axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("metric", "low", "high", "network"),
    [
        ("lpips_alex", -1, 1, "lpips_alex"),
        ("lpips_vgg", -1, 1, "lpips_vgg"),
        ("lpips_vgg_disco", 0, 1, "lpips_vgg"),
        ("lpips_puppet", -1, 1, "puppet_frame"),
    ],
)
def test_each_name_has_its_range_and_network(metric, low, high, network):
    assert METRICS[metric].network == network
    told = Told()
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert lpips(metric, told, black, white) == high - low
    ((a, b),) = told.fed
    assert a.dtype == b.dtype == np.float32
    assert (a == low).all()
    assert (b == high).all()


def test_channels_come_first_and_stay_rgb():
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[..., 0] = 255
    for prepare in (signed, unsigned):
        assert prepare(frame).shape == (3, 4, 6)
        assert (prepare(frame)[0] == 1).all()
        assert (prepare(frame)[1:] <= 0).all()


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_batches_change_nothing(batch):
    ours, theirs = frames(7), frames(7, seed=1)
    told = Told()
    scores = Perceptual("lpips_alex", told, batch)
    rows = []
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        rows += scores.add("long" if index < 5 else "short", index, a, b)
    rows += scores.finish()
    expected = [lpips("lpips_alex", Told(), a, b) for a, b in zip(ours, theirs, strict=True)]
    assert [(video, index) for video, index, _ in rows] == [("long" if n < 5 else "short", n) for n in range(7)]
    assert [value for *_, value in rows] == pytest.approx(expected, rel=1e-6)
    assert max(len(a) for a, _ in told.fed) == min(batch, 7)
    value = scores.scores.value("lpips_alex")
    assert value.pooled == pytest.approx(np.mean(expected), rel=1e-6)
    assert value.per_video["short"] == pytest.approx(np.mean(expected[5:]), rel=1e-6)
    assert scores.finish() == []


def test_another_size_begins_another_batch():
    told = Told()
    scores = Perceptual("lpips_vgg", told, 8)
    scores.add("a", 0, *frames(2))
    assert [row[:2] for row in scores.add("b", 0, *frames(2, 9))] == [("a", 0)]
    assert [row[:2] for row in scores.finish()] == [("b", 0)]


def test_bad_frames_and_names_are_refused():
    scores = Perceptual("lpips_vgg", Told())
    with pytest.raises(ValueError, match="shapes"):
        scores.add("a", 0, frames(1)[0], frames(1, 7)[0])
    with pytest.raises(ValueError, match="no LPIPS metric is named 'lpips'"):
        Perceptual("lpips", Told())
    with pytest.raises(ValueError, match="batches of 0"):
        Perceptual("lpips_vgg", Told(), 0)


def test_features_that_turn_are_a_distance_and_their_length_is_none():
    one = np.zeros((1, 2, 3, 3))
    one[:, 0] = 1
    other = one[:, ::-1]
    assert unit_distance([one], [5 * one])[0] == pytest.approx(0, abs=1e-15)
    assert unit_distance([one], [other])[0] == pytest.approx(2)
    assert unit_distance([one, one], [other, other])[0] == pytest.approx(4)
    half = (one + other) / 2
    assert unit_distance([one], [half])[0] == pytest.approx(2 - math.sqrt(2))
    with pytest.raises(ValueError, match="feature maps"):
        unit_distance([one], [one[..., :2]])


def test_a_place_without_features_is_no_division_by_zero():
    nothing, something = np.zeros((2, 4, 3, 3)), np.ones((2, 4, 3, 3))
    assert unit_distance([nothing], [nothing]).tolist() == [0, 0]
    assert unit_distance([nothing], [something]).tolist() == pytest.approx([1, 1])


def test_all_names_are_metrics():
    assert set(PREPARE) <= set(METRICS)
