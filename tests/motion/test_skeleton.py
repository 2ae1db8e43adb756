from __future__ import annotations

import json
import re
import tracemalloc
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.motion import keypoints as kp
from stableanimator_cli.motion import skeleton
from stableanimator_cli.motion.motion_file import from_pose_dict, to_pose_dict
from stableanimator_cli.records import Motion
from tests.motion import plain_drawing

GOLDEN = Path(__file__).parents[1] / "golden" / "reference"


def recorded_pose() -> np.ndarray:
    return from_pose_dict(json.loads((GOLDEN / "skeleton_draw_pose.json").read_text()))


def random_people(rng: np.random.Generator) -> np.ndarray:
    """One to three people as shares of the frame, small to scattered far over its edges; scores from 0 to over 1."""
    count = int(rng.integers(1, 4))
    spread = rng.choice([0.02, 0.2, 0.8])
    places = rng.uniform(-0.1, 1.1, (count, 1, 2)) + rng.normal(0, spread, (count, 134, 2))
    return np.concatenate([places, rng.uniform(0, 1.1, (count, 134, 1))], axis=-1)


def test_drawn_like_the_reference_implementation_at_every_recorded_size():
    people = recorded_pose()
    with np.load(GOLDEN / "skeleton_draw.npz") as golden:
        recorded = {name: golden[name] for name in golden.files}
    assert recorded
    for name, drawn in recorded.items():
        height, width = (int(n) for n in re.fullmatch(r"drawn_chw_(\d+)x(\d+)", name).groups())
        ours = skeleton.draw_normalised(people, (width, height))
        # What it returns in memory has the channels of the saved picture the other way round.
        np.testing.assert_array_equal(ours, drawn[::-1].transpose(1, 2, 0), err_msg=name)


def test_two_recorded_people_with_unseen_joints_and_points_outside():
    with np.load(GOLDEN / "pose_decode.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    pose = {name: arrays[f"pose_{name}"] for name in ("hands", "hands_score", "faces", "faces_score")}
    pose["bodies"] = {name: arrays[f"pose_bodies_{name}"] for name in ("candidate", "subset", "score")}
    drawn = arrays["drawn_chw"][::-1].transpose(1, 2, 0)
    size = drawn.shape[1], drawn.shape[0]
    np.testing.assert_array_equal(skeleton.draw_normalised(from_pose_dict(pose), size), drawn)
    pixels = np.concatenate([arrays["keypoints"], arrays["scores"][..., None]], axis=-1)
    np.testing.assert_array_equal(skeleton.draw_skeleton(pixels, size), drawn)


def test_our_channels_are_those_of_the_saved_picture():
    """The recorded PNG, read as RGB, is the first returned frame with channels turned: red nose, blue hand points."""
    with np.load(GOLDEN / "skeleton_cases.npz") as golden:
        names = [name.removesuffix("__returned") for name in golden.files if name.endswith("__returned")]
        assert names
        for name in names:
            picture = golden[f"{name}__png_as_pil_rgb"]
            np.testing.assert_array_equal(golden[f"{name}__returned"][0][::-1].transpose(1, 2, 0), picture)
    people = np.zeros((1, 134, 3))
    people[0, kp.INDEX["nose"]] = [200.5, 200.5, 1.0]
    people[0, kp.INDEX["left_hand_wrist"]] = [800.5, 900.5, 1.0]
    frame = skeleton.draw_skeleton(people, (2160, 2160))
    assert frame[200, 200].tolist() == [255, 0, 0]
    assert frame[900, 800].tolist() == [0, 0, 255]


@pytest.mark.parametrize("size", [(96, 128), (333, 509), (540, 960), (1080, 1920), (64, 64), (60, 16), (2300, 2200)])
def test_the_quick_way_changes_no_pixel(size):
    rng = np.random.default_rng(size)
    lit = 0
    for _ in range(2 if max(size) > 1000 else 5):
        people = random_people(rng)
        ours = skeleton.draw_normalised(people, size)
        np.testing.assert_array_equal(ours, plain_drawing.draw(people, size))
        lit += int(ours.any(axis=2).sum())
    assert lit > 50


@pytest.mark.parametrize(("score", "joints", "limb"), [(0.29, 1, False), (0.3, 1, True), (0.31, 2, True)])
def test_limbs_need_the_threshold_and_joints_more(score, joints, limb):
    people = np.zeros((1, 134, 3))
    people[0, 1] = [400, 1000, 1.0]
    people[0, 2] = [1600, 1000, score]
    frame = skeleton.draw_skeleton(people, (2160, 2160))
    assert frame[1000, 1000].any() == limb
    assert frame[1000, 400].any()
    assert (frame[1000, 1600].max() > 0.31 * 0.6 * 255) == (joints == 2)


def test_nobody_and_nothing_usable_leave_the_frame_black():
    assert not skeleton.draw_skeleton(np.zeros((0, 134, 3)), (50, 40)).any()
    assert skeleton.draw_skeleton(np.zeros((0, 134, 3)), (50, 40)).shape == (40, 50, 3)
    lost = np.ones((2, 134, 3))
    lost[0, :, 0] = np.nan
    lost[1, :, 1] = 1e30
    assert not skeleton.draw_skeleton(lost, (50, 40)).any()


def test_a_lost_point_takes_only_its_own_marks_along():
    people = recorded_pose()
    broken = people.copy()
    broken[0, kp.INDEX["left_wrist"]] = [np.nan, np.inf, 0.9]
    hidden = people.copy()
    hidden[0, kp.INDEX["left_wrist"], 2] = 0
    size = (192, 256)
    ours = skeleton.draw_normalised(broken, size)
    np.testing.assert_array_equal(ours, skeleton.draw_normalised(hidden, size))
    assert (ours != skeleton.draw_normalised(people, size)).any()


def test_a_small_figure_needs_little_memory():
    people = recorded_pose()
    people[..., :2] = 0.5 + (people[..., :2] - 0.5) * 0.1
    skeleton.draw_normalised(people, (512, 512))
    tracemalloc.start()
    skeleton.draw_normalised(people, (512, 512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2160 * 2160 * 3 / 3


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (4000, 10)])
def test_impossible_sizes_are_named(size):
    with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]}"):
        skeleton.draw_skeleton(np.zeros((0, 134, 3)), size)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="134"):
        skeleton.draw_skeleton(np.zeros((134, 3)), (10, 10))


