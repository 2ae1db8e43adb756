"""Turn a pose into 3D joints: two-bone limbs with inverse kinematics, hands and feet.

Units are head heights, the origin is the base of the neck, x to the picture's right, y down, z towards the viewer. The
person's right side is at negative x when facing the viewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stableanimator_cli.puppets import moves as m
from stableanimator_cli.puppets.head import Array
from stableanimator_cli.puppets.sample import Build

SIGN = {"right": -1.0, "left": 1.0}
CHIN = -0.05  # height of the chin above the base of the neck
FOOT_DROP = 0.3  # feet are seen slightly from above: nearer points appear lower
HAND = 0.125  # length of a palm

# Fingers from index to little: position across the palm (towards the thumb) and length; bones relative to the length.
_ACROSS = np.array([0.36, 0.12, -0.12, -0.35])
_KNUCKLE_AT = HAND * (0.98 - np.abs(_ACROSS - 0.1) * 0.25)
_KNUCKLE_ACROSS = _ACROSS * HAND * 1.35
_FAN = _ACROSS * 0.6
_BONES = np.array([0.15, 0.165, 0.155, 0.12])[:, None] * np.array([0.45, 0.3, 0.25])
_BEND = 1.25 * np.array([[0.6], [1.6], [2.6]])
_THUMB_ON, _THUMB_ASIDE = np.array([[0.45], [0.7], [0.9]]), np.array([[0.9], [0.7], [0.45]])
_THUMB_FOLD, _THUMB_BONES = np.array([[0.0], [1.0], [2.0]]), np.array([[0.07], [0.055], [0.05]])

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Joints:
    """A posed body after rotation: each entry float[3] or float[n,3] (x, y, nearness).

    ``arm`` and ``leg`` hold shoulder, elbow, wrist and hip, knee, ankle; ``hand`` 21 points (wrist, thumb to little
    finger, four each); ``foot`` big toe, small toe, heel; ``spine`` the base of the neck and the middle of the hips.
    """

    arm: dict[str, Array]
    leg: dict[str, Array]
    hand: dict[str, Array]
    foot: dict[str, Array]
    spine: Array
    yaw: float


def _reach(start: Vector, goal: Vector, upper: float, lower: float, pole: Vector) -> tuple[Vector, Vector]:
    """Middle and end of a two-bone limb that bends along ``pole``, by the law of cosines."""
    dx, dy, dz = goal[0] - start[0], goal[1] - start[1], goal[2] - start[2]
    d = math.sqrt(dx * dx + dy * dy + dz * dz) or 1e-6
    ux, uy, uz = dx / d, dy / d, dz / d
    d = min(max(d, abs(upper - lower) + 0.05), (upper + lower) * 0.995)
    along = (upper * upper + d * d - lower * lower) / (2 * d)
    out = math.sqrt(max(0.0, upper * upper - along * along))
    dot = pole[0] * ux + pole[1] * uy + pole[2] * uz
    px, py, pz = pole[0] - dot * ux, pole[1] - dot * uy, pole[2] - dot * uz
    n = math.sqrt(px * px + py * py + pz * pz) or 1e-6
    middle = (
        start[0] + ux * along + px / n * out,
        start[1] + uy * along + py / n * out,
        start[2] + uz * along + pz / n * out,
    )
    return middle, (start[0] + ux * d, start[1] + uy * d, start[2] + uz * d)


def _hand(elbow: Array, wrist: Array, sign: float, curl: float, twist: float) -> Array:
    """21 points of a hand in line with the forearm; the thumb points inward and forward."""
    axis = wrist - elbow
    axis = axis / (math.sqrt(float(axis @ axis)) or 1.0)
    inward = np.array([-sign, 0.0, 0.65])
    thumb = inward - axis * float(inward @ axis)
    thumb = thumb / (math.sqrt(float(thumb @ thumb)) or 1.0)
    if twist:
        axis, thumb = axis * math.cos(twist) + thumb * math.sin(twist), thumb * math.cos(twist) - axis * math.sin(twist)
    palm = np.array(
        [
            axis[1] * thumb[2] - axis[2] * thumb[1],
            axis[2] * thumb[0] - axis[0] * thumb[2],
            axis[0] * thumb[1] - axis[1] * thumb[0],
        ]
    ) * (-sign)
    points = np.empty((21, 3))
    points[0] = wrist
    # Fingers: knuckles across the palm, then three bones each that bend towards the palm and fan out.
    points[5::4] = wrist + axis * _KNUCKLE_AT[:, None] + thumb * _KNUCKLE_ACROSS[:, None]
    angle = curl * _BEND
    bones = (axis * np.cos(angle) + palm * np.sin(angle))[None] + thumb * _FAN[:, None, None]
    fingers = points[5::4, None] + np.cumsum(bones * _BONES[..., None], axis=1)
    for n in range(4):
        points[6 + 4 * n : 9 + 4 * n] = fingers[n]
    points[1] = wrist + axis * 0.025 + thumb * 0.045
    folded = palm * (curl * 0.5) * _THUMB_FOLD
    points[2:5] = points[1] + np.cumsum((axis * _THUMB_ON + thumb * _THUMB_ASIDE + folded) * _THUMB_BONES, axis=0)
    return points


def pose_joints(pose: Array, build: Build) -> Joints:
    """The joints of a body in ``pose`` (``moves``), rotated by its yaw."""
    yaw, lean = float(pose[m.YAW]), float(pose[m.LEAN])
    cos, sin = math.cos(lean), math.sin(lean)
    hip_y = build.torso
    arms, legs, hands, feet = {}, {}, {}, {}
    for side in m.SIDES:
        sign = SIGN[side]
        sx, sy = sign * build.shoulders, 0.07
        shoulder = (sx, sy, 0.0)
        x, y, z = (float(value) for value in pose[m.WRIST[side]])
        reach = build.arm / 0.85
        goal = (sx + sign * x * reach, sy + y * reach, z * reach)
        # Elbows bend outward and down, and more outward if the arm is raised.
        pole = (sign * 0.75, 0.75, -0.55)
        elbow, wrist = _reach(shoulder, goal, build.arm * 0.52, build.arm * 0.48, pole)
        arm = np.array([shoulder, elbow, wrist])
        hand = _hand(arm[1], arm[2], sign, float(pose[m.CURL[side]]), float(pose[m.TWIST[side]]) * sign)
        upper = np.concatenate([arm, hand])
        # Leaning rotates everything above the hips about the hips.
        rx, ry = upper[:, 0].copy(), upper[:, 1] - hip_y
        upper[:, 0], upper[:, 1] = rx * cos - ry * sin, hip_y + rx * sin + ry * cos
        arms[side], hands[side] = upper[:3], upper[3:]

        hip = (sign * build.hips * 0.55, hip_y + 0.04, 0.0)
        dx, dy, dz = (float(value) for value in pose[m.ANKLE[side]])
        ground = (sign * (build.hips * 0.62 + dx), hip_y + 0.04 + build.leg + dy, dz)
        knee, ankle = _reach(hip, ground, build.leg * 0.51, build.leg * 0.5, (sign * 0.12, 0.0, 1.0))
        legs[side] = np.array([hip, knee, ankle])
        lift = 0.05
        feet[side] = np.array(ankle) + np.array(
            [[-sign * 0.02, lift, 0.24], [sign * 0.10, lift, 0.19], [0.0, lift, -0.06]]
        )
    neck = (hip_y * sin, hip_y - hip_y * cos, 0.0)
    spine = np.array([neck, (0.0, hip_y, 0.0)])
    turn = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
    for group in (arms, hands, legs, feet):
        for side in m.SIDES:
            group[side] = group[side] @ turn
    for side in m.SIDES:
        feet[side][:, 1] += FOOT_DROP * (feet[side][:, 2] - legs[side][2, 2])
    return Joints(arms, legs, hands, feet, spine @ turn, yaw)
