"""Who is who: detections of single frames joined to people, and one of them chosen.

Frames are taken in order. In each, known people are matched with the frame's detections so that the sum of their
likeness is greatest (Kuhn, "The Hungarian method"; ``scipy.optimize.linear_sum_assignment``). Likeness combines the
overlap of boxes and the distance of body points relative to body size. Both are measured from the position predicted
at constant velocity (Bewley et al., "SORT"; point distances as in COCO's object keypoint similarity). Where appearance
vectors are given, their cosine counts too. Nothing is random: the same detections give the same people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np

from stableanimator_cli.errors import NoPerson
from stableanimator_cli.motion.keypoints import BODY, COUNT, bounding_box, face_box, visible
from stableanimator_cli.records import Motion

Person = Literal["largest", "all"] | int | tuple[float, float, float, float]

MAX_GAP = 30
PERSON_FORMS = "largest, all, a person's number from 0, or a box x0,y0,x1,y1 in pixels"
_LIKE = 0.2  # the least likeness (0..1) at which a detection goes on with a person
_SAME = 0.5  # the least cosine at which somebody is known again by appearance alone
_OTHER = 0.2  # below this cosine it is somebody else, wherever they stand
_SPREAD = 0.35  # point distance, in shares of a body's size, at which likeness has fallen to exp(-1/2)
_LOOSER = 0.1  # and how much of it is added by each frame without a detection
_COAST = 5  # frames that somebody unseen is thought to go on moving


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """People through a clip: ``keypoints`` float32[t,p,134,3] and ``boxes`` float32[t,p,4] (zeros and NaN where
    absent), ``present`` bool[t,p], ``track`` int64[p], numbered in the order of appearance, and ``source`` int64[t,p]:
    which of the frame's detections it was, -1 where absent."""

    keypoints: np.ndarray
    boxes: np.ndarray
    present: np.ndarray
    track: np.ndarray
    source: np.ndarray

    def motion(
        self, size: tuple[int, int], times: tuple[Fraction, ...] | None = None, face_boxes: np.ndarray | None = None
    ) -> Motion:
        """The record. ``face_boxes`` float32[t,p,4] default to the boxes of the face points."""
        if face_boxes is None:
            face_boxes = np.where(self.present[..., None], face_box(self.keypoints), np.float32(np.nan))
        return Motion(
            keypoints=self.keypoints,
            present=self.present,
            track=self.track,
            face_boxes=face_boxes.astype(np.float32),
            size=size,
            times=times,
        )


def track(
    frames: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray] | None = None,
    *,
    appearance: Sequence[np.ndarray] | None = None,
    max_gap: int = MAX_GAP,
    least: int = 1,
) -> Tracks:
    """Join detections to people.

    ``frames`` holds float32[n,134,3] for each frame (n may be 0 and differ); ``boxes`` float32[n,4 or more] of the same
    people (default: boxes of the seen points); ``appearance`` float32[n,d], a row of NaN where there is none, of any
    length. Somebody unseen for more than ``max_gap`` frames is known again only by appearance; without it a new person
    begins. People seen in fewer than ``least`` frames are left out. A clip without anybody gives p = 0.
    ``ValueError`` where the lists disagree.
    """
    tracker = Tracker(max_gap=max_gap)
    counts = [len(people) for people in frames]
    for name, rows in (("boxes", boxes), ("appearance", appearance)):
        if rows is not None and [len(row) for row in rows] != counts:
            raise ValueError(f"{name} of other frames or people than the key points")
    for index, people in enumerate(frames):
        tracker.add(people, None if boxes is None else boxes[index], None if appearance is None else appearance[index])
    return tracker.tracks(least=least)


@dataclass(slots=True)
class _Track:
    """One person so far: where it was seen, and the state that predicts where it will be."""

    points: np.ndarray  # float64[18,3], the body when last seen
    box: np.ndarray
    last: int
    frames: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    look: np.ndarray | None = None

    def shift(self, frame: int) -> np.ndarray:
        return self.velocity * min(frame - self.last, _COAST)


