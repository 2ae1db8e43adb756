"""What a step sees, by number alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stableanimator_cli.train.sampling import BatchSampler, choose_frames, keyed_rng


def test_a_round_sees_everything_once_where_batches_fit() -> None:
    schedule = BatchSampler([12, 6], seed=3, batch=3)
    assert schedule.round == 6
    seen = Counter((bucket, item) for bucket, items in map(schedule.at, range(6)) for item in items)
    assert seen == {(bucket, item): 1 for bucket, count in ((0, 12), (1, 6)) for item in range(count)}


def test_epochs_go_on_across_batches_and_rounds() -> None:
    """5 items in batches of 2: two rounds of three steps are twelve places, two epochs and two items of the third."""
    schedule = BatchSampler([5], seed=0, batch=2)
    items = [item for step in range(schedule.round * 2) for item in schedule.at(step)[1]]
    assert sorted(items[:5]) == sorted(items[5:10]) == list(range(5))
    assert items[:5] != items[5:10]


def test_a_batch_may_be_larger_than_a_bucket() -> None:
    _, items = BatchSampler([3], seed=0, batch=8).at(0)
    assert sorted(items[:3]) == sorted(items[3:6]) == [0, 1, 2]


def test_buckets_come_in_proportion_and_mixed() -> None:
    schedule = BatchSampler([90, 30], seed=1, batch=3)
    buckets = [schedule.at(step)[0] for step in range(schedule.round)]
    assert Counter(buckets) == {0: 30, 1: 10}
    assert buckets != sorted(buckets)


def test_a_step_does_not_depend_on_those_asked_for_before() -> None:
    far = BatchSampler([7, 4], seed=9, batch=2).at(1000)
    other = BatchSampler([7, 4], seed=9, batch=2)
    for step in (3, 999, 0):
        other.at(step)
    assert other.at(1000) == far
    different = [BatchSampler([7, 4], seed=seed, batch=2).at(1000) for seed in range(8)]
    assert any(one != far for one in different)


def test_frames_lie_a_stride_apart() -> None:
    starts = set()
    for index in range(60):
        frames, reference = choose_frames(keyed_rng(0, "t", index), 100, 16, stride=4, source="unchosen")
        assert np.diff(frames).tolist() == [4] * 15
        assert frames[0] >= 0
        assert frames[-1] < 100
        assert reference not in frames
        starts.add(int(frames[0]))
    assert len(starts) > 15
    assert min(starts) >= 0
    assert max(starts) <= 39


@pytest.mark.parametrize(
    ("length", "frames", "expected"),
    [
        (61, 16, list(range(0, 61, 4))),
        (31, 16, list(range(0, 31, 2))),  # half as long: the stride is half
        (20, 16, [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 19]),
        (4, 8, [0, 0, 0, 1, 1, 2, 2, 3]),  # shorter than a sample: some twice
        (1, 3, [0, 0, 0]),
    ],
)
def test_a_short_clip_is_spread_over(length: int, frames: int, expected: list[int]) -> None:
    chosen, _ = choose_frames(keyed_rng(0, "t", 0), length, frames, stride=4, source="unchosen")
    assert chosen.tolist() == expected


def test_the_reference_is_where_it_was_asked_for() -> None:
    inside = {"unchosen": 0, "outside": 0, "any": 0}
    chosen_itself = dict(inside)
    for source in inside:
        for index in range(200):
            frames, reference = choose_frames(keyed_rng(1, "t", index), 30, 4, stride=4, source=source)  # type: ignore[arg-type]
            inside[source] += bool(frames[0] <= reference <= frames[-1])
            chosen_itself[source] += reference in frames
    assert inside["outside"] == 0
    assert inside["unchosen"] > 30
    assert chosen_itself["unchosen"] == chosen_itself["outside"] == 0
    assert chosen_itself["any"] > 5


def test_the_first_frame_is_the_reference_and_never_drawn() -> None:
    """Eight frames of a clip of ten begin at 1 or 2; a clip of one frame is its own reference."""
    starts = set()
    for index in range(40):
        frames, reference = choose_frames(keyed_rng(3, "t", index), 10, 8, stride=1, source="first")
        assert reference == 0
        assert frames.tolist() == list(range(frames[0], frames[0] + 8))
        starts.add(int(frames[0]))
    assert starts == {1, 2}
    frames, reference = choose_frames(keyed_rng(3, "t", 0), 1, 2, stride=1, source="first")
    assert (frames.tolist(), reference) == ([0, 0], 0)


def test_where_the_clip_has_no_such_frame_another_is_the_reference() -> None:
    """13 frames, 4 of them at a stride of 4 from the first to the last: nothing is outside, nine are between."""
    frames, reference = choose_frames(keyed_rng(0, "t", 0), 13, 4, stride=4, source="outside")
    assert frames.tolist() == [0, 4, 8, 12]
    assert reference not in frames
    _, every = choose_frames(keyed_rng(0, "t", 0), 4, 4, stride=4, source="outside")
    assert every in range(4)


def test_draws_for_different_things_differ() -> None:
    draws = {int(keyed_rng(*key).integers(1 << 62)) for key in ((0, "a", 1), (0, "b", 1), (1, "a", 1), (0, "a", 2))}
    assert len(draws) == 4
