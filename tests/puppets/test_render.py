"""The truth about a drawn picture is the truth about its pixels."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from stableanimator_cli.puppets import moves as m
from stableanimator_cli.puppets import sample_scene
from stableanimator_cli.puppets.scene import Scene

FACE = slice(24, 92)


def posed(scene: Scene, *, yaw: float = 0.0, size: tuple[int, int] = (192, 192), **dofs: float):
    """One person at rest, turned by ``yaw``."""
    pose = m.rest_pose()
    pose[m.YAW] = yaw
    for name, value in dofs.items():
        pose[getattr(m, name)] = value
    return scene._draw([pose], 0.0, size)


def colour_at(image: np.ndarray, point: np.ndarray, reach: int = 1) -> np.ndarray:
    x, y = np.rint(point).astype(int)
    return image[y - reach : y + reach + 1, x - reach : x + reach + 1].reshape(-1, 3).astype(int)


def test_a_frame_is_the_same_whenever_it_is_drawn():
    scene = sample_scene("train", 3, people=2)
    first = scene.frame(7)
    scene.frame(2)
    scene.frame(9, (64, 96))
    for again in (scene.frame(7), sample_scene("train", 3, people=2).frame(7)):
        for name in ("image", "keypoints", "face_boxes", "landmarks", "identities", "depth"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_shapes_and_types():
    frame = sample_scene("val", 1, people=3).frame(0, (96, 64))
    assert frame.image.shape == (64, 96, 3)
    assert frame.image.dtype == np.uint8
    assert frame.keypoints.shape == (3, 134, 3)
    assert frame.keypoints.dtype == np.float32
    assert set(np.unique(frame.keypoints[..., 2])) <= {0.0, 1.0}
    assert np.isfinite(frame.keypoints).all()
    assert frame.face_boxes.shape == (3, 4)
    assert frame.landmarks.shape == (3, 5, 2)
    assert sorted(frame.depth) == [0, 1, 2]
    assert len(set(frame.identities)) == 3


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (512, 512), (96, 160), (250, 130)])
def test_any_size(size):
    frame = sample_scene("train", 0).frame(1, size)
    assert frame.image.shape == (size[1], size[0], 3)
    assert np.isfinite(frame.face_boxes).all()


@pytest.mark.parametrize("framing", ["half", "whole"])
def test_large_and_small_are_the_same_scene(framing):
    scene = sample_scene("train", 11, framing=framing)
    small, large = scene.frame(4, (128, 128)), scene.frame(4, (512, 512))
    np.testing.assert_allclose(large.keypoints[..., :2] + 0.5, 4 * (small.keypoints[..., :2] + 0.5), atol=1e-3)
    assert (large.keypoints[..., 2] == small.keypoints[..., 2]).mean() > 0.98
    reduced = cv2.resize(large.image, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - small.image).mean() < 3.5


def test_half_body_heads_fill_nearly_half_of_the_frame():
    shares = []
    for index in range(12):
        frame = posed(sample_scene("train", index), size=(128, 128))
        _, y0, _, y1 = frame.face_boxes[0]
        # The box goes from the middle of the forehead to the chin: about three quarters of a head.
        shares.append((y1 - y0) / 0.74 / 128)
    assert 0.38 < np.mean(shares) < 0.5


def test_the_cheek_has_the_colour_of_skin():
    hits = 0
    for index in range(10):
        scene = sample_scene("test", index)
        frame = posed(scene)
        who = scene.people[0].identity
        nose, corner = frame.landmarks[0, 2], frame.landmarks[0, 1]
        patch = colour_at(frame.image, np.array([corner[0] * 0.8 + nose[0] * 0.2, 0.5 * (nose[1] + corner[1])]), 6)
        hits += bool((np.abs(patch - who.skin).max(axis=1) < 14).any())
    assert hits >= 9


def test_visible_hands_are_drawn_where_the_points_are():
    checked = 0
    for index in range(8):
        scene = sample_scene("train", index, behaviour="wave")
        frame = scene.frame(5, (384, 384))
        skin = np.array(scene.people[0].identity.skin)
        for point in np.delete(frame.keypoints[0, 92:134], [0, 21], axis=0):  # a cuff may cover the wrist
            if point[2] > 0 and 3 < point[0] < 380 and 3 < point[1] < 380:
                patch = colour_at(frame.image, point[:2], 3)
                assert (np.abs(patch - skin).max(axis=1) < 40).any()
                checked += 1
    assert checked > 150


def test_sleeves_are_where_elbows_are():
    checked = 0
    for index in range(30):
        scene = sample_scene("train", index)
        clothes = scene.people[0].clothes
        if clothes.sleeve == "long" and clothes.top == "plain":
            frame = posed(scene)
            for elbow in (3, 6):
                patch = colour_at(frame.image, frame.keypoints[0, elbow, :2], 3)
                assert (np.abs(patch - clothes.colour).max(axis=1) < 20).any()
                checked += 1
    assert checked >= 2


def test_left_is_left():
    points = posed(sample_scene("train", 2)).keypoints[0]
    for right, left in ((2, 5), (8, 11), (9, 12), (14, 15), (16, 17), (21, 18)):
        assert points[right, 0] < points[left, 0]
    jaw, brows, eyes, mouth = points[24:41, 0], points[41:51, 0], points[60:72, 0], points[72:92, 0]
    assert (np.diff(jaw) > 0).all()
    assert (np.diff(brows) > 0).all()
    assert eyes[0] < eyes[3] < eyes[6] < eyes[9]
    assert mouth[0] == mouth.min()
    assert mouth[6] == mouth.max()
    assert points[24 + 8, 1] == points[24:41, 1].max()  # the chin is the lowest


def test_five_landmarks_follow_the_picture():
    eye, other, nose, corner, far = posed(sample_scene("train", 4)).landmarks[0]
    assert eye[0] < nose[0] < other[0]
    assert corner[0] < far[0]
    assert eye[1] < nose[1] < corner[1]


@pytest.mark.parametrize("index", [1, 6, 9])
def test_profile_and_back(index):
    scene = sample_scene("train", index)
    front, profile, back = (posed(scene, yaw=yaw) for yaw in (0.0, np.pi / 2, np.pi))
    seen = [frame.keypoints[0, FACE, 2].sum() for frame in (front, profile, back)]
    assert seen[0] > 60
    assert 15 < seen[1] < 50
    assert seen[2] == 0
    assert np.isfinite(profile.face_boxes).all()
    assert np.isnan(back.face_boxes).all()
    assert np.isnan(back.landmarks).all()
    # Turned to the picture's right, the left eye is on the far side and the nose ahead of everything.
    assert profile.keypoints[0, 14, 2] == 1
    assert profile.keypoints[0, 15, 2] == 0
    assert profile.keypoints[0, 0, 0] > profile.keypoints[0, 14, 0]


def test_an_arm_behind_the_body_is_hidden():
    scene = sample_scene("train", 1)
    front, profile = posed(scene), posed(scene, yaw=np.pi / 2)
    near, far = [3, 4], [6, 7]
    assert front.keypoints[0, near + far, 2].all()
    assert profile.keypoints[0, near, 2].all()
    assert not profile.keypoints[0, far, 2].any()


def test_hands_before_the_face_hide_it():
    pose = m.rest_pose()
    for side in m.SIDES:
        pose[m.WRIST[side]] = (-0.17, -0.30, 0.56)
        pose[m.CURL[side]] = 0.0
    scene = sample_scene("train", 4)
    free, hidden = posed(scene), scene._draw([pose], 0.0, (192, 192))
    assert hidden.keypoints[0, FACE, 2].sum() < free.keypoints[0, FACE, 2].sum() - 5


def test_who_stands_before_hides_who_stands_behind():
    for index in range(10):
        scene = sample_scene("train", index, people=3)
        frame = scene.reference()
        nearest, farthest = int(np.argmin(frame.depth)), int(np.argmax(frame.depth))
        inside = (frame.keypoints[..., :2] >= 0).all(-1) & (frame.keypoints[..., :2] <= 127).all(-1)
        covered = (inside & (frame.keypoints[..., 2] == 0)).sum(axis=1)
        assert covered[nearest] <= 6
        if covered[farthest] > 15:
            return
    pytest.fail("nobody was hidden by anybody in ten scenes of three")


def test_out_of_the_frame_is_not_visible():
    scene = sample_scene("train", 3)
    away = posed(scene, X=5.0)
    assert not away.keypoints[..., 2].any()
    assert np.isnan(away.face_boxes).all()
    half = posed(scene)
    assert not half.keypoints[0, 18:24, 2].any()  # feet are below a half-body frame
    assert half.keypoints[0, 18:24, 1].min() > 191


def test_closed_eyes_show_no_iris():
    scene = sample_scene("train", 4)
    iris = np.array(scene.people[0].identity.iris)

    def share(frame) -> int:
        (x0, y0, x1, y1) = frame.face_boxes[0].astype(int)
        return int((np.abs(frame.image[y0:y1, x0:x1].astype(int) - iris).max(axis=-1) < 12).sum())

    assert share(posed(scene)) > share(posed(scene, BLINK=1.0)) + 20


def test_reference_and_portrait_look_ahead():
    for index in range(6):
        scene = sample_scene("test", index, people=2)
        reference = scene.reference((256, 256))
        assert np.isfinite(reference.face_boxes).all()
        portrait = scene.portrait((256, 256), person=1)
        assert portrait.identities[0] == reference.identities[1]
        _, y0, _, y1 = portrait.face_boxes[0]
        assert y1 - y0 > 110
        assert portrait.keypoints[0, FACE, 2].sum() > 60


def test_two_people_can_be_told_apart_and_one_person_stays_the_same():
    def face(index: int, clip: int) -> np.ndarray:
        portrait = sample_scene("train", index, clip=clip).portrait((64, 64))
        x0, y0, x1, y1 = portrait.face_boxes[0].astype(int)
        across, down = (x1 - x0) // 6, (y1 - y0) // 6  # the corners of the box show backdrop and collar
        inner = portrait.image[y0 + down : y1 - down, x0 + across : x1 - across]
        return cv2.resize(inner, (32, 32), interpolation=cv2.INTER_AREA).astype(float)

    faces = np.stack([[face(index, clip) for clip in (0, 1)] for index in range(12)])
    same = np.abs(faces[:, 0] - faces[:, 1]).mean(axis=(1, 2, 3))
    others = [np.abs(faces[a, 0] - faces[b, 0]).mean() for a in range(12) for b in range(a)]
    assert same.max() < 2
    assert min(others) > 10


def test_motion_is_the_truth_of_all_frames():
    scene = sample_scene("train", 2, people=2, frames=5, fps=Fraction(30000, 1001))
    motion = scene.motion()
    assert len(motion) == 5
    assert motion.size == (128, 128)
    assert motion.times is not None
    assert motion.times[4] == Fraction(4 * 1001, 30000)
    np.testing.assert_array_equal(motion.keypoints[3], scene.frame(3).keypoints)
    np.testing.assert_array_equal(motion.face_boxes[3], scene.frame(3).face_boxes)
    assert motion.present.all()


def test_a_backdrop_may_drift_and_may_stand_still():
    drifting = {True: 0, False: 0}
    for index in range(20):
        scene = sample_scene("train", index)
        first, later = (scene.backdrop.draw((64, 64), seconds) for seconds in (0.0, 2.0))
        assert (first != later).any() == scene.backdrop.drifts
        drifting[scene.backdrop.drifts] += 1
    assert min(drifting.values()) >= 3