class Tracker:
    """``track`` a frame at a time: ``add`` the people of each frame in order, then take ``tracks``."""

    def __init__(self, *, max_gap: int = MAX_GAP) -> None:
        if max_gap < 0:
            raise ValueError(f"max_gap {max_gap}: expected 0 frames or more")
        self._max_gap = max_gap
        self._tracks: list[_Track] = []
        self._found: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, people: np.ndarray, boxes: np.ndarray | None = None, appearance: np.ndarray | None = None) -> None:
        """Take the next frame's people: float[n,134,3], boxes float[n,4 or more], appearance float[n,d]."""
        people = np.asarray(people, np.float32).reshape(-1, COUNT, 3)
        frame = len(self._found)
        given = bounding_box(people, least=1) if boxes is None else np.asarray(boxes, np.float32)
        given = given.reshape(len(people), -1)[:, :4] if len(people) else np.zeros((0, 4), np.float32)
        self._found.append((people, given))
        looks = [None if appearance is None else _unit(appearance[n]) for n in range(len(people))]
        bodies = people[:, BODY].astype(np.float64)
        likeness = np.array(
            [
                [self._likeness(t, frame, bodies[n], given[n], looks[n]) for n in range(len(people))]
                for t in self._tracks
            ],
            np.float64,
        ).reshape(len(self._tracks), len(people))
        taken = {}
        for row, column in assign(np.where(likeness >= _LIKE, likeness, 0.0)):
            if likeness[row, column] >= _LIKE:
                taken[column] = self._tracks[row]
        for n in range(len(people)):
            if n not in taken:
                taken[n] = _Track(bodies[n], given[n], frame)
                self._tracks.append(taken[n])
            self._go_on(taken[n], frame, n, bodies[n], given[n], looks[n])

    def tracks(self, *, least: int = 1) -> Tracks:
        """Everybody so far who was seen in ``least`` frames or more."""
        kept = [t for t in self._tracks if len(t.frames) >= least]
        shape = (len(self._found), len(kept))
        keypoints = np.zeros((*shape, COUNT, 3), np.float32)
        boxes = np.full((*shape, 4), np.nan, np.float32)
        source = np.full(shape, -1, np.int64)
        for p, one in enumerate(kept):
            for frame, n in zip(one.frames, one.sources, strict=True):
                people, given = self._found[frame]
                keypoints[frame, p], boxes[frame, p], source[frame, p] = people[n], given[n], n
        return Tracks(
            keypoints=keypoints,
            boxes=boxes,
            present=source >= 0,
            track=np.arange(len(kept), dtype=np.int64),
            source=source,
        )

    def _likeness(self, one: _Track, frame: int, body: np.ndarray, box: np.ndarray, look: np.ndarray | None) -> float:
        cosine = None if look is None or one.look is None else float(look @ one.look)
        missed = frame - one.last - 1
        if missed > self._max_gap:
            return cosine if cosine is not None and cosine >= _SAME else 0.0
        if cosine is not None and cosine < _OTHER:
            return 0.0
        spread = _SPREAD + _LOOSER * missed
        # Somebody who was hidden may have gone on or stood still: the better of both counts.
        places = [one.shift(frame)] if missed == 0 else [one.shift(frame), np.zeros(2)]
        likeness = max(_near(one, body, box, place, spread) for place in places)
        if cosine is None:
            return likeness
        return max((likeness + max(cosine, 0.0)) / 2, cosine if cosine >= _SAME and missed > 0 else 0.0)

    def _go_on(
        self, one: _Track, frame: int, n: int, body: np.ndarray, box: np.ndarray, look: np.ndarray | None
    ) -> None:
        passed = frame - one.last
        if one.frames and passed <= _COAST:
            both = visible(one.points) & visible(body)
            if both.any():
                moved = np.median(body[both, :2] - one.points[both, :2], axis=0) / passed
                one.velocity = moved if len(one.frames) == 1 else 0.5 * one.velocity + 0.5 * moved
        elif one.frames:
            one.velocity = np.zeros(2)
        one.points, one.box, one.last = body, box, frame
        one.frames.append(frame)
        one.sources.append(n)
        if look is not None:
            one.look = look if one.look is None else _unit(0.9 * one.look + 0.1 * look)


