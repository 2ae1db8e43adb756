"""Draw bodies and clothes: limbs, torso, skirt, hands, shoes and head, from far to near."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stableanimator_cli.puppets import canvas as c
from stableanimator_cli.puppets import moves as m
from stableanimator_cli.puppets.face import FaceView, draw_brows, draw_ear, draw_face
from stableanimator_cli.puppets.garments import draw_skirt, draw_top, torso_widths
from stableanimator_cli.puppets.hair import covers_ears, draw_back, draw_front
from stableanimator_cli.puppets.head import HALF_HEIGHT, Array, Head, View, ear_distance
from stableanimator_cli.puppets.sample import RGB, Build, Clothes, Identity, shade
from stableanimator_cli.puppets.skeleton import CHIN, Joints, pose_joints

_BEHIND_TORSO = -0.10  # arm segments farther than this are drawn before the torso
_OUTLINE_WIDTH = 0.016  # width of a limb's outline
_BEFORE_HEAD = 0.27  # nearer than this, after the head


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A person to draw."""

    identity: Identity
    build: Build
    clothes: Clothes


@dataclass(frozen=True, slots=True)
class PersonGeometry:
    """Geometry of a drawn person for the ground truth, in canvas units."""

    joints: Joints
    face: FaceView
    view: View


def _edge(colour: RGB) -> RGB:
    return shade(colour, -0.38)


def _hand(canvas: c.Canvas, points: Array, colour: RGB, part: int) -> None:
    flat = points[:, :2]
    if canvas.is_outside(flat, 0.1):
        return
    edge = _edge(colour)
    chains = [flat[[0, 1, 2, 3, 4]], *(flat[5 + 4 * n : 9 + 4 * n] for n in range(4))]
    palm = flat[[0, 1, 5, 9, 13, 17]]
    canvas.polylines([*chains, np.concatenate([palm, palm[:1]])], edge, 0.064)
    canvas.polygon(palm, colour, part)
    canvas.polylines([*chains, np.concatenate([palm, palm[:1]])], colour, 0.040)
    canvas.label_lines([*chains, np.concatenate([palm, palm[:1]])], 0.052, part)


def _segments(canvas: c.Canvas, pieces: list[tuple[Array, Array, float, float, RGB, int]]) -> None:
    """Draw the limbs of one layer, all outlines first, so that joints have no seams."""
    for a, b, ra, rb, colour, _ in pieces:
        canvas.polygon(c.capsule(a, b, ra + _OUTLINE_WIDTH, rb + _OUTLINE_WIDTH), _edge(colour))
    for a, b, ra, rb, colour, part in pieces:
        canvas.polygon(c.capsule(a, b, ra, rb), colour, part)


def _arm(canvas: c.Canvas, person: Person, joints: Joints, side: str, layer: int) -> None:
    """Draw the segments of an arm in ``layer``: 0 behind the torso, 1 before it, 2 before the head."""
    clothes, skin, girth = person.clothes, person.identity.skin, person.build.girth
    shoulder, elbow, wrist = joints.arm[side]
    sleeve = clothes.second if clothes.top in ("yoke",) else clothes.colour
    upper = skin if clothes.sleeve == "none" else sleeve
    lower = sleeve if clothes.sleeve == "long" else skin
    if clothes.top == "jacket":
        upper = lower = clothes.colour
    upper_part, lower_part, hand_part = c.ARM[side]

    def layer_of(nearness: float) -> int:
        return 0 if nearness < _BEHIND_TORSO else 1 if nearness < _BEFORE_HEAD else 2

    # In profile the near upper arm is drawn over long hair, from the front a shoulder under it.
    top_layer = layer_of(0.5 * (shoulder[2] + elbow[2])) if shoulder[2] > 0.15 else min(1, layer_of(elbow[2] * 0.5))
    low_layer, hand_layer = layer_of(0.5 * (elbow[2] + wrist[2])), layer_of(joints.hand[side][9, 2])
    wide = 0.088 * girth
    pieces = []
    if top_layer == layer:
        pieces.append((shoulder[:2], elbow[:2], wide, 0.078 * girth, upper, upper_part))
    if low_layer == layer:
        pieces.append((elbow[:2], wrist[:2], 0.076 * girth, 0.058, lower, lower_part))
    if hand_layer == layer and low_layer != layer:
        _hand(canvas, joints.hand[side], skin, hand_part)
    _segments(canvas, pieces)
    if hand_layer == layer and low_layer == layer:
        _hand(canvas, joints.hand[side], skin, hand_part)
        if lower is not skin:  # the cuff
            start = wrist[:2] + (elbow[:2] - wrist[:2]) * 0.16
            canvas.polygon(c.capsule(start, wrist[:2], 0.062, 0.060), shade(lower, -0.14), lower_part)


