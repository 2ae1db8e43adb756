"""A cut at a window border raises the score, a sudden movement that the truth has too does not."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.metrics.seams import decode_borders, seam_score, window_borders


def _steps(frames: int = 33) -> np.ndarray:
    return 0.02 + 0.002 * np.random.default_rng(0).standard_normal(frames - 1)


def test_borders_like_their_surroundings_score_one() -> None:
    assert seam_score(np.full(32, 0.02), [8, 16, 24]).score == 1
    assert seam_score(_steps(), [8, 16, 24]).score == pytest.approx(1, abs=0.15)


def test_a_cut_at_a_border_shows_and_elsewhere_does_not() -> None:
    at, beside = _steps(), _steps()
    at[15] *= 4  # from frame 15 to 16
    beside[11] *= 4
    found = seam_score(at, [8, 16, 24])
    assert found.score > 1.7
    assert found.worst == pytest.approx(4, rel=0.3)
    assert seam_score(beside, [8, 16, 24]).score == pytest.approx(1, abs=0.15)


def test_what_the_truth_does_too_is_no_seam() -> None:
    truth = _steps()
    truth[15] *= 5
    assert seam_score(truth, [16]).score > 4
    assert seam_score(truth, [16], truth).score == pytest.approx(1)
    cut = truth.copy()
    cut[15] *= 3
    assert seam_score(cut, [16], truth).score > 2


def test_neighbouring_borders_do_not_hide_one_another() -> None:
    steps = np.full(32, 0.02)
    steps[[14, 15, 16]] = 0.08
    assert seam_score(steps, [15, 16, 17]).score == pytest.approx(4)


def test_no_borders_no_number_and_those_outside_are_left_out() -> None:
    assert np.isnan(seam_score(_steps(), []).score)
    assert seam_score(_steps(), [0, -3, 33, 40]).borders == ()
    assert seam_score(np.zeros(0), [1]).borders == ()


def test_still_videos_have_no_seams() -> None:
    assert seam_score(np.zeros(20), [5, 10]).score == 1
    assert seam_score(np.zeros(20), [5, 10], np.zeros(20)).score == 1


def test_a_truth_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="changes of the truth"):
        seam_score(_steps(), [4], _steps(20))


@pytest.mark.parametrize(
    ("frames", "chunk", "overlap", "borders"),
    [(16, 4, 0, [4, 8, 12]), (18, 8, 2, [6, 12]), (8, 8, 0, []), (9, 8, 0, [8]), (3, 8, 4, [])],
)
def test_decode_borders_are_where_the_decoder_cuts(frames: int, chunk: int, overlap: int, borders: list[int]) -> None:
    assert decode_borders(frames, chunk, overlap) == borders


def test_window_borders_of_our_own_plans() -> None:
    windows = [window.frames for window in plan_windows(28, length=16, overlap=4)]
    assert [(min(f for f in frames if f), max(frames)) for frames in windows] == [(1, 15), (7, 21), (13, 27)]
    assert window_borders(windows) == [7, 13, 16, 22]
    assert window_borders([range(10)]) == []
    assert window_borders([(0, 1, 2, 3), (0, 4, 5, 6)]) == [4]
