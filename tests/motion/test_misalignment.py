"""The number is 0 for the same body at the same place, the same in all frames of reference, and grows with faults."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from stableanimator_cli.motion.misalignment import compare, misalignment
from tests.motion.moving import mapped, standing, with_points
from tests.waving import waving

SIZE = (512, 512)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return waving(16).keypoints[:, 0].astype(np.float64)


@pytest.fixture(scope="module")
def other() -> np.ndarray:
    """Another body, elsewhere."""
    return mapped(standing(), (0.8, 1.1), (60, -20))


def test_the_same_person_at_the_same_place_is_nought(points):
    found = compare(points, standing())
    assert found.number < 0.01
    assert compare(points[:1], points[0]).number == 0


def test_a_whole_scale_is_its_logarithm_and_a_shift_is_counted_in_shoulders(points):
    neck = points[0, 1, :2]
    smaller = mapped(points[:1], 0.5, neck * 0.5)
    found = compare(smaller, points[0])
    assert found.limbs == pytest.approx(math.log(2))
    assert found.place == pytest.approx(0)
    assert found.groups == pytest.approx(dict.fromkeys(("shoulders", "hips", "trunk", "arms", "legs", "head"), 2.0))
    width = np.linalg.norm(points[0, 2, :2] - points[0, 5, :2])
    aside = compare(mapped(points[:1], shift=(1.5 * width, 0)), points[0])
    assert aside.place == pytest.approx(1.5, rel=0.05)  # the trunk shows a little more than the shoulders
    assert aside.limbs == pytest.approx(0)


def test_one_group_counts_a_sixth(points):
    wide = points[:1].copy()
    wide[0, [2, 3, 4], 0] -= 20
    wide[0, [5, 6, 7], 0] += 20
    found = compare(wide, points[0])
    assert found.limbs == pytest.approx(math.log(1 / found.groups["shoulders"]) / 6)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: mapped(p, 2.7, (100, -50)),
        lambda p: mapped(p, 0.3, degrees=70),
        lambda p: p * [-1, 1, 1] + [512, 0, 0],
    ],
    ids=["scaled and shifted", "turned", "mirrored"],
)
def test_what_is_done_to_both_changes_nothing(points, other, change):
    plain, moved = compare(points, other), compare(change(points), change(other))
    assert plain.number > 0.2
    assert (moved.limbs, moved.place) == pytest.approx((plain.limbs, plain.place), rel=1e-6)


def test_order_and_repetition_of_frames_change_nothing(points, other):
    plain = compare(points, other).number
    assert compare(points[::-1], other).number == pytest.approx(plain)
    assert compare(np.repeat(points, 3, axis=0), other).number == pytest.approx(plain, rel=0.01)


def test_waving_and_a_few_wrong_frames_hardly_matter(points, other):
    plain = compare(points, other).number
    wrong = points.copy()
    wrong[3, :, :2] *= 3
    assert compare(wrong, other).number == pytest.approx(plain, abs=0.03)
    faint = points.copy()
    faint[:, 9] = [9999, 9999, 0.2]
    assert compare(faint, other).number == pytest.approx(plain, abs=0.01)


def test_more_wrong_is_more(points):
    scales = [compare(mapped(points, scale), standing()).number for scale in (1.0, 1.1, 1.4, 2.0, 3.5)]
    assert scales == sorted(scales)
    shifts = [compare(mapped(points, shift=(dx, 0)), standing()).number for dx in (0, 10, 50, 200)]
    assert shifts == sorted(shifts)


def test_a_ratio_beyond_four_counts_as_four(points):
    flat = points[:1].copy()
    flat[..., 0] = 256 + 0.001 * (flat[..., 0] - 256)
    assert compare(flat, points[0]).limbs < math.log(4)


def test_a_motion_of_another_size_is_put_in_the_middle():
    motion = waving(4, (256, 256))
    tall = standing((512, 512))
    tall[:, 1] += 100
    assert misalignment(motion, tall, (512, 712)).number < 0.01
    assert misalignment(motion, tall - [0, 100, 0], (512, 712)).place > 0.5


def test_only_frames_with_the_person_count():
    motion = waving(6)
    points = motion.keypoints.copy()
    points[3:] = 7
    present = np.array([[True]] * 3 + [[False]] * 3)
    motion = with_points(dataclasses.replace(motion, present=present), points)
    assert misalignment(motion, standing(), SIZE).number < 0.01


def test_nothing_in_common_is_unknown(points):
    head, legs = standing(), points.copy()
    head[1:14, 2] = 0
    legs[:, [*range(8), *range(14, 134)], 2] = 0
    found = compare(legs, head)
    assert math.isnan(found.number)
    assert found.describe().startswith("misalignment unknown")
    assert json.loads(json.dumps(found.to_json()))["number"] is None
    assert math.isnan(compare(points[:0], head).number)


def test_a_head_alone_is_compared_by_the_head(points):
    head = standing()
    head[1:14, 2] = 0
    found = compare(mapped(points, shift=(0, 5)), head)
    assert set(found.groups) == {"head"}
    assert 0.01 < found.number < 0.2


def test_it_says_what_is_off(points, other):
    found = compare(points, other)
    assert "\n" not in found.describe()
    for word in ("misalignment", "shoulders x0.8", "legs x1.1", "shoulder widths"):
        assert word in found.describe()
    assert found.to_json()["number"] == pytest.approx(found.number)