def _leg(canvas: c.Canvas, person: Person, joints: Joints, side: str) -> None:
    clothes, skin, girth = person.clothes, person.identity.skin, person.build.girth
    hip, knee, ankle = joints.leg[side]
    leg_part, foot_part = c.LEG[side]
    bare = clothes.bottom != "trousers" or clothes.top == "dress"
    thigh = skin if clothes.bottom == "skirt" or clothes.top == "dress" else clothes.bottom_colour
    shin = skin if bare else clothes.bottom_colour
    big, small, heel = joints.foot[side]
    sole = np.stack([heel[:2], big[:2], small[:2]])
    shod = not canvas.is_outside(sole, 0.1)
    if shod:
        canvas.polylines([sole], _edge(clothes.shoes), 0.17, closed=True)
    _segments(
        canvas,
        [
            (hip[:2], knee[:2], 0.135 * girth, 0.105 * girth, thigh, leg_part),
            (knee[:2], ankle[:2], 0.10 * girth, 0.075 * girth, shin, leg_part),
        ],
    )
    if not shod:
        return
    canvas.polygon(sole, clothes.shoes, foot_part)
    canvas.polylines([sole], clothes.shoes, 0.14, closed=True)
    canvas.label_lines([np.concatenate([sole, sole[:1]])], 0.15, foot_part)
    canvas.polygon(c.capsule(ankle[:2], 0.5 * (heel[:2] + ankle[:2]), 0.078 * girth, 0.07), clothes.shoes, foot_part)


def _head(canvas: c.Canvas, view: View, pose: Array) -> FaceView:
    """Draw ears, skin, face and hair. From behind, the near half of the hair covers the skull."""
    who = view.head.identity
    sides = (-1.0, 1.0)
    ear = ear_distance(view.head)
    nearness = [view.project(np.array([[side * ear, 0.09, -0.03]]))[0, 2] for side in sides]
    for side, near in zip(sides, nearness, strict=True):
        if near <= 0.16:
            draw_ear(canvas, view, side)
    canvas.polygon(view.outline(), who.skin, c.HEAD, shade(who.skin, -0.38), 0.018)
    face = draw_face(canvas, view, float(pose[m.MOUTH]), float(pose[m.SMILE]), float(pose[m.BLINK]))
    for side, near in zip(sides, nearness, strict=True):
        if near > 0.16:
            draw_ear(canvas, view, side)
    draw_front(canvas, view)
    draw_brows(canvas, view, covers_ears(who))
    return face


def draw_person(canvas: c.Canvas, person: Person, pose: Array) -> PersonGeometry:
    """Draw one person in the canvas's coordinates. The base of the neck is at (X, Y) of the pose."""
    who = person.identity
    pose = pose.copy()
    pose[m.MOUTH : m.BLINK + 1] = np.clip(pose[m.MOUTH : m.BLINK + 1], 0, 1)
    pose[m.CURL["right"]], pose[m.CURL["left"]] = np.clip(pose[[m.CURL["right"], m.CURL["left"]]], 0, 1)
    joints = pose_joints(pose, person.build)
    move = np.array([pose[m.X], pose[m.Y], 0.0])
    for group in (joints.arm, joints.leg, joints.hand, joints.foot):
        for side in m.SIDES:
            group[side] += move
    joints.spine[:] += move

    # People mostly look ahead: the head takes back a part of the body's turn.
    head_yaw = float(pose[m.YAW] + pose[m.HEAD_YAW] - 0.25 * math.sin(pose[m.YAW]))
    tilt = float(pose[m.HEAD_ROLL] + 0.7 * pose[m.LEAN])
    neck = joints.spine[0]
    pivot = HALF_HEIGHT * 0.8
    centre = (neck[0] + math.sin(tilt) * pivot, neck[1] + CHIN - HALF_HEIGHT + pivot * (1 - math.cos(tilt)) - who.chin)
    view = View(Head(who), head_yaw, float(pose[m.HEAD_PITCH]), tilt, centre)

    draw_back(canvas, view)
    for side in m.SIDES:
        _arm(canvas, person, joints, side, 0)
    for side in sorted(m.SIDES, key=lambda name: joints.leg[name][1, 2] + joints.leg[name][2, 2]):
        _leg(canvas, person, joints, side)
    widths = torso_widths(person.build, joints.yaw)
    if person.clothes.bottom == "skirt" and person.clothes.top != "dress":
        draw_skirt(canvas, person.build, person.clothes, joints, widths, person.clothes.bottom_colour)
    draw_top(canvas, who, person.build, person.clothes, joints, widths)
    for side in sorted(m.SIDES, key=lambda name: joints.arm[name][1, 2]):
        _arm(canvas, person, joints, side, 1)
    face = _head(canvas, view, pose)
    for side in sorted(m.SIDES, key=lambda name: joints.arm[name][2, 2]):
        _arm(canvas, person, joints, side, 2)
    return PersonGeometry(joints, face, view)
