"""Identity gate: similarity to the reference per frame, a threshold on it, and its curve in the preview."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stableanimator_cli.animate.people import PersonFace
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.diffusion.windows import WindowPlan
from stableanimator_cli.errors import CheckFailed
from stableanimator_cli.motion.track import match_faces
from stableanimator_cli.records import Motion

STRIP = 32  # height of the curve in the preview, pixels
_CURVES = ((255, 210, 90), (110, 200, 255), (255, 130, 170), (150, 230, 120))  # of people, in turn
_GRID = (90, 90, 90)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceSimilarity:
    """Cosine per frame of the largest face's embedding with the reference's; NaN if a frame shows no face.

    ``people``: that of each ``person`` (the motion's number) who has a face of one's own; then ``similarity`` is their
    mean.
    """

    similarity: np.ndarray
    people: tuple[FaceSimilarity, ...] = ()
    person: int | None = None

    @classmethod
    def of_people(cls, similarity: np.ndarray, numbers: Sequence[int]) -> FaceSimilarity:
        """From float[t,k], one column per person of ``numbers``."""
        seen = np.isfinite(similarity)
        mean = np.where(seen, similarity, 0).sum(axis=1) / np.where(seen.any(axis=1), seen.sum(axis=1), np.nan)
        columns = zip(similarity.T, numbers, strict=True)
        return cls(similarity=mean, people=tuple(cls(similarity=column, person=number) for column, number in columns))

    @property
    def mean(self) -> float:
        """Mean over the frames that show a face; NaN if none does."""
        seen = self.similarity[np.isfinite(self.similarity)]
        return float(seen.mean()) if len(seen) else float("nan")

    @property
    def frames_with_face(self) -> int:
        return int(np.isfinite(self.similarity).sum())

    @property
    def hidden(self) -> str:
        """Numbers of the people who show no face in any frame, separated by commas."""
        return ", ".join(str(one.person) for one in self.people if one.frames_with_face == 0)

    def to_json(self) -> dict[str, object]:
        values = [None if np.isnan(value) else round(float(value), 4) for value in self.similarity]
        seen = self.frames_with_face
        mean = None if seen == 0 else round(self.mean, 4)
        people = {"people": [one.to_json() for one in self.people]} if self.people else {}
        person = {} if self.person is None else {"person": self.person}
        return {**person, "mean": mean, "frames_with_face": seen, "similarity": values, **people}

    def failing(
        self, plan: WindowPlan, minimum: float, has_anchor: bool, had_face: Collection[int] = (),
        before: FaceSimilarity | None = None,
    ) -> list[int]:  # fmt: skip
        """Windows in which the mean similarity of a person is below ``minimum``.

        A window without a face fails only if it is among ``had_face``: windows that showed a face in another sampling
        of the same video. With several people it must have been that person's face, in the sampling ``before``.
        """
        failed: set[int] = set()
        earlier = before.people if before is not None and before.people else (None,) * len(self.people)
        for one, previous in zip(self.people or (self,), earlier or (None,), strict=True):
            shown = () if previous is None else previous.unmeasured(plan, has_anchor)
            failed |= {
                window
                for window, mean in enumerate(one._means(plan, has_anchor))
                if mean < minimum or (np.isnan(mean) and window in had_face and window not in shown)
            }
        return sorted(failed)

    def unmeasured(self, plan: WindowPlan, has_anchor: bool) -> list[int]:
        """Windows that show no face, whose identity is unknown."""
        return [w for w, mean in enumerate(self._means(plan, has_anchor)) if np.isnan(mean)]

    def rank(self, failed: Collection[int]) -> tuple[int, float]:
        """Sort key, best first: the fewest failing windows, then the greatest mean."""
        return len(failed), float("inf") if np.isnan(self.mean) else -self.mean

    def _means(self, plan: WindowPlan, has_anchor: bool) -> list[float]:
        """Per window, the mean over its frames that show a face.

        Frame 0, the anchor of all windows, counts in the first alone, and frames of weight 0 are another window's: they
        would hide what this one shows.
        """
        means = []
        for index, window in enumerate(plan):
            first = int(has_anchor or index > 0)
            drawn = [frame for frame, weight in zip(window.frames, window.weights, strict=True) if weight > 0]
            frames = [frame - has_anchor for frame in drawn if frame >= first]
            means.append(FaceSimilarity(similarity=self.similarity[frames]).mean)
        return means


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Result of the identity gate: windows of the used sampling that ``failed`` or showed no face (``unmeasured``), and
    the windows of each retry (``attempts``). ``identity`` is None without a gate."""

    identity: FaceSimilarity | None = None
    failed: tuple[int, ...] = ()
    unmeasured: tuple[int, ...] = ()
    attempts: tuple[tuple[int, ...], ...] = ()

    def warning(self, minimum: float) -> str | None:
        """A warning about windows that could not be measured."""
        if self.identity is None:
            return None
        if self.identity.hidden and self.identity.frames_with_face:
            return f"--min-csim {minimum} could not be measured of person {self.identity.hidden}, who shows no face"
        if not self.unmeasured:
            return None
        if self.identity.frames_with_face == 0 and not self.failed:
            return f"--min-csim {minimum} could not be measured: no frame of the video shows a face"
        windows = ", ".join(str(window + 1) for window in self.unmeasured)
        return f"--min-csim {minimum} could not be measured in window(s) {windows}, which show no face"

    def error(self, output: Path, minimum: float | None, windows: int) -> CheckFailed:
        """The error of a gate that failed in some of ``windows``."""
        mean = float("nan") if self.identity is None else self.identity.mean
        without = len(set(self.failed) & set(self.unmeasured))
        people = () if self.identity is None else self.identity.people
        each = ", ".join(f"{one.mean:.3f} of person {one.person}" for one in people)
        average = f"{mean:.3f} on average" + (f" ({each})" if each else "")
        return CheckFailed(
            f"{output}: similarity to the reference is {average} and below {minimum} in {len(self.failed)} "
            f"of {windows} window(s) after {len(self.attempts)} retries"
            + (f"; {without} of them show no face" if without else ""),
            hint="the video was written; try --gate-retries N, another --seed, --preset released, or a larger face",
        )

    def to_json(self, minimum: float | None) -> dict[str, Any] | None:
        if self.identity is None:
            return None
        passed = "passed" if self.identity.frames_with_face else "not measurable"
        return {
            "min_csim": minimum,
            "result": "failed" if self.failed else passed,
            "failed_windows": list(self.failed),
            "windows_without_face": list(self.unmeasured),
        }


def retry_counts(attempts: Sequence[Sequence[int]], plan: WindowPlan) -> tuple[int, ...]:
    """Per frame, the retry that its noise is keyed by: the last one of a window with the frame; 0 without a retry.

    Frame 0, the anchor of all windows, belongs to the first: another window's retry would redraw it, which had passed.
    """
    counts = [0] * plan.total
    for attempt, windows in enumerate(attempts, 1):
        for frame in {frame for window in windows for frame in plan.windows[window].frames if frame or window == 0}:
            counts[frame] = attempt
    return tuple(counts)


class IdentityMeter:
    """Measures frames one by one as they are decoded."""

    def __init__(self, reader: FaceReader, vector: np.ndarray) -> None:
        self._reader = reader
        self._vector = vector / np.linalg.norm(vector)
        self._values: list[float] = []

    def add(self, frame: np.ndarray) -> float:
        """Similarity of a frame uint8[h,w,3]; NaN if it shows no face."""
        faces = [face for face in self._reader.faces(frame) if face.embedding is not None]
        value = float("nan")
        if faces and faces[0].embedding is not None:
            vector = faces[0].embedding
            value = float(vector @ self._vector / np.linalg.norm(vector))
        self._values.append(value)
        return value

    @property
    def curves(self) -> list[list[float]]:
        """The similarities so far, in one list."""
        return [self._values]

    def result(self) -> FaceSimilarity:
        return FaceSimilarity(similarity=np.array(self._values))


class PeopleIdentityMeter:
    """Measures frames one by one as they are decoded: each person's face, found by the points of the motion.

    ``people`` are those with a face of their own, ``motion`` has the output's frames and pixels.
    """

    def __init__(self, reader: FaceReader, people: Sequence[PersonFace], motion: Motion) -> None:
        self._reader = reader
        self._people = [one.index for one in people]
        self._numbers = [one.number for one in people]
        self._vectors = [one.vector / np.linalg.norm(one.vector) for one in people]
        self._motion = motion
        self.curves: list[list[float]] = [[] for _ in people]
        """Similarities so far, one list per person."""

    def add(self, frame: np.ndarray) -> float:
        """Mean similarity of the people of a frame uint8[h,w,3]; NaN if it shows no face of them."""
        index = len(self.curves[0])
        points = np.where(self._motion.present[index, :, None, None], self._motion.keypoints[index], 0)
        faces = [face for face in self._reader.faces(frame) if face.embedding is not None]
        owned = match_faces(points, np.array([face.box for face in faces], np.float32).reshape(-1, 4))
        values = []
        for person, vector, curve in zip(self._people, self._vectors, self.curves, strict=True):
            embedding = faces[owned[person]].embedding if owned[person] >= 0 else None
            value = float("nan") if embedding is None else float(embedding @ vector / np.linalg.norm(embedding))
            curve.append(value)
            values.append(value)
        seen = [value for value in values if np.isfinite(value)]
        return float(np.mean(seen)) if seen else float("nan")

    def result(self) -> FaceSimilarity:
        return FaceSimilarity.of_people(np.array(self.curves).T, self._numbers)


def strip(curves: Sequence[Sequence[float]], total: int, width: int) -> np.ndarray:
    """Draw the curves so far as uint8[STRIP,width,3], one per person: 0 at the bottom, 1 at the top, a gap where no
    face is seen."""
    image = np.zeros((STRIP, width, 3), np.uint8)
    for level in (0.0, 0.5, 1.0):
        image[_row(level)] = _GRID
    for values, colour in zip(curves, itertools.cycle(_CURVES), strict=False):
        columns = [round(index * (width - 1) / max(1, total - 1)) for index in range(len(values))]
        for index in range(1, len(values)):
            if np.isfinite(values[index - 1 : index + 1]).all():
                start, end = ((columns[i], _row(values[i])) for i in (index - 1, index))
                cv2.line(image, start, end, colour, 1, cv2.LINE_AA)
        if len(values) and np.isfinite(values[-1]):
            cv2.circle(image, (columns[-1], _row(values[-1])), 2, colour, -1, cv2.LINE_AA)
    return image


def _row(value: float) -> int:
    return round((1 - min(1.0, max(0.0, value))) * (STRIP - 1))
