"""Known mappings are found again, faults of others are there where asked for, and nonsense is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.errors import NoPerson
from stableanimator_cli.motion.align import MODES, POINTS, align, fit_affine, fit_similarity, upstream_map
from stableanimator_cli.motion.motion_file import from_pose_dict
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.motion.track import track
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.records import Motion
from tests import parity, parity_skeleton
from tests.motion.moving import mapped, side_by_side, standing, with_points
from tests.waving import waving

GOLDEN = Path(__file__).parents[1] / "golden" / "reference"
SIZE = (400, 700)


@pytest.fixture(scope="module")
def motion() -> Motion:
    return waving(20)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    """The waving person's first frame at 0.7 of the size, elsewhere in a tall picture."""
    return mapped(standing(), 0.7, (20, 130))


def test_recorded_alignments_and_a_spoilt_one(tmp_path):
    rows = parity_skeleton.aligned(GOLDEN, "skeleton_cases")
    assert len(rows) == 6
    assert all(found == 0 for _, found, _ in rows)
    shutil.copy(GOLDEN / "skeleton_cases.npz", tmp_path)
    cases = json.loads((GOLDEN / "skeleton_cases.json").read_text())
    cases["one"]["reference_pose"]["bodies"]["candidate"][0][1] += 0.02
    (tmp_path / "skeleton_cases.json").write_text(json.dumps(cases))
    for name in ("configs.json", "state_shapes.json"):
        shutil.copy(GOLDEN / name, tmp_path)
    errors = parity.run(tmp_path, "dev")["skeleton_cases"]
    assert [error.what for error in errors if not error.holds] == ["one", "one, saved"]


def test_recorded_drawings_come_out_of_records_too():
    """Keypoints in float32 pixels, through ``align`` and the drawing of motions: still no pixel differs."""
    cases = json.loads((GOLDEN / "skeleton_cases.json").read_text())
    with np.load(GOLDEN / "skeleton_cases.npz") as drawn:
        for name, case in cases.items():
            (height, width), size = case["ref_hw"], tuple(case["driving_hw"][::-1])
            people = [from_pose_dict(pose) * [*size, 1] for pose in case["driving_poses"]]
            motion = track(people).motion(size)
            target = from_pose_dict(case["reference_pose"])[0] * [width, height, 1]
            aligned = align(motion, target, (width, height), "upstream").motion
            for index, picture in enumerate(drawn[f"{name}__returned"][:, ::-1].transpose(0, 2, 3, 1)):
                np.testing.assert_array_equal(draw_frame(aligned, index), picture)


def test_upstream_is_a_least_squares_line_through_shares_of_the_height(reference):
    """Against normal equations written out: no noise, no visibility and no second person is left out or let in."""
    rng = np.random.default_rng(5)
    points = rng.random((6, 2, 134, 3))
    present = np.array([[True, False], [True, True], [False, True], [True, False], [False, False], [True, False]])
    target = reference / [*SIZE, 1.0]
    target[[2, 10], 2] = 0.1
    scale, shift = upstream_map(points, present, target, SIZE)
    goes_by = [i for i in POINTS if i not in (2, 10)]
    bodies = np.stack([points[0, 0], points[2, 1], points[3, 0], points[5, 0]])[:, goes_by]
    y, goal = bodies[..., 1].ravel(), np.tile(target[goes_by, 1], 4)
    slope = ((y - y.mean()) * (goal - goal.mean())).sum() / ((y - y.mean()) ** 2).sum()
    assert scale == pytest.approx([slope, slope], abs=1e-9)
    expected = [target[goes_by, 0].mean() - slope * bodies[..., 0].mean(), goal.mean() - slope * y.mean()]
    assert shift == pytest.approx(expected, abs=1e-9)


def test_the_record_holds_what_upstream_computes(motion, reference):
    result = align(motion, reference, SIZE, "upstream")
    shares = motion.keypoints.astype(np.float64) / [512, 512, 1]
    scale, shift = upstream_map(shares, motion.present, reference / [*SIZE, 1.0], SIZE)
    expected = (shares[..., :2] * scale + shift) * SIZE
    np.testing.assert_allclose(result.motion.keypoints[..., :2], expected, atol=1e-4)
    assert result.motion.size == SIZE
    assert result.motion.keypoints.dtype == np.float32


def test_wide_to_tall_stretches_bodies_upstream_and_nowhere_else():
    """A person of one shape filmed 16:9 and pictured 9:16: upstream's same factor of shares makes bodies narrow."""
    person = standing((576, 576))
    wide = waving(10, (1024, 1024))
    wide = with_points(wide, mapped(wide.keypoints, 576 / 1024, (224, 0)), size=(1024, 576))
    tall = mapped(person, 0.9, (20, 300))
    narrow = align(wide, tall, (576, 1024), "upstream")
    across, down = narrow.scale
    assert down == pytest.approx(0.9, rel=0.01)
    assert across / down == pytest.approx((576 / 1024) ** 2, rel=1e-6)
    assert narrow.after.groups["shoulders"] == pytest.approx((1024 / 576) ** 2, rel=0.01)
    assert narrow.after.limbs > 0.4
    for mode in ("affine", "bones", "similarity"):
        result = align(wide, tall, (576, 1024), mode)
        assert result.scale == pytest.approx((0.9, 0.9), rel=5e-3), mode
        assert result.after.number < 0.02, mode


