"""Plans of windows: each frame covered once in sum, neighbours that share, the reference's lists index for index."""

from __future__ import annotations

import itertools
from itertools import chain

import numpy as np
import pytest

from stableanimator_cli.diffusion.windows import Blend, WindowPlan, plan_windows

CASES = [
    (total, length, overlap)
    for length in (1, 2, 3, 4, 5, 8, 16)
    for overlap in {0, 1, 2, length // 2, length - 1}
    if overlap < length
    for total in (1, 2, length - 1, length, length + 1, length + 2, 2 * length, 3 * length + 1, 61)
    if total >= 1
]


BLENDS = ["smooth", "upstream", "shifted"]


def placements(*case: int, blend: Blend) -> list[WindowPlan]:
    """Of frames, length and overlap: one where windows stay."""
    total, length, overlap = case
    plan = plan_windows(total, length=length, overlap=overlap, blend=blend)
    return [plan.placement(turn) for turn in range(plan.num_placements)]


def coverage(plan: WindowPlan) -> np.ndarray:
    """Sum of the weights of each frame."""
    cover = np.zeros(plan.total)
    for window in plan:
        np.add.at(cover, list(window.frames), window.weights)
    return cover


@pytest.mark.parametrize("blend", BLENDS)
def test_weights_of_every_frame_sum_to_one(blend):
    for case in CASES:
        for plan in placements(*case, blend=blend):
            np.testing.assert_allclose(coverage(plan), 1, atol=1e-12, err_msg=str(case))
            assert all(weight >= 0 for window in plan for weight in window.weights)


@pytest.mark.parametrize("blend", BLENDS)
def test_windows_hold_frames_of_the_video_in_order_and_no_more_than_their_length(blend):
    for total, length, overlap in CASES:
        for window in chain.from_iterable(placements(total, length, overlap, blend=blend)):
            assert list(window.frames) == sorted(set(window.frames)), (total, length, overlap)
            assert 0 <= window.frames[0] <= window.frames[-1] < total
            assert len(window.frames) == len(window.weights) == min(length, total)
            assert window.frames[0] == 0 or length == 1  # the anchor


@pytest.mark.parametrize(("total", "windows"), [(64, 5), (72, 6), (225, 19), (300, 25), (450, 38), (900, 75)])
def test_upstream_makes_as_many_windows_as_the_reference_implementation(total, windows):
    assert len(plan_windows(total, length=16, overlap=4, blend="upstream")) == windows


def test_upstream_indices_of_a_small_case_with_a_window_for_the_rest():
    plan = plan_windows(11, length=6, overlap=2, blend="upstream")
    assert [list(window.frames) for window in plan] == [[0, 1, 2, 3, 4, 5], [0, 5, 6, 7, 8, 9], [0, 6, 7, 8, 9, 10]]


def test_upstream_indices_of_a_small_case_without_rest():
    plan = plan_windows(10, length=6, overlap=2, blend="upstream")
    assert [list(window.frames) for window in plan] == [[0, 1, 2, 3, 4, 5], [0, 5, 6, 7, 8, 9]]


def test_upstream_weights_are_triangles():
    """The shares of the newer window where two meet, as published for 16 and 4: 0.375, 0.625, 0.875."""
    plan = plan_windows(28, length=16, overlap=4, blend="upstream")
    first, second = (dict(zip(w.frames, w.weights, strict=True)) for w in plan)
    assert [second[frame] for frame in (13, 14, 15)] == pytest.approx([0.375, 0.625, 0.875])
    assert [first[frame] for frame in (13, 14, 15)] == pytest.approx([0.625, 0.375, 0.125])
    assert first[0] == second[0] == pytest.approx(0.5)  # the anchor is the plain mean over windows


@pytest.mark.parametrize(("length", "overlap"), [(1, 0), (2, 0), (3, 0), (6, 0), (2, 1)])
def test_upstream_without_overlap_leaves_no_frame_out(length, overlap):
    """The anchor takes a slot: moved on by the whole length, runs of length - 1 would miss a frame between them."""
    plan = plan_windows(13, length=length, overlap=overlap, blend="upstream")
    assert set(itertools.chain.from_iterable(window.frames for window in plan)) == set(range(13))
    np.testing.assert_allclose(coverage(plan), 1)


def test_smooth_neighbours_share_at_least_the_overlap_and_spread_evenly():
    for total, length, overlap in CASES:
        plan = plan_windows(total, length=length, overlap=overlap, blend="smooth")
        runs = [set(window.frames) - {0} for window in plan]
        shared = [len(a & b) for a, b in itertools.pairwise(runs)]
        most = max(0, length - 2)  # one new frame a window is the least that makes way
        assert all(common >= min(overlap, most) for common in shared), (total, length, overlap, shared)
        steps = [b.frames[-1] - a.frames[-1] for a, b in itertools.pairwise(plan.windows)]
        assert all(step >= 1 for step in steps)
        assert not steps or max(steps) - min(steps) <= 1


def test_smooth_makes_no_more_windows_than_the_overlap_needs():
    # after a first run of 16, each window of 1 + 15 brings 11 new frames at 4 shared
    assert [len(plan_windows(total)) for total in (16, 17, 27, 28, 38)] == [1, 2, 2, 3, 3]


def test_smooth_counts_the_anchor_once_and_fades_by_a_raised_cosine():
    first, second = plan_windows(9, length=6, overlap=2).windows
    assert first.frames == (0, 1, 2, 3, 4, 5)
    assert second.frames == (0, 4, 5, 6, 7, 8)
    assert first.weights == pytest.approx((1, 1, 1, 1, 0.75, 0.25))
    assert second.weights == pytest.approx((0, 0.25, 0.75, 1, 1, 1))


@pytest.mark.parametrize("blend", ["smooth", "upstream"])
@pytest.mark.parametrize("total", [1, 2, 15, 16])
def test_what_fits_one_window_is_one_window_of_its_own_length(blend, total):
    (window,) = plan_windows(total, length=16, overlap=4, blend=blend)
    assert window.frames == tuple(range(total))
    assert window.weights == (1.0,) * total


def test_windows_of_one_frame_are_the_frames():
    for blend in ("smooth", "upstream"):
        plan = plan_windows(3, length=1, overlap=0, blend=blend)  # type: ignore[arg-type]
        assert [window.frames for window in plan] == [(0,), (1,), (2,)]


def test_a_plan_reads_as_ranges():
    assert plan_windows(9, length=6, overlap=2).describe() == "window 1: 0-5\nwindow 2: 0, 4-8"
    assert plan_windows(1).describe() == "window 1: 0"


@pytest.mark.parametrize(
    ("total", "length", "overlap", "words"),
    [(0, 4, 1, "0 frames"), (5, 4, 4, "overlap 4 outside 0..3"), (5, 4, -1, "overlap -1 outside")],
)
def test_impossible_plans_are_refused(total, length, overlap, words):
    with pytest.raises(ValueError, match=words):
        plan_windows(total, length=length, overlap=overlap)
