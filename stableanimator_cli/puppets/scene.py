"""Scenes: people with clothes, a backdrop and movements, drawn at any size and time."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.puppets import moves as m
from stableanimator_cli.puppets.backdrop import Backdrop
from stableanimator_cli.puppets.body import Person
from stableanimator_cli.puppets.canvas import supersampling
from stableanimator_cli.puppets.moves import Movement
from stableanimator_cli.puppets.render import Placement, PuppetFrame, draw_people
from stableanimator_cli.puppets.sample import (
    MAX_PEOPLE,
    derive_rng,
    derive_seed,
    exaggerate_features,
    global_index,
    sample_build,
    sample_clothes,
    sample_identity,
)
from stableanimator_cli.records import Motion

Framing = Literal["half", "whole", "mixed", "portrait"]
FRAMINGS: tuple[str, ...] = get_args(Framing)
MIN_SIDE, MAX_SIDE = 32, 4096
_PORTRAIT_STROKE = 1.5  # width of a portrait's thin strokes


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise ConfigError("--size", f"{size[0]}x{size[1]}", f"sides of {MIN_SIDE} to {MAX_SIDE} pixels")
    return size


class Scene:
    """A clip that is drawn on demand, determined by its seeds. Use ``sample_scene`` to make one."""

    def __init__(
        self, people: tuple[Person, ...], *, seed: int, framing: str, size: tuple[int, int], frames: int, fps: Fraction,
        behaviour: str | None,
    ) -> None:  # fmt: skip
        self.people, self.seed, self.framing = people, seed, framing
        self.size, self.frames, self.fps = size, frames, fps
        self.backdrop = Backdrop(seed)
        room = {"sway": 0.8 if len(people) == 1 else 0.35, "bounce": 0.6 if framing == "half" else 1.0}
        if framing == "portrait":
            room = {"sway": 0.5 if len(people) == 1 else 0.2, "bounce": 0.35}
        self._detail = _PORTRAIT_STROKE if framing == "portrait" else 1.0
        self._movements = [
            Movement(derive_seed(seed, n), behaviour, **room, facing=framing == "portrait") for n in range(len(people))
        ]
        rng = derive_rng("stage", seed)
        self._zoom, self._shift = float(rng.uniform(0.92, 1.06)), rng.uniform(-1, 1, (len(people), 2))
        self._rank = [0] if len(people) == 1 else [int(r) for r in rng.permutation(len(people))]

    def with_movements_of(self, other: Scene) -> Scene:
        """The same people, clothes and backdrop with the movements and places of ``other``."""
        scene = copy(self)
        scene._movements, scene._zoom, scene._shift = other._movements, other._zoom, other._shift
        return scene

    def behaviour(self, t: float, person: int = 0) -> str:
        """Name of the behaviour of ``person`` at frame ``t``."""
        return self._movements[person].behaviour(float(t / self.fps))

    def frame(self, t: float, size: tuple[int, int] | None = None) -> PuppetFrame:
        """Draw frame ``t`` (from 0, fractions allowed) at ``size`` (width, height), by default the scene's."""
        seconds = float(t / self.fps)
        return self._draw([movement.pose(seconds) for movement in self._movements], seconds, size or self.size)

    def clip(self, size: tuple[int, int] | None = None) -> Iterator[PuppetFrame]:
        """All frames in order."""
        for t in range(self.frames):
            yield self.frame(t, size)

    def reference(self, size: tuple[int, int] | None = None) -> PuppetFrame:
        """Draw the people, clothes and backdrop from the front, in a pose that is not in the clip."""
        poses = []
        for n in range(len(self.people)):
            rng = derive_rng("reference", self.seed, n)
            pose = m.rest_pose()
            pose[m.YAW], pose[m.HEAD_YAW] = rng.uniform(-0.12, 0.12), rng.uniform(-0.1, 0.1)
            pose[m.HEAD_ROLL], pose[m.LEAN], pose[m.SMILE] = rng.uniform(-0.05, 0.05), rng.uniform(-0.03, 0.03), 0.5
            for side in m.SIDES:
                pose[m.WRIST[side]] += rng.uniform((0.0, -0.12, 0.0), (0.2, 0.05, 0.15))
            poses.append(pose)
        return self._draw(poses, 0.0, size or self.size)

    def portrait(self, size: tuple[int, int] | None = None, person: int = 0) -> PuppetFrame:
        """Draw one person's head large and from the front."""
        width, height = size = _check_size(size or self.size)
        unit = 0.66 * min(height, width * 1.05)
        pose = m.rest_pose()
        placement = Placement(neck=(width / 2, height * 0.54 + 0.55 * unit), unit=unit, rank=0)
        factor = supersampling(size)
        backdrop = self.backdrop.draw((width * factor, height * factor), 0.0)
        return draw_people(backdrop, size, factor, [self.people[person]], [pose], [placement], self._detail)

    def motion(self, size: tuple[int, int] | None = None) -> Motion:
        """Ground-truth motion of the clip."""
        return frames_to_motion(list(self.clip(size)), size or self.size, self.fps)

    def _placements(self, size: tuple[int, int]) -> list[Placement]:
        width, height = size
        count = len(self.people)
        if self.framing in ("half", "portrait"):
            close = self.framing == "portrait"
            unit = (
                (0.5 if close else 0.42)
                * min(height, width * (1.15 if count == 1 else 1.0))
                * (1.0, 0.82, 0.66)[count - 1]
            )
            neck = height * ((0.66 if close else 0.57) if count == 1 else 0.6)
            bottom = None
        else:
            # Room for the tallest person, hair and feet included.
            tallest = max(person.build.torso + person.build.leg for person in self.people) + 1.72
            unit = min(height / tallest, width / (1.6, 2.6, 3.5)[count - 1])
            neck, bottom = 0.0, height * 0.95
        unit *= self._zoom
        apart = ((0.0,), (-0.56, 0.56), (-0.95, 0.0, 0.95))[count - 1]
        placements = []
        for n, person in enumerate(self.people):
            rank = self._rank[n]
            scale = unit * (1 - 0.05 * rank)
            dx, dy = self._shift[n]
            y = neck if bottom is None else bottom - (person.build.torso + person.build.leg + 0.2) * scale
            x = width / 2 + (apart[n] + 0.07 * dx) * unit
            placements.append(Placement(neck=(x, y + (0.03 * dy - 0.08 * rank) * unit), unit=scale, rank=rank))
        return placements

    def _draw(self, poses: list[np.ndarray], seconds: float, size: tuple[int, int]) -> PuppetFrame:
        width, height = _check_size(size)
        factor = supersampling(size)
        backdrop = self.backdrop.draw((width * factor, height * factor), seconds)
        return draw_people(backdrop, size, factor, self.people, poses, self._placements(size), self._detail)