@pytest.mark.parametrize("mode", ["affine", "bones", "similarity"])
def test_a_known_scale_and_shift_are_found(motion, reference, mode):
    result = align(motion, reference, SIZE, mode)
    np.testing.assert_allclose(
        result.matrix, [[0.7, 0, 20], [0, 0.7, 130]], atol=1e-3 if mode != "similarity" else 0.05
    )
    assert result.before.number > 0.4
    assert result.after.number < 0.005
    near = 1.5 if mode == "bones" else 0.2  # it takes a nod for a longer neck
    np.testing.assert_allclose(result.motion.face_boxes[0, 0], motion.face_boxes[0, 0] * 0.7 + [20, 130] * 2, atol=near)
    np.testing.assert_array_equal(result.motion.keypoints[..., 2], motion.keypoints[..., 2])
    assert (result.motion.times, result.motion.size) == (motion.times, SIZE)


@pytest.mark.parametrize("degrees", [-140.0, -17.0, 0.0, 25.0, 90.0])
def test_similarity_finds_a_rotation_and_affine_leaves_it(motion, degrees):
    turned = mapped(standing(), 0.6, (300, 200), degrees)
    turned[[3, 4, 6, 7], 2] = 0
    result = align(motion, turned, (900, 900), "similarity")
    assert result.rotation == pytest.approx(degrees, abs=0.1)
    assert result.scale == pytest.approx((0.6, 0.6), rel=2e-3)
    assert result.after.place < 0.01
    assert align(motion, turned, (900, 900), "affine").rotation == 0


def test_similarity_makes_no_mirror_image():
    person = standing()
    mirrored = person * [-1, 1, 1] + [512, 0, 0]
    _, turn, _ = fit_similarity(person[None, :18, :2], np.ones((1, 18)), mirrored[:18, :2])
    assert np.linalg.det(turn) == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["affine", "similarity"])
def test_wrong_and_faint_points_change_nothing(motion, reference, mode):
    rng = np.random.default_rng(3)
    points = motion.keypoints.copy()
    for frame in range(len(motion)):  # three of the fourteen points are somewhere else, with full score
        points[frame, 0, rng.choice(POINTS, 3, replace=False), :2] = rng.random((3, 2)) * 512
    points[:, 0, 9] = [5000, -3000, 0.2]  # and one is nowhere, and says so
    result = align(with_points(motion, points), reference, SIZE, mode)
    assert result.scale == pytest.approx((0.7, 0.7), rel=0.01)
    assert abs(result.rotation) < 0.5
    assert result.matrix[:, 2] == pytest.approx([20, 130], abs=3)
    plain = align(with_points(motion, points), reference, SIZE, "upstream")
    assert abs(plain.scale[1] / 0.7 - 1) > 0.3


@pytest.mark.parametrize("mode", ["affine", "similarity"])
def test_jumping_about_is_not_taken_for_size(motion, reference, mode):
    jumps = np.random.default_rng(1).uniform(-200, 200, (20, 1, 1, 2)) * np.array([0.2, 1])
    jumping = motion.keypoints.astype(np.float64)
    jumping[..., :2] += jumps - np.median(jumps, axis=0)
    jumping = with_points(motion, jumping)
    assert align(jumping, reference, SIZE, mode).scale == pytest.approx((0.7, 0.7), rel=5e-3)
    assert align(jumping, reference, SIZE, "upstream").scale[1] < 0.65


def test_affine_is_exact_in_float64():
    rng = np.random.default_rng(2)
    points = rng.random((4, 9, 2)) * 300
    points[1:] = points[0]
    scale, shift = fit_affine(points, rng.random((4, 9)) + 0.1, points[0] * 1.37 + [11.5, -40.25])
    assert scale == pytest.approx(1.37, abs=1e-12)
    assert shift == pytest.approx([11.5, -40.25], abs=1e-10)


def test_weights_decide_between_two_sizes():
    goal = np.array([[0.0, 0], [10, 0], [0, 10]])
    points = np.stack([goal / 2, goal / 2, goal / 3])
    weights = np.ones((3, 3))
    assert fit_affine(points, weights, goal)[0] == pytest.approx(2)
    weights[:2] = 0.2
    assert fit_affine(points, weights, goal)[0] == pytest.approx(3)
    weights[2] = 0
    assert fit_affine(points, weights, goal)[0] == pytest.approx(2)