def test_a_frame_of_a_motion_shows_those_present():
    size = (192, 256)
    pixels = (recorded_pose() * [*size, 1]).astype(np.float32)
    motion = Motion(
        keypoints=np.repeat(np.concatenate([pixels, pixels + np.array([40, 0, 0])], axis=0)[None], 2, axis=0).astype(
            np.float32
        ),
        present=np.array([[True, True], [False, True]]),
        track=np.array([0, 1]),
        face_boxes=np.full((2, 2, 4), np.nan, np.float32),
        size=size,
        times=(Fraction(0), Fraction(1, 25)),
    )
    both, second = skeleton.draw_frame(motion, 0), skeleton.draw_frame(motion, 1)
    np.testing.assert_array_equal(second, skeleton.draw_skeleton(motion.keypoints[1, 1:], size))
    assert both.any(axis=2).sum() > second.any(axis=2).sum()


def test_the_dictionary_form_goes_there_and_back():
    people = random_people(np.random.default_rng(5))
    people[:, kp.FEET] = 0  # the dictionary has no feet
    np.testing.assert_array_equal(from_pose_dict(to_pose_dict(people)), people)
    pose = json.loads((GOLDEN / "skeleton_draw_pose.json").read_text())
    again = to_pose_dict(from_pose_dict(pose))
    assert again["bodies"]["subset"].tolist() == pose["bodies"]["subset"]
    assert again["bodies"]["candidate"].tolist() == pose["bodies"]["candidate"]
    assert again["hands"].tolist() == pose["hands"]


def test_a_joint_marked_unseen_in_the_dictionary_stays_unseen():
    pose = to_pose_dict(recorded_pose())
    pose["bodies"]["subset"][0, 3] = -1
    assert from_pose_dict(pose)[0, 3, 2] == 0


def compressed(frame: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (192, 256), (512, 512)])
def test_skeletons_look_like_skeletons(size):
    frame = skeleton.draw_normalised(recorded_pose(), size)
    assert skeleton.looks_like_skeleton(frame)
    if min(size) > 64:
        assert skeleton.looks_like_skeleton(compressed(frame))


def test_thick_limbs_of_other_tools_look_like_skeletons():
    frame = np.zeros((512, 512, 3), np.uint8)
    spots = recorded_pose()[0, :, :2] * 512
    for (a, b), colour in zip(kp.BODY_LIMBS, skeleton.BODY_COLOURS, strict=False):
        cv2.line(frame, spots[a].astype(int).tolist(), spots[b].astype(int).tolist(), colour, thickness=8)
    assert skeleton.looks_like_skeleton(frame)


def test_pictures_do_not_look_like_skeletons():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 96, 3), np.uint8)
    black = np.zeros((96, 96, 3), np.uint8)
    stage = black.copy()  # coloured lights on a dark stage: black, colourful, but not thin
    for x, colour in ((20, (255, 0, 0)), (50, (0, 255, 0)), (75, (0, 0, 255))):
        cv2.circle(stage, (x, 40), 9, colour, -1)
    text = black.copy()  # white on black: thin, but without colours
    cv2.putText(text, "THE END", (5, 50), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255))
    assert [skeleton.looks_like_skeleton(f) for f in (noise, black, stage, text, noise // 8)] == [False] * 5