def assign(likeness: np.ndarray) -> list[tuple[int, int]]:
    """The one-to-one pairs (row, column) of float64[r,c] whose sum is greatest, by row; min(r, c) pairs."""
    from scipy.optimize import linear_sum_assignment  # the command line imports this module to parse --person

    rows, columns = linear_sum_assignment(likeness, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def match_faces(people: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Which of the faces float[n,4 or more] of a frame belongs to each person float[p,134,3]: int64[p], -1 for none.

    A face belongs to whoever has most of their seen head points (nose, eyes, ears, face) in its box, at least half of
    them; nobody gets two, and no face goes to two.
    """
    people, faces = np.asarray(people, np.float64), np.asarray(faces, np.float64)
    owner = np.full(len(people), -1, np.int64)
    if not len(people) or not len(faces):
        return owner
    head = people[:, [0, *range(14, 18), *range(24, 92)]]
    seen = visible(head)
    xy, box = head[:, None, :, :2], faces[None, :, None, :4]
    inside = ((xy >= box[..., :2]) & (xy <= box[..., 2:])).all(axis=-1) & seen[:, None]
    share = inside.sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)[:, None]
    # Of two people on the same face the one whose head is nearer to its middle wins.
    centre = (faces[:, :2] + faces[:, 2:4]) / 2
    middle = (head[..., :2] * seen[..., None]).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)[:, None]
    away = np.linalg.norm(middle[:, None] - centre[None], axis=-1) / np.maximum(faces[:, 3] - faces[:, 1], 1e-6)
    likeness = np.where(share >= 0.5, share / (1 + away), 0.0)
    for person, face in assign(likeness):
        if likeness[person, face] > 0:
            owner[person] = face
    return owner


def parse_person(text: str) -> Person:
    """Parse ``largest``, ``all``, a track's number, or a box ``x0,y0,x1,y1`` in pixels. Raises ``ValueError``."""
    if text == "largest" or text == "all":
        return text
    parts = text.split(",")
    try:
        if len(parts) == 1 and int(text) >= 0:
            return int(text)
        x0, y0, x1, y1 = (float(part) for part in parts)
        if np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0:
            return x0, y0, x1, y1
    except ValueError:
        pass
    raise ValueError(f"person {text!r}: expected {PERSON_FORMS}")


def largest(motion: Motion) -> int:
    """The place (not the number) of the person who fills most: box areas summed over the frames they are in.

    ``NoPerson`` where nobody is in any frame.
    """
    areas = np.where(motion.present, _areas(bounding_box(motion.keypoints)), 0.0).sum(axis=0)
    if not motion.present.any():
        raise NoPerson("no person in any frame", hint="use a video in which a person can be seen")
    return int(np.argmax(np.where(motion.present.any(axis=0), areas, -1.0)))


def select(motion: Motion, person: Person = "largest") -> Motion:
    """The motion with only the chosen people; frames, sizes and times stay.

    ``largest``: see ``largest``. A whole number: the track of that number. A box (x0, y0, x1, y1): whoever fits it best
    in the first frame in which somebody overlaps it by a third (intersection over union), else whoever fits it best in
    any frame. ``all``: everybody who is there at least once. Raises ``NoPerson`` where the chosen one is not there.
    """
    if person == "largest":
        return _only(motion, [largest(motion)])
    if person == "all":
        largest(motion)
        return _only(motion, np.flatnonzero(motion.present.any(axis=0)).tolist())
    there = motion.present.any(axis=0)
    if isinstance(person, tuple):
        overlap = np.where(motion.present, _overlap(bounding_box(motion.keypoints), np.array(person)), 0.0)
        if not overlap.any():
            asked = ",".join(f"{side:g}" for side in person)
            raise NoPerson(f"no person in the box {asked} in any frame", hint=f"the frame is {_size(motion)} pixels")
        clear = np.flatnonzero(overlap.max(axis=1) >= 1 / 3)
        frame = int(clear[0]) if len(clear) else int(np.argmax(overlap.max(axis=1)))
        return _only(motion, [int(np.argmax(overlap[frame]))])
    places = np.flatnonzero((motion.track == person) & there)
    if not len(places):
        numbers = ", ".join(str(number) for number in motion.track[there].tolist()) or "none"
        raise NoPerson(f"person {person}: found no person with that number, expected one of {numbers}",
                       hint="--person largest takes the one who fills most of the frame")  # fmt: skip
    return _only(motion, [int(places[0])])


def _only(motion: Motion, places: list[int]) -> Motion:
    return dataclasses.replace(
        motion,
        keypoints=motion.keypoints[:, places],
        present=motion.present[:, places],
        track=motion.track[places],
        face_boxes=motion.face_boxes[:, places],
    )


def _size(motion: Motion) -> str:
    return f"{motion.size[0]}x{motion.size[1]}"


def _near(one: _Track, body: np.ndarray, box: np.ndarray, shift: np.ndarray, spread: float) -> float:
    """0..1: overlap of boxes and nearness of body points, ``one`` moved by ``shift``."""
    moved = one.box + np.tile(shift, 2)
    overlap = float(_overlap(moved[None], box)[0])
    both = visible(one.points) & visible(body)
    size = np.sqrt(max(_areas(one.box[None])[0], _areas(box[None])[0]))
    if both.sum() < 3 or not size > 0:
        return overlap
    away = np.linalg.norm(body[both, :2] - one.points[both, :2] - shift, axis=-1) / size
    return (overlap + float(np.exp(-((away / spread) ** 2) / 2).mean())) / 2


def _areas(boxes: np.ndarray) -> np.ndarray:
    """[...,4] -> [...]; 0 for boxes of NaN."""
    sides = np.nan_to_num(boxes[..., 2:] - boxes[..., :2], nan=0.0).clip(min=0).astype(np.float64)
    return sides[..., 0] * sides[..., 1]


def _overlap(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of [...,4] with [4]: [...]; 0 where a box is NaN."""
    low, high = np.maximum(boxes[..., :2], other[:2]), np.minimum(boxes[..., 2:], other[2:])
    shared = _areas(np.concatenate([low, np.maximum(low, high)], axis=-1))
    both = _areas(boxes) + _areas(other) - shared
    return np.where(both > 0, shared / np.where(both > 0, both, 1.0), 0.0)


def _unit(vector: np.ndarray) -> np.ndarray | None:
    """Of length 1; ``None`` for a vector that says nothing (zero or not finite)."""
    vector = np.asarray(vector, np.float64)
    length = float(np.linalg.norm(vector))
    return vector / length if np.isfinite(length) and length > 0 else None
