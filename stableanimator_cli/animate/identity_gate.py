"""Is it still the same person? Similarity to the reference by frame, a gate on it, and its curve in the preview."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.diffusion.windows import WindowPlan

STRIP = 32  # pixels of the preview's height that the curve takes
_INK, _FAINT = (255, 210, 90), (90, 90, 90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Cosine of each frame's largest face with the reference's vector, NaN where a frame shows no face."""

    similarity: np.ndarray

    @property
    def mean(self) -> float:
        """Over the frames that show a face; NaN where none does."""
        seen = self.similarity[np.isfinite(self.similarity)]
        return float(seen.mean()) if len(seen) else float("nan")

    @property
    def frames_with_face(self) -> int:
        return int(np.isfinite(self.similarity).sum())

    def to_json(self) -> dict[str, object]:
        values = [None if np.isnan(value) else round(float(value), 4) for value in self.similarity]
        seen = self.frames_with_face
        return {"mean": None if seen == 0 else round(self.mean, 4), "frames_with_face": seen, "similarity": values}

    def failing(self, plan: WindowPlan, least: float, anchored: bool, shown: Collection[int] = ()) -> list[int]:
        """Windows whose faces are less similar than ``least`` on average. A window without a face fails only if it is
        among ``shown``: windows that showed a face in another drawing of the same video."""
        means = self._means(plan, anchored)
        return [w for w, mean in enumerate(means) if mean < least or (np.isnan(mean) and w in shown)]

    def unmeasured(self, plan: WindowPlan, anchored: bool) -> list[int]:
        """Windows that show no face, whose identity is therefore not known."""
        return [w for w, mean in enumerate(self._means(plan, anchored)) if np.isnan(mean)]

    def _means(self, plan: WindowPlan, anchored: bool) -> list[float]:
        """By window, the mean over its frames that show a face."""
        windows = [self.similarity[[frame - anchored for frame in w.frames if frame >= anchored]] for w in plan]
        return [Identity(similarity=similarity).mean for similarity in windows]


class IdentityMeter:
    """Told frames as they are decoded."""

    def __init__(self, reader: FaceReader, vector: np.ndarray) -> None:
        self._reader = reader
        self._vector = vector / np.linalg.norm(vector)
        self._values: list[float] = []

    def add(self, frame: np.ndarray) -> float:
        """Similarity of uint8[h,w,3], NaN where it shows no face."""
        faces = [face for face in self._reader.faces(frame) if face.embedding is not None]
        value = float("nan")
        if faces and faces[0].embedding is not None:
            vector = faces[0].embedding
            value = float(vector @ self._vector / np.linalg.norm(vector))
        self._values.append(value)
        return value

    def result(self) -> Identity:
        return Identity(similarity=np.array(self._values))


def strip(values: Sequence[float], total: int, width: int) -> np.ndarray:
    """The curve so far as uint8[STRIP,width,3]: 0 at the bottom, 1 at the top, a gap where no face is seen."""
    picture = np.zeros((STRIP, width, 3), np.uint8)
    for level in (0.0, 0.5, 1.0):
        row = _row(level)
        picture[row] = _FAINT
    columns = [round(index * (width - 1) / max(1, total - 1)) for index in range(len(values))]
    for index in range(1, len(values)):
        if np.isfinite(values[index - 1 : index + 1]).all():
            start, end = ((columns[i], _row(values[i])) for i in (index - 1, index))
            cv2.line(picture, start, end, _INK, 1, cv2.LINE_AA)
    if len(values) and np.isfinite(values[-1]):
        cv2.circle(picture, (columns[-1], _row(values[-1])), 2, _INK, -1, cv2.LINE_AA)
    return picture


def _row(value: float) -> int:
    return round((1 - min(1.0, max(0.0, value))) * (STRIP - 1))
