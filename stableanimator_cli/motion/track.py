"""Tracking: detections of single frames joined to people, and the selection of a person.

In each frame, known people are matched with the detections so that the sum of similarities is greatest (Kuhn, "The
Hungarian method"; ``scipy.optimize.linear_sum_assignment``). Similarity combines the overlap of boxes and the distance
of body points relative to body size. Both are measured from the position predicted at constant velocity (Bewley et al.,
"SORT"; point distances as in COCO's object keypoint similarity). Appearance vectors contribute their cosine.
The tracker is our own because common ones (SORT, ByteTrack) match boxes only, neither keypoints nor faces. Nothing is
random: equal detections give equal people.
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
from stableanimator_cli.motion.left_to_right import horizontal_centres
from stableanimator_cli.records import Motion


@dataclass(frozen=True, slots=True)
class Largest:
    """The ``count`` largest people of a motion, or all if it has fewer."""

    count: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """People by their track numbers, in this order."""

    numbers: tuple[int, ...]


PersonSelector = Literal["largest", "all"] | int | tuple[float, float, float, float] | Largest | Numbers

MAX_GAP = 30
PERSON_FORMS = "largest, all, a person's number from 0, or a box x0,y0,x1,y1 in pixels"
_MIN_SIMILARITY = 0.2  # 0..1: a less similar detection does not continue a track
_SAME = 0.5  # minimum cosine at which a person is recognised by appearance alone
_OTHER = 0.2  # below this cosine it is another person, whatever the position
_SPREAD = 0.35  # point distance, in shares of a body's size, at which similarity has fallen to exp(-1/2)
_SPREAD_PER_MISS = 0.1  # added to it per frame without a detection
_COAST = 5  # frames for which an undetected person is assumed to keep moving


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """People of a clip. Absent people have keypoints of 0, boxes of NaN and ``source`` -1.

    ``keypoints`` float32[t,p,134,3], ``boxes`` float32[t,p,4], ``present`` bool[t,p], ``track`` int64[p] numbered in
    the order of appearance, from left to right if several appear in one frame, ``source`` int64[t,p] index of the
    detection within its frame.
    """

    keypoints: np.ndarray
    boxes: np.ndarray
    present: np.ndarray
    track: np.ndarray
    source: np.ndarray

    def motion(
        self, size: tuple[int, int], times: tuple[Fraction, ...] | None = None, face_boxes: np.ndarray | None = None
    ) -> Motion:
        """``face_boxes`` float32[t,p,4] default to the boxes of the face points."""
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
    minimum: int = 1,
) -> Tracks:
    """Join detections to people.

    ``frames`` holds float32[n,134,3] per frame (n may be 0 and differ); ``boxes`` float32[n,4 or more] of the same
    people (default: boxes of the visible points); ``appearance`` float32[n,d], a row of NaN if unknown, of any length.
    A person undetected for more than ``max_gap`` frames is continued only by appearance; otherwise a new track starts.
    Tracks of fewer than ``minimum`` frames are left out. A clip without people gives p = 0.
    Raises ``ValueError`` if the lists disagree.
    """
    tracker = Tracker(max_gap=max_gap)
    counts = [len(people) for people in frames]
    for name, rows in (("boxes", boxes), ("appearance", appearance)):
        if rows is not None and [len(row) for row in rows] != counts:
            raise ValueError(f"{name} of other frames or people than the keypoints")
    for index, people in enumerate(frames):
        tracker.add(people, None if boxes is None else boxes[index], None if appearance is None else appearance[index])
    return tracker.tracks(minimum=minimum)


@dataclass(slots=True)
class _Track:
    """One person so far: its detections, and the state that predicts its next position."""

    points: np.ndarray  # float64[18,3], the body when last detected
    box: np.ndarray
    last: int
    frames: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    appearance: np.ndarray | None = None

    def predicted_shift(self, frame: int) -> np.ndarray:
        return self.velocity * min(frame - self.last, _COAST)

    def update(self, frame: int, n: int, body: np.ndarray, box: np.ndarray, appearance: np.ndarray | None) -> None:
        """Continue with detection ``n`` of ``frame``."""
        elapsed = frame - self.last
        if self.frames and elapsed <= _COAST:
            both = visible(self.points) & visible(body)
            if both.any():
                velocity = np.median(body[both, :2] - self.points[both, :2], axis=0) / elapsed
                self.velocity = velocity if len(self.frames) == 1 else 0.5 * self.velocity + 0.5 * velocity
        elif self.frames:
            self.velocity = np.zeros(2)
        self.points, self.box, self.last = body, box, frame
        self.frames.append(frame)
        self.sources.append(n)
        if appearance is not None:
            known = self.appearance
            self.appearance = appearance if known is None else _unit(0.9 * known + 0.1 * appearance)


class Tracker:
    """``track`` frame by frame: ``add`` the people of each frame in order, then call ``tracks``."""

    def __init__(self, *, max_gap: int = MAX_GAP) -> None:
        if max_gap < 0:
            raise ValueError(f"max_gap {max_gap}: expected 0 frames or more")
        self._max_gap = max_gap
        self._tracks: list[_Track] = []
        self._detections: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, people: np.ndarray, boxes: np.ndarray | None = None, appearance: np.ndarray | None = None) -> None:
        """Add the next frame's people: float[n,134,3], boxes float[n,4 or more], appearance float[n,d]."""
        people = np.asarray(people, np.float32).reshape(-1, COUNT, 3)
        frame = len(self._detections)
        rows = bounding_box(people, minimum=1) if boxes is None else np.asarray(boxes, np.float32)
        rows = rows.reshape(len(people), -1)[:, :4] if len(people) else np.zeros((0, 4), np.float32)
        self._detections.append((people, rows))
        vectors = [None if appearance is None else _unit(appearance[n]) for n in range(len(people))]
        bodies = people[:, BODY].astype(np.float64)
        similarity = np.zeros((len(self._tracks), len(people)))
        for row, one in enumerate(self._tracks):
            for n in range(len(people)):
                similarity[row, n] = self._similarity(one, frame, bodies[n], rows[n], vectors[n])
        similarity = np.where(similarity >= _MIN_SIMILARITY, similarity, 0.0)
        matched = {n: self._tracks[row] for row, n in assign(similarity) if similarity[row, n] > 0}
        centres, new = horizontal_centres(people, face_box(people)), [n for n in range(len(people)) if n not in matched]
        for n in sorted(new, key=lambda n: (np.isnan(centres[n]), centres[n])):
            matched[n] = _Track(bodies[n], rows[n], frame)
            self._tracks.append(matched[n])
        for n in range(len(people)):
            matched[n].update(frame, n, bodies[n], rows[n], vectors[n])

    def settled(self, *, minimum: int) -> bool:
        """Whether later frames cannot change the numbers of people who were detected in ``minimum`` frames by now:
        no person whom fewer frames show, and whom later ones may show, comes before one of them."""
        enough = [len(one.frames) >= minimum for one in self._tracks]
        return all(enough[: sum(enough)])

    def tracks(self, *, minimum: int = 1) -> Tracks:
        """All people so far who were detected in at least ``minimum`` frames."""
        selected = [one for one in self._tracks if len(one.frames) >= minimum]
        shape = (len(self._detections), len(selected))
        keypoints = np.zeros((*shape, COUNT, 3), np.float32)
        boxes = np.full((*shape, 4), np.nan, np.float32)
        source = np.full(shape, -1, np.int64)
        for p, one in enumerate(selected):
            for frame, n in zip(one.frames, one.sources, strict=True):
                people, rows = self._detections[frame]
                keypoints[frame, p], boxes[frame, p], source[frame, p] = people[n], rows[n], n
        track = np.arange(len(selected), dtype=np.int64)
        return Tracks(keypoints=keypoints, boxes=boxes, present=source >= 0, track=track, source=source)

    def _similarity(
        self, one: _Track, frame: int, body: np.ndarray, box: np.ndarray, appearance: np.ndarray | None
    ) -> float:
        cosine = None if appearance is None or one.appearance is None else float(appearance @ one.appearance)
        missed = frame - one.last - 1
        if missed > self._max_gap:
            return cosine if cosine is not None and cosine >= _SAME else 0.0
        if cosine is not None and cosine < _OTHER:
            return 0.0
        spread = _SPREAD + _SPREAD_PER_MISS * missed
        # A hidden person may have moved on or stopped: the better of both counts.
        shifts = [one.predicted_shift(frame)] if missed == 0 else [one.predicted_shift(frame), np.zeros(2)]
        similarity = max(_pose_similarity(one, body, box, shift, spread) for shift in shifts)
        if cosine is None:
            return similarity
        return max((similarity + max(cosine, 0.0)) / 2, cosine if cosine >= _SAME and missed > 0 else 0.0)


