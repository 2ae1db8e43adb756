"""Movements: named behaviours as smooth functions of time over 26 degrees of freedom.

A movement is an endless sequence of behaviours with cross-fades. It depends on seed and time alone, so any frame can be
drawn without the frames before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from stableanimator_cli.puppets.sample import derive_rng

# Degrees of freedom. Wrists are relative to their shoulder, ankles to their place on the ground; x is outward from the
# body, y down, z forward, in head heights. Angles are radians.
X, Y, YAW, LEAN, HEAD_YAW, HEAD_PITCH, HEAD_ROLL, MOUTH, SMILE, BLINK = range(10)
WRIST = {"right": slice(10, 13), "left": slice(13, 16)}
ANKLE = {"right": slice(16, 19), "left": slice(19, 22)}
CURL = {"right": 22, "left": 23}
TWIST = {"right": 24, "left": 25}
DOF = 26

SIDES = ("right", "left")
_REST_WRIST = (0.12, 0.77, 0.08)
_FADE = 0.45
_MAX_FACING_YAW = 0.75  # maximum yaw of a body that faces the viewer
_FACING_WEIGHT = {"turn": 0.25, "hide": 0.0, "visit": 0.0}  # factor of their frequency if people face the viewer

Pose = Callable[[np.ndarray, float], None]
"""Changes a rest pose float[DOF] to that of a behaviour at a time in seconds."""
Move = Callable[[np.random.Generator], Pose]


def rest_pose() -> np.ndarray:
    """The pose of a person standing still, float[DOF]."""
    pose = np.zeros(DOF)
    for side in SIDES:
        pose[WRIST[side]] = _REST_WRIST
        pose[CURL[side]] = 0.35
    pose[SMILE] = 0.3
    return pose


def _stand(rng: np.random.Generator) -> Pose:
    yaw, phase, rate = rng.uniform(-0.5, 0.5), rng.uniform(0, 6.28, 4), rng.uniform(0.8, 1.6)

    def at(pose: np.ndarray, t: float) -> None:
        pose[YAW] = yaw + 0.08 * math.sin(rate * t + phase[0])
        pose[LEAN] = 0.05 * math.sin(rate * t + phase[1])
        pose[Y] = 0.012 * math.sin(2.2 * t + phase[2])
        pose[10] += 0.04 * math.sin(rate * t + phase[3])
        pose[13] += 0.04 * math.sin(rate * t + phase[2])

    return at


def _akimbo(rng: np.random.Generator) -> Pose:
    yaw, both, rate = rng.uniform(-0.4, 0.4), rng.random() < 0.6, rng.uniform(1.0, 2.4)
    only = SIDES[int(rng.integers(2))]

    def at(pose: np.ndarray, t: float) -> None:
        for side in SIDES:
            if both or side == only:
                pose[WRIST[side]] = (0.0, 0.56, 0.14)
                pose[CURL[side]] = 0.8
        pose[YAW] = yaw + 0.15 * math.sin(rate * t)
        pose[LEAN] = 0.08 * math.sin(rate * t + 0.6)

    return at


def _wave(rng: np.random.Generator) -> Pose:
    sides = (SIDES[int(rng.integers(2))],) if rng.random() < 0.75 else SIDES
    rate, yaw, high = rng.uniform(5, 9), rng.uniform(-0.35, 0.35), rng.uniform(-0.5, -0.2)

    def at(pose: np.ndarray, t: float) -> None:
        for side in sides:
            pose[WRIST[side]] = (0.50 + 0.13 * math.sin(rate * t), high, 0.16)
            pose[CURL[side]] = 0.02
            pose[TWIST[side]] = 0.25 * math.sin(rate * t + 0.5)
        pose[YAW] = yaw
        pose[SMILE] = 0.9
        pose[MOUTH] = 0.35 + 0.25 * math.sin(3 * t)

    return at


def _walk(rng: np.random.Generator) -> Pose:
    rate, way = rng.uniform(4.5, 7.5), float(rng.choice([-1, 1]))
    yaw, reach, phase = way * rng.uniform(0.2, 1.5), rng.uniform(0.1, 0.55), rng.uniform(0, 6.28)

    def at(pose: np.ndarray, t: float) -> None:
        beat = rate * t + phase
        pose[X] = reach * math.sin(way * rate * 0.16 * t)
        for side, sign in zip(SIDES, (1.0, -1.0), strict=True):
            swing = math.sin(beat) * sign
            pose[WRIST[side]] = (0.10, 0.68 - 0.10 * abs(swing), 0.08 - 0.34 * swing)
            pose[ANKLE[side]] = (0.0, -0.16 * max(0.0, math.cos(beat) * sign), 0.30 * swing)
        pose[Y] = 0.035 * math.cos(2 * beat)
        pose[YAW] = yaw
        pose[LEAN] = 0.03 * math.sin(beat)

    return at


def _turn(rng: np.random.Generator) -> Pose:
    far = float(rng.choice([-1, 1])) * float(rng.choice([1.57, 2.4, 3.14, 3.14]))
    rate, out = rng.uniform(1.3, 2.4), rng.uniform(0.0, 0.35)

    def at(pose: np.ndarray, t: float) -> None:
        pose[YAW] = far * 0.5 * (1 - math.cos(rate * t))
        for side in SIDES:
            pose[WRIST[side]] = (0.16 + out, 0.62 - out * 0.5, 0.08)
        for side, sign in zip(SIDES, (1.0, -1.0), strict=True):
            pose[ANKLE[side]][1] = -0.08 * max(0.0, sign * math.sin(2 * rate * t))

    return at


def _jump(rng: np.random.Generator) -> Pose:
    rate, high, yaw = rng.uniform(0.9, 1.5), rng.uniform(0.18, 0.4), rng.uniform(-0.4, 0.4)

    def at(pose: np.ndarray, t: float) -> None:
        beat = (rate * t) % 1.0
        # A third of the beat on the ground, bending; then a parabola.
        air = 0.0 if beat < 0.34 else (beat - 0.34) / 0.66
        lift = 4 * air * (1 - air)
        crouch = math.sin(math.pi * beat / 0.34) if beat < 0.34 else 0.0
        pose[Y] = -high * lift + 0.14 * crouch
        for side in SIDES:
            pose[WRIST[side]] = (0.28 + 0.3 * lift, 0.62 - 0.85 * lift, 0.12)
            pose[CURL[side]] = 0.5 - 0.45 * lift
            # Feet stay on the ground while the body sinks, and are drawn up a little in the air.
            pose[ANKLE[side]] = (0.03, -0.14 * crouch - 0.12 * lift, 0.0)
        pose[MOUTH], pose[SMILE], pose[YAW] = 0.7 * lift, 0.8, yaw

    return at


def _hide(rng: np.random.Generator) -> Pose:
    only, rate = (None, SIDES[int(rng.integers(2))])[int(rng.integers(2))], rng.uniform(1.0, 2.0)

    def at(pose: np.ndarray, t: float) -> None:
        up = 0.5 * (1 - math.cos(rate * t * 1.6))
        for side in SIDES:
            if only is None or side == only:
                face = np.array([-0.17, -0.30, 0.56])
                pose[WRIST[side]] = (
                    np.array(_REST_WRIST) * (1 - up) + face * up + [0.25 * up * (1 - up), 0, 0.3 * up * (1 - up)]
                )
                pose[CURL[side]] = 0.35 * (1 - up)

    return at


def _dance(rng: np.random.Generator) -> Pose:
    rate = rng.uniform(3.5, 6.5)
    centre = {side: (rng.uniform(0.36, 0.5), rng.uniform(-0.2, 0.35), rng.uniform(0.05, 0.3)) for side in SIDES}
    span = {side: (rng.uniform(0.05, 0.18), rng.uniform(0.1, 0.3)) for side in SIDES}
    phase, yaw, step = rng.uniform(0, 6.28, 4), rng.uniform(0.1, 0.7), rng.uniform(0.05, 0.2)

    def at(pose: np.ndarray, t: float) -> None:
        for n, side in enumerate(SIDES):
            x, y, z = centre[side]
            a, b = span[side]
            beat = rate * t + phase[n]
            pose[WRIST[side]] = (x + a * math.cos(beat), y + b * math.sin(beat), z + 0.1 * math.sin(beat + 1))
            pose[CURL[side]] = 0.3 + 0.3 * math.sin(beat * 0.5)
            pose[TWIST[side]] = 0.3 * math.sin(beat)
            lift = max(0.0, math.sin(rate * t + (0, math.pi)[n]))
            pose[ANKLE[side]] = (0.08 * lift, -0.16 * lift, 0.05)
        pose[X] = step * math.sin(rate * 0.5 * t + phase[2])
        pose[Y] = 0.05 * math.sin(rate * t + phase[3])
        pose[LEAN] = 0.14 * math.sin(rate * 0.5 * t + phase[2] + 0.8)
        pose[YAW] = yaw * math.sin(rate * 0.35 * t + phase[3])
        pose[SMILE], pose[MOUTH] = 0.8, 0.3 + 0.3 * math.sin(rate * 0.5 * t)

    return at


def _talk(rng: np.random.Generator) -> Pose:
    rate, phase, yaw = rng.uniform(2.0, 4.0), rng.uniform(0, 6.28, 4), rng.uniform(-0.5, 0.5)

    def at(pose: np.ndarray, t: float) -> None:
        for n, side in enumerate(SIDES):
            beat = rate * t + phase[n]
            pose[WRIST[side]] = (0.10 + 0.14 * math.sin(beat), 0.42 + 0.14 * math.cos(beat * 0.8), 0.40)
            pose[CURL[side]] = 0.3 + 0.3 * math.sin(beat)
            pose[TWIST[side]] = 0.3 * math.cos(beat)
        pose[MOUTH] = 0.35 * (1 + math.sin(7.3 * t + phase[2]) * math.sin(2.9 * t))
        pose[SMILE], pose[YAW] = 0.4, yaw + 0.1 * math.sin(rate * 0.5 * t)

    return at


def _point(rng: np.random.Generator) -> Pose:
    side, rate = SIDES[int(rng.integers(2))], rng.uniform(1.2, 2.6)
    away, yaw = rng.uniform(0.35, 0.72), rng.uniform(-0.3, 0.3)

    def at(pose: np.ndarray, t: float) -> None:
        pose[WRIST[side]] = (away + 0.08 * math.sin(rate * t), 0.1 + 0.16 * math.cos(rate * t), 0.25)
        pose[CURL[side]] = 0.15
        pose[HEAD_YAW] = (0.3 if side == "left" else -0.3) * away
        pose[YAW] = yaw

    return at


def _visit(rng: np.random.Generator) -> Pose:
    walk, way = _walk(rng), float(rng.choice([-1, 1]))
    rate = rng.uniform(0.9, 1.5)

    def at(pose: np.ndarray, t: float) -> None:
        walk(pose, t)
        pose[X] = way * 2.4 * 0.5 * (1 + math.cos(rate * t))  # out of the frame, in, and out again
        pose[YAW] = -way * 1.25 * math.sin(rate * t)

    return at


MOVES: dict[str, tuple[Move, float]] = {
    "stand": (_stand, 0.12),
    "akimbo": (_akimbo, 0.09),
    "wave": (_wave, 0.15),
    "walk": (_walk, 0.12),
    "turn": (_turn, 0.11),
    "jump": (_jump, 0.07),
    "hide": (_hide, 0.025),
    "dance": (_dance, 0.15),
    "talk": (_talk, 0.09),
    "point": (_point, 0.06),
    "visit": (_visit, 0.035),
}  # behaviour: (function, frequency)


class Movement:
    """An endless movement.

    ``behaviour`` restricts it to one behaviour; by default they alternate at random. ``sway`` and ``bounce`` scale
    movements sideways and up and down to the room in the frame, except for ``visit``, which enters from outside.
    ``facing``: heads stay within three quarters of the front, except in a rare turn.
    """

    def __init__(
        self, seed: int, behaviour: str | None = None, *, sway: float = 1.0, bounce: float = 1.0, facing: bool = False
    ) -> None:
        rng = derive_rng("movement", seed)
        self._seed, self._only, self._sway, self._bounce, self._facing = seed, behaviour, sway, bounce, facing
        self._length = float(rng.uniform(1.6, 3.2))
        self._start = float(rng.uniform(0, 40.0))
        self._look = rng.uniform(0, 6.28, 6)
        self._speed = rng.uniform(0.5, 1.8, 3)
        self._reach = rng.uniform((0.1, 0.04, 0.03), (0.6, 0.2, 0.16))
        self._blink = float(rng.uniform(2.2, 4.0))
        self._parts: dict[int, tuple[str, Pose]] = {}

    def _segment(self, index: int) -> tuple[str, Pose]:
        if index not in self._parts:
            rng = derive_rng("behaviour", self._seed, index)
            weights = np.array(
                [weight * (_FACING_WEIGHT.get(key, 1.0) if self._facing else 1.0) for key, (_, weight) in MOVES.items()]
            )
            name = self._only or list(MOVES)[int(rng.choice(len(MOVES), p=weights / weights.sum()))]
            self._parts[index] = (name, MOVES[name][0](rng))
        return self._parts[index]

    def _segment_pose(self, index: int, local: float) -> np.ndarray:
        """The pose of one behaviour, with hands off the head, within the room."""
        name, apply = self._segment(index)
        pose = rest_pose()
        apply(pose, local)
        pose[Y] *= self._bounce
        if self._facing and name != "turn":
            pose[YAW] = _MAX_FACING_YAW * math.tanh(pose[YAW] / _MAX_FACING_YAW)
        if name != "visit":
            pose[X] *= self._sway
        if name != "hide":
            keep_hands_off_head(pose)
        return pose

    def behaviour(self, seconds: float) -> str:
        """Name of the behaviour at this time."""
        return self._segment(math.floor((seconds + self._start) / self._length))[0]

    def pose(self, seconds: float) -> np.ndarray:
        """The pose at this time, float[DOF]."""
        at = seconds + self._start
        index = math.floor(at / self._length)
        local = at - index * self._length
        pose = self._segment_pose(index, local)
        if local < _FADE:
            k = local / _FADE
            k = k * k * (3 - 2 * k)
            pose = k * pose + (1 - k) * self._segment_pose(index - 1, local + self._length)
            if "hide" not in (self._segment(index)[0], self._segment(index - 1)[0]):
                keep_hands_off_head(pose)  # the blend of two valid poses may be invalid
        for n, dof in enumerate((HEAD_YAW, HEAD_PITCH, HEAD_ROLL)):
            slow, fast = (
                math.sin(self._speed[n] * at + self._look[n]),
                math.sin(2.3 * self._speed[n] * at + self._look[n + 3]),
            )
            pose[dof] += (0.5 if self._facing else 1.0) * self._reach[n] * (0.7 * slow + 0.3 * fast)
        since = at % self._blink
        pose[BLINK] = max(pose[BLINK], 1 - abs(since - 0.11) / 0.11 if since < 0.22 else 0.0)
        return pose


def keep_hands_off_head(pose: np.ndarray) -> None:
    """Move raised hands outward. The head is as wide as the shoulders, so a rising hand would cut through the face."""
    for side in SIDES:
        x, y, _ = pose[WRIST[side]]
        if y < 0.12:
            pose[WRIST[side]][0] = max(x, 0.34 * min(1.0, (0.12 - y) / 0.2))