def frames_to_motion(frames: list[PuppetFrame], size: tuple[int, int], fps: Fraction) -> Motion:
    """The motion of a clip's frames. A person is present if at least three body keypoints are visible."""
    keypoints = np.stack([frame.keypoints for frame in frames])
    return Motion(
        keypoints=keypoints,
        present=(keypoints[:, :, :18, 2] > 0).sum(axis=2) >= 3,
        track=np.arange(keypoints.shape[1]),
        face_boxes=np.stack([frame.face_boxes for frame in frames]),
        size=size,
        times=tuple(t / fps for t in range(len(frames))),
    )


def sample_scene(
    split: str, index: int, *, people: int = 1, framing: str = "half", size: tuple[int, int] = (128, 128),
    frames: int = 16, fps: Fraction | int = 8, clip: int = 0, behaviour: str | None = None,
) -> Scene:  # fmt: skip
    """The ``index``-th scene of a split. Splits share no person and no movement.

    An ``index`` identifies the people; another ``clip`` shows them with other clothes, bodies, places and movements.
    ``framing`` is ``half`` (head and trunk, the head about 45 % of the height), ``whole`` (head to foot), ``mixed``
    (either of these) or ``portrait`` (a larger head with bolder features that mostly faces the viewer). ``behaviour``
    restricts the movement to one of ``moves.MOVES``. Raises ``ConfigError`` for invalid values.
    """
    if not 1 <= people <= MAX_PEOPLE:
        raise ConfigError("--people", people, f"1 to {MAX_PEOPLE}")
    if framing not in FRAMINGS:
        raise ConfigError("--framing", framing, f"one of {', '.join(FRAMINGS)}")
    if behaviour is not None and behaviour not in m.MOVES:
        raise ConfigError("--behaviour", behaviour, f"one of {', '.join(m.MOVES)}")
    if frames < 1:
        raise ConfigError("--frames", frames, "1 or more")
    if fps <= 0:
        raise ConfigError("--fps", str(fps), "more than 0")
    number = global_index(split, index)
    seed = derive_seed("scene", number, clip)
    if framing == "mixed":
        framing = "half" if derive_rng("framing", seed).random() < 0.6 else "whole"
    characters = []
    for n in range(people):
        identity = sample_identity(global_index(split, index * MAX_PEOPLE + n))
        if framing == "portrait":
            identity = exaggerate_features(identity)
        characters.append(
            Person(
                identity=identity,
                build=sample_build(derive_rng("build", seed, n)),
                clothes=sample_clothes(derive_rng("clothes", seed, n), identity.skin),
            )
        )
    return Scene(
        tuple(characters),
        seed=seed,
        framing=framing,
        size=_check_size(size),
        frames=frames,
        fps=Fraction(fps),
        behaviour=behaviour,
    )
