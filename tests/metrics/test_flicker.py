"""Even movement does not flicker, noise between frames does."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.metrics.flicker import Changes, flicker, flicker_excess


def _told(frames: np.ndarray) -> Changes:
    changes = Changes()
    for frame in frames:
        changes.add(frame)
    return changes


def _fade(frames: int = 12) -> np.ndarray:
    return np.stack([np.full((8, 8, 3), 100 + 3 * t, np.uint8) for t in range(frames)])


def test_a_still_video_has_neither() -> None:
    changes = _told(np.full((6, 8, 8, 3), 77, np.uint8))
    assert changes.differences == [0] * 5
    assert changes.curvature == [0] * 4


def test_an_even_fade_changes_but_does_not_flicker() -> None:
    changes = _told(_fade())
    assert changes.differences == pytest.approx([3 / 255] * 11)
    assert flicker(changes.curvature) == 0


def test_black_and_white_in_turns_is_the_most_there_is() -> None:
    frames = np.stack([np.full((4, 4, 3), 255 * (t % 2), np.uint8) for t in range(8)])
    changes = _told(frames)
    assert flicker(changes.curvature) == 1
    assert changes.differences == [1] * 7


def test_noise_between_frames_raises_flicker_and_the_excess_over_the_truth() -> None:
    noise = np.random.default_rng(0).integers(-10, 11, _fade().shape)
    noisy = (_fade().astype(int) + noise).clip(0, 255).astype(np.uint8)
    truth, made = _told(_fade()), _told(noisy)
    assert flicker(made.curvature) > 0.015
    assert flicker_excess(made.curvature, truth.curvature) == pytest.approx(flicker(made.curvature))
    assert flicker_excess(truth.curvature, truth.curvature) == 0


def test_too_short_gives_no_number() -> None:
    assert np.isnan(flicker(_told(_fade(2)).curvature))


def test_frames_of_another_size_are_refused() -> None:
    changes = _told(_fade(2))
    with pytest.raises(ValueError, match="shape"):
        changes.add(np.zeros((4, 4, 3), np.uint8))


def test_only_two_frames_are_held() -> None:
    assert len(_told(_fade(12))._previous) == 2
