"""Movements are smooth, follow from their seeds, and keep hands out of faces."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.puppets import moves as m
from stableanimator_cli.puppets.moves import MOVES, Movement
from stableanimator_cli.puppets.sample import derive_rng, sample_build
from stableanimator_cli.puppets.skeleton import pose_joints

BUILD = sample_build(derive_rng("test"))


def test_a_pose_follows_from_seed_and_time_alone():
    fresh, used = Movement(3), Movement(3)
    for seconds in (0.1, 9.0, 2.0):
        used.pose(seconds)
    np.testing.assert_array_equal(fresh.pose(5.25), used.pose(5.25))
    assert not np.allclose(fresh.pose(5.25), Movement(4).pose(5.25))


@pytest.mark.parametrize("name", MOVES)
def test_a_behaviour_moves_and_has_no_jumps(name):
    movement = Movement(1, behaviour=name)
    poses = np.stack([movement.pose(k / 100) for k in range(400)])
    assert movement.behaviour(1.0) == name
    assert np.ptp(poses, axis=0).max() > 0.05
    still = [dof for dof in range(m.DOF) if dof != m.BLINK]
    assert np.abs(np.diff(poses[:, still], axis=0)).max() < 0.2


def test_behaviours_fade_into_one_another():
    still = [dof for dof in range(m.DOF) if dof != m.BLINK]
    for seed in range(8):
        movement = Movement(seed, sway=0.35, bounce=0.6)
        poses = np.stack([movement.pose(k / 100) for k in range(1500)])[:, still]
        assert np.abs(np.diff(poses, axis=0)).max() < 0.25


def test_hands_on_their_way_go_round_the_head():
    pose = m.rest_pose()
    pose[m.WRIST["right"]] = (0.0, -0.3, 0.2)
    m.keep_hands_off_head(pose)
    assert pose[m.WRIST["right"]][0] == 0.34
    assert tuple(pose[m.WRIST["left"]]) == tuple(m.rest_pose()[m.WRIST["left"]])


def test_behaviours_follow_one_another():
    movement = Movement(2)
    assert len({movement.behaviour(seconds) for seconds in range(0, 200, 2)}) >= 8


def test_limbs_keep_their_length_and_stay_attached():
    movement = Movement(6)
    for k in range(60):
        joints = pose_joints(movement.pose(k * 0.37), BUILD)
        for side in m.SIDES:
            upper, lower = np.linalg.norm(np.diff(joints.arm[side], axis=0), axis=1)
            assert upper == pytest.approx(BUILD.arm * 0.52, abs=1e-6)
            assert lower == pytest.approx(BUILD.arm * 0.48, abs=1e-6)
            thigh, shin = np.linalg.norm(np.diff(joints.leg[side], axis=0), axis=1)
            assert thigh == pytest.approx(BUILD.leg * 0.51, abs=1e-6)
            assert shin == pytest.approx(BUILD.leg * 0.5, abs=1e-6)
            np.testing.assert_allclose(joints.hand[side][0], joints.arm[side][2], atol=1e-9)


def test_hands_before_the_face_are_rare():
    head = np.array([0.0, -0.56])
    close = total = 0
    for seed in range(40):
        movement = Movement(seed)
        for k in range(20):
            pose = movement.pose(k * 0.5)
            pose[[m.X, m.Y, m.YAW]] = 0
            joints = pose_joints(pose, BUILD)
            total += 2
            close += sum(np.linalg.norm(joints.hand[side][9, :2] - head) < 0.36 for side in m.SIDES)
    assert 0 < close / total < 0.05


def test_turning_round_swaps_the_sides():
    pose = m.rest_pose()
    front = pose_joints(pose, BUILD)
    pose[m.YAW] = np.pi
    back = pose_joints(pose, BUILD)
    assert front.arm["right"][0, 0] < 0 < front.arm["left"][0, 0]
    assert back.arm["left"][0, 0] < 0 < back.arm["right"][0, 0]


def test_an_open_hand_is_longer_than_a_fist():
    pose, reach = m.rest_pose(), []
    for curl in (0.0, 1.0):
        pose[m.CURL["left"]] = curl
        hand = pose_joints(pose, BUILD).hand["left"]
        reach.append(np.linalg.norm(hand[12] - hand[0]))
    assert reach[0] > 1.4 * reach[1]