def assign(similarity: np.ndarray) -> list[tuple[int, int]]:
    """The min(r, c) one-to-one pairs (row, column) of float64[r,c] with the greatest sum, by row."""
    from scipy.optimize import linear_sum_assignment  # the command line imports this module to parse --person

    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def match_faces(people: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Index int64[p] of the face float[n,4 or more] of each person float[p,134,3] of a frame, -1 for none.

    A face belongs to the person with most of the visible head points (nose, eyes, ears, face) in its box, at least
    half of them. The matching is one-to-one.
    """
    people, faces = np.asarray(people, np.float64), np.asarray(faces, np.float64)
    matched = np.full(len(people), -1, np.int64)
    if not len(people) or not len(faces):
        return matched
    head = people[:, [0, *range(14, 18), *range(24, 92)]]
    seen = visible(head)
    xy, box = head[:, None, :, :2], faces[None, :, None, :4]
    inside = ((xy >= box[..., :2]) & (xy <= box[..., 2:])).all(axis=-1) & seen[:, None]
    share = inside.sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)[:, None]
    # Of two people at the same face the one whose head is nearer to its centre wins.
    centre = (faces[:, :2] + faces[:, 2:4]) / 2
    middle = (head[..., :2] * seen[..., None]).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)[:, None]
    distance = np.linalg.norm(middle[:, None] - centre[None], axis=-1) / np.maximum(faces[:, 3] - faces[:, 1], 1e-6)
    similarity = np.where(share >= 0.5, share / (1 + distance), 0.0)
    for person, face in assign(similarity):
        if similarity[person, face] > 0:
            matched[person] = face
    return matched


def parse_selector(text: str) -> PersonSelector:
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
    """Index (not the track number) of the person with the largest sum of box areas over frames.

    Raises ``NoPerson`` if no frame shows a person.
    """
    if not motion.present.any():
        raise NoPerson("no person in any frame", hint="use a video in which a person can be seen")
    return int(np.argmax(_total_areas(motion)))


def largest_people(motion: Motion, limit: int) -> list[int]:
    """Indices of at most ``limit`` people who are present at least once, as ``largest`` measures them, largest first.

    Raises ``NoPerson`` if no frame shows a person.
    """
    first, areas = largest(motion), _total_areas(motion)
    others = [int(p) for p in np.argsort(-areas, kind="stable") if p != first and areas[p] >= 0]
    return [first, *others][:limit]


def _total_areas(motion: Motion) -> np.ndarray:
    """Sum of each person's box areas over all frames, float[p], -1 for people who are never present."""
    areas = np.where(motion.present, _areas(bounding_box(motion.keypoints)), 0.0).sum(axis=0)
    return np.where(motion.present.any(axis=0), areas, -1.0)


def select(motion: Motion, person: PersonSelector = "largest") -> Motion:
    """The motion with only the selected people; frames, sizes and times stay.

    ``largest``: see ``largest``. ``Largest``: several of them, in the motion's order. A whole number: the track of that
    number; ``Numbers``: several of them, in the given order. A box (x0, y0, x1, y1): the best fit in the
    first frame with an intersection over union of a third or more, else the best fit in any frame.
    ``all``: everybody present at least once. Raises ``NoPerson`` if the selected person is absent.
    """
    if person == "largest":
        return _only(motion, [largest(motion)])
    if person == "all":
        largest(motion)
        return _only(motion, np.flatnonzero(motion.present.any(axis=0)).tolist())
    if isinstance(person, Largest):
        return _only(motion, sorted(largest_people(motion, person.count)))
    appears = motion.present.any(axis=0)
    if isinstance(person, tuple):
        overlap = np.where(motion.present, _overlap(bounding_box(motion.keypoints), np.array(person)), 0.0)
        if not overlap.any():
            box = ",".join(f"{side:g}" for side in person)
            raise NoPerson(
                f"no person in the box {box} in any frame",
                hint=f"the frame is {motion.size[0]}x{motion.size[1]} pixels",
            )
        clear = np.flatnonzero(overlap.max(axis=1) >= 1 / 3)
        frame = int(clear[0]) if len(clear) else int(np.argmax(overlap.max(axis=1)))
        return _only(motion, [int(np.argmax(overlap[frame]))])
    people = []
    for number in person.numbers if isinstance(person, Numbers) else (person,):
        indices = np.flatnonzero((motion.track == number) & appears)
        if not len(indices):
            known = ", ".join(str(number) for number in motion.track[appears].tolist()) or "none"
            raise NoPerson(f"person {number}: found no person with that number, expected one of {known}",
                           hint="--person largest takes the one who fills most of the frame")  # fmt: skip
        people.append(int(indices[0]))
    return _only(motion, people)


def _only(motion: Motion, people: list[int]) -> Motion:
    return dataclasses.replace(
        motion,
        keypoints=motion.keypoints[:, people],
        present=motion.present[:, people],
        track=motion.track[people],
        face_boxes=motion.face_boxes[:, people],
    )


def _pose_similarity(one: _Track, body: np.ndarray, box: np.ndarray, shift: np.ndarray, spread: float) -> float:
    """0..1, from the overlap of boxes and the distance of body points, after moving ``one`` by ``shift``."""
    moved = one.box + np.tile(shift, 2)
    overlap = float(_overlap(moved[None], box)[0])
    both = visible(one.points) & visible(body)
    size = np.sqrt(max(_areas(one.box[None])[0], _areas(box[None])[0]))
    if both.sum() < 3 or not size > 0:
        return overlap
    distance = np.linalg.norm(body[both, :2] - one.points[both, :2] - shift, axis=-1) / size
    return (overlap + float(np.exp(-((distance / spread) ** 2) / 2).mean())) / 2


def _areas(boxes: np.ndarray) -> np.ndarray:
    """float64[...] of boxes [...,4]; 0 for boxes of NaN."""
    sides = np.nan_to_num(boxes[..., 2:] - boxes[..., :2], nan=0.0).clip(min=0).astype(np.float64)
    return sides[..., 0] * sides[..., 1]


def _overlap(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union [...] of boxes [...,4] with one [4]; 0 for boxes of NaN."""
    low, high = np.maximum(boxes[..., :2], other[:2]), np.minimum(boxes[..., 2:], other[2:])
    shared = _areas(np.concatenate([low, np.maximum(low, high)], axis=-1))
    both = _areas(boxes) + _areas(other) - shared
    return np.where(both > 0, shared / np.where(both > 0, both, 1.0), 0.0)


def _unit(vector: np.ndarray) -> np.ndarray | None:
    """The vector at length 1; None if it is zero or not finite."""
    vector = np.asarray(vector, np.float64)
    length = float(np.linalg.norm(vector))
    return vector / length if np.isfinite(length) and length > 0 else None
