"""Cosines with absence masked, CSIM's two means, drift and the worst stretch."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.metrics.identity import Csim, cosines, drift, summary, worst


def csim(embeddings: np.ndarray, target: np.ndarray) -> Csim:
    """CSIM with one embedding, or with one per frame."""
    other = np.broadcast_to(target, embeddings.shape)
    return summary(cosines(embeddings, target), np.isfinite(other).all(axis=-1))


ALICE, BOB = np.eye(512)[0], np.eye(512)[1]
NOBODY = np.full(512, np.nan)


def test_cosines_do_not_depend_on_length_and_keep_absence() -> None:
    rows = np.stack([3 * ALICE, ALICE + BOB, BOB, -ALICE, NOBODY, 0 * ALICE])
    found = cosines(rows, ALICE)
    np.testing.assert_allclose(found[:4], [1, 2**-0.5, 0, -1], atol=1e-12)
    assert np.isnan(found[4:]).all()


def test_missing_faces_are_skipped_counted_and_zero_only_where_it_says_so() -> None:
    result = csim(np.stack([ALICE, NOBODY, ALICE, BOB]), ALICE)
    assert result.mean == pytest.approx(2 / 3)
    assert result.zero == pytest.approx(2 / 4)
    assert (result.detected, result.valid, result.detection_rate) == (3, 4, 0.75)


def test_frames_without_a_true_face_are_not_asked_for() -> None:
    result = csim(np.stack([ALICE, BOB, NOBODY]), np.stack([ALICE, NOBODY, ALICE]))
    assert (result.detected, result.valid, result.mean, result.zero) == (1, 2, 1.0, 0.5)


def test_a_reference_without_a_face_gives_no_number() -> None:
    result = csim(np.stack([ALICE, BOB]), NOBODY)
    assert result.valid == 0
    assert np.isnan([result.mean, result.zero, result.detection_rate]).all()


def test_a_swapped_face_moves_the_curve_down_where_it_is_swapped() -> None:
    rng = np.random.default_rng(0)
    same = ALICE + 0.01 * rng.standard_normal((40, 512))
    swapped = same.copy()
    swapped[24:] = BOB + 0.01 * rng.standard_normal((16, 512))
    before, after = cosines(same, ALICE), cosines(swapped, ALICE)
    np.testing.assert_array_equal(before[:24], after[:24])
    assert (after[24:] < 0.2).all()
    assert (before > 0.9).all()
    assert drift(after) < -0.8 < -0.01 < drift(before)
    lowest, place = worst(after, 16)
    assert lowest < 0.1
    assert place == 24


def test_drift_and_worst_say_nothing_about_too_little() -> None:
    assert np.isnan(drift(np.array([0.5, 0.4, np.nan, 0.3, 0.2])))
    assert worst(np.full(9, np.nan)) == (pytest.approx(np.nan, nan_ok=True), -1)


def test_worst_passes_over_stretches_without_a_face() -> None:
    curve = np.r_[np.full(4, 0.8), np.full(20, np.nan), np.full(4, 0.6)]
    assert worst(curve, 4) == (pytest.approx(0.6), 21)