def test_none_touches_nothing_and_still_says_how_far_it_is(motion, reference):
    result = align(motion, reference, SIZE, "none")
    assert result.motion is motion
    assert result.before is result.after
    assert result.after.number > 0.4
    assert result.describe().startswith("not aligned: misalignment 0.")


@pytest.mark.parametrize("mode", MODES)
def test_points_that_were_not_seen_do_not_come_to_light(motion, reference, mode):
    points = motion.keypoints.copy()
    points[3, 0, 113:] = 0
    points[:, 0, 18:24] = 0
    result = align(with_points(motion, points), reference, SIZE, mode).motion.keypoints
    assert (result[..., 2] == points[..., 2]).all()
    if mode != "upstream":  # which moves whatever there is
        assert (result[3, 0, 113:] == 0).all()
        assert (result[:, 0, 18:24] == 0).all()


def test_everybody_goes_along_and_only_one_is_fitted(motion, reference):
    child = with_points(motion, mapped(motion.keypoints, 0.4, (10, 250)))
    both = side_by_side(child, motion)
    result = align(both, reference, SIZE, "bones")
    assert result.person == 1
    np.testing.assert_allclose(
        result.motion.keypoints[:, 0, :, :2], child.keypoints[:, 0, :, :2] * 0.7 + [20, 130], atol=0.05
    )
    smaller = align(both, reference, SIZE, "affine", person=0)
    assert smaller.scale == pytest.approx((0.7 / 0.4,) * 2, rel=1e-4)


def test_people_who_are_not_there_stay_away(motion, reference):
    present = motion.present.copy()
    present[5:9] = False
    points = motion.keypoints.copy()
    points[5:9] = 0
    away = with_points(dataclasses.replace(motion, present=present), points)
    for mode in MODES:
        result = align(away, reference, SIZE, mode)
        assert not result.motion.keypoints[5:9].any()
        assert np.isnan(result.motion.face_boxes[5:9]).all()
        assert (result.motion.present == present).all()


@pytest.mark.parametrize(("seed", "framing"), [(1, "whole"), (5, "half"), (3, "whole"), (4, "half")])
def test_puppets_of_other_builds_become_the_reference(seed, framing):
    driving = sample_scene("train", seed, framing=framing, size=(160, 160), frames=16).motion()
    person = sample_scene("train", seed + 20, framing=framing, size=(96, 160)).reference().keypoints[0]
    numbers = {mode: align(driving, person, (96, 160), mode).after for mode in MODES}
    assert numbers["affine"].number < numbers["none"].number
    assert numbers["affine"].limbs < numbers["upstream"].limbs
    assert numbers["bones"].limbs < numbers["affine"].limbs
    assert numbers["bones"].number < 0.1


def test_what_is_said_and_kept(motion, reference):
    result = align(motion, reference, SIZE, "similarity")
    assert result.describe().startswith("aligned (similarity): scale 0.700, ")
    assert "before, misalignment 0.00: limbs 0.00 (shoulders x1.00" in result.describe()
    kept = json.loads(json.dumps(result.to_json()))
    assert kept["mode"] == "similarity"
    assert kept["before"]["number"] > 0.4 > kept["after"]["number"]
    stretched = align(motion, reference, SIZE, "upstream").describe()
    assert "scale 0.400 across and 0.701 down" in stretched


def test_refusals_say_what_helps(motion, reference):
    with pytest.raises(ValueError, match="alignment 'bone': expected one of upstream, affine, bones"):
        align(motion, reference, SIZE, "bone")
    with pytest.raises(ValueError, match=r"shape \(18, 3\)"):
        align(motion, reference[:18], SIZE, "affine")
    blind = reference * [1, 1, 0]
    for mode in ("upstream", "affine", "bones", "similarity"):
        with pytest.raises(NoPerson, match="the reference image shows 0 of the points") as caught:
            align(motion, blind, SIZE, mode)
        assert "--align none" in str(caught.value.hint)
    unseen = dataclasses.replace(motion, keypoints=motion.keypoints * np.float32([1, 1, 0]))
    with pytest.raises(NoPerson, match="the motion shows 0 of the points"):
        align(unseen, reference, SIZE, "affine")
    nobody = dataclasses.replace(motion, present=np.zeros_like(motion.present))
    with pytest.raises(NoPerson, match="no person in any frame"):
        align(nobody, reference, SIZE, "none")
    pair = side_by_side(motion, motion)
    with pytest.raises(NoPerson, match="none of 20 frames has one") as caught:
        align(pair, reference, SIZE, "upstream")
    assert "--person" in str(caught.value.hint)
    with pytest.raises(NoPerson, match="shows 1 of the points"):
        align(motion, np.where(np.arange(134)[:, None] == 0, reference, 0), SIZE, "upstream")
