"""Identity gate: similarity to the reference per frame, a threshold on it, and its curve in the preview."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.diffusion.windows import WindowPlan
from stableanimator_cli.errors import CheckFailed

STRIP = 32  # height of the curve in the preview, pixels
_CURVE, _GRID = (255, 210, 90), (90, 90, 90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Cosine per frame of the largest face's embedding with the reference's; NaN if a frame shows no face."""

    similarity: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the frames that show a face; NaN if none does."""
        seen = self.similarity[np.isfinite(self.similarity)]
        return float(seen.mean()) if len(seen) else float("nan")

    @property
    def frames_with_face(self) -> int:
        return int(np.isfinite(self.similarity).sum())

    def to_json(self) -> dict[str, object]:
        values = [None if np.isnan(value) else round(float(value), 4) for value in self.similarity]
        seen = self.frames_with_face
        return {"mean": None if seen == 0 else round(self.mean, 4), "frames_with_face": seen, "similarity": values}

    def failing(self, plan: WindowPlan, minimum: float, has_anchor: bool, had_face: Collection[int] = ()) -> list[int]:
        """Windows whose mean similarity is below ``minimum``. A window without a face fails only if it is among
        ``had_face``: windows that showed a face in another sampling of the same video."""
        means = self._means(plan, has_anchor)
        return [w for w, mean in enumerate(means) if mean < minimum or (np.isnan(mean) and w in had_face)]

    def unmeasured(self, plan: WindowPlan, has_anchor: bool) -> list[int]:
        """Windows that show no face, whose identity is unknown."""
        return [w for w, mean in enumerate(self._means(plan, has_anchor)) if np.isnan(mean)]

    def rank(self, failed: Collection[int]) -> tuple[int, float]:
        """Sort key, best first: the fewest failing windows, then the greatest mean."""
        return len(failed), float("inf") if np.isnan(self.mean) else -self.mean

    def _means(self, plan: WindowPlan, has_anchor: bool) -> list[float]:
        """Per window, the mean over its frames that show a face."""
        windows = [self.similarity[[frame - has_anchor for frame in w.frames if frame >= has_anchor]] for w in plan]
        return [Identity(similarity=similarity).mean for similarity in windows]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Result of the identity gate: windows of the used sampling that ``failed`` or showed no face (``unmeasured``), and
    the windows of each retry (``attempts``). ``identity`` is None without a gate."""

    identity: Identity | None = None
    failed: tuple[int, ...] = ()
    unmeasured: tuple[int, ...] = ()
    attempts: tuple[tuple[int, ...], ...] = ()

    def warning(self, minimum: float) -> str | None:
        """A warning about windows that could not be measured."""
        if self.identity is None or not self.unmeasured:
            return None
        if self.identity.frames_with_face == 0 and not self.failed:
            return f"--min-csim {minimum} could not be measured: no frame of the video shows a face"
        windows = ", ".join(str(window + 1) for window in self.unmeasured)
        return f"--min-csim {minimum} could not be measured in window(s) {windows}, which show no face"

    def error(self, output: Path, minimum: float | None, windows: int) -> CheckFailed:
        """The error of a gate that failed in some of ``windows``."""
        mean = float("nan") if self.identity is None else self.identity.mean
        without = len(set(self.failed) & set(self.unmeasured))
        return CheckFailed(
            f"{output}: similarity to the reference is {mean:.3f} on average and below {minimum} in {len(self.failed)} "
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
    """Per frame, the retry that its noise is keyed by: the last one of a window with the frame; 0 without a retry."""
    counts = [0] * plan.total
    for attempt, windows in enumerate(attempts, 1):
        for frame in {frame for window in windows for frame in plan.windows[window].frames}:
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

    def result(self) -> Identity:
        return Identity(similarity=np.array(self._values))


def strip(values: Sequence[float], total: int, width: int) -> np.ndarray:
    """Draw the curve so far as uint8[STRIP,width,3]: 0 at the bottom, 1 at the top, a gap where no face is seen."""
    image = np.zeros((STRIP, width, 3), np.uint8)
    for level in (0.0, 0.5, 1.0):
        image[_row(level)] = _GRID
    columns = [round(index * (width - 1) / max(1, total - 1)) for index in range(len(values))]
    for index in range(1, len(values)):
        if np.isfinite(values[index - 1 : index + 1]).all():
            start, end = ((columns[i], _row(values[i])) for i in (index - 1, index))
            cv2.line(image, start, end, _CURVE, 1, cv2.LINE_AA)
    if len(values) and np.isfinite(values[-1]):
        cv2.circle(image, (columns[-1], _row(values[-1])), 2, _CURVE, -1, cv2.LINE_AA)
    return image


def _row(value: float) -> int:
    return round((1 - min(1.0, max(0.0, value))) * (STRIP - 1))
