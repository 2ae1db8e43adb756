"""Scores of one video while it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from stableanimator_cli.evaluate.frame_matching import MatchedFrames
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.people import PeopleCurves, PersonScore
from stableanimator_cli.metrics import identity
from stableanimator_cli.metrics.accumulators import RunningMean
from stableanimator_cli.metrics.flicker import Changes, flicker, flicker_excess
from stableanimator_cli.metrics.perceptual import SHORTEST_SIDE
from stableanimator_cli.metrics.seams import seam_score
from stableanimator_cli.records import Clip


@dataclass(slots=True)
class ScoreBuilder:
    """A video that is being scored, and its scores so far. ``times`` are those of the measured predicted frames."""

    pair: Pair
    clip: Clip
    target: Clip | None
    matched: MatchedFrames | None
    values: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    times: list[Fraction | None] = field(default_factory=list)
    identical: int = 0
    worst_window: tuple[int, int] | None = None
    people: tuple[PersonScore, ...] = ()

    def put(self, name: str, value: float, count: int) -> None:
        self.values[name], self.counts[name] = float(value), 0 if np.isnan(value) else int(count)

    def curve(self, name: str, values: Sequence[float] | np.ndarray) -> None:
        self.curves[name] = [round(float(v), 5) if np.isfinite(v) else None for v in values]

    def put_means(self, means: Mapping[str, RunningMean]) -> None:
        """Means over frames. A metric without a value for these frames has a note."""
        for metric, mean in means.items():
            self.put(metric, mean.mean, mean.count)
            if mean.absent:
                side = SHORTEST_SIDE[metric]
                self.notes.append(f"no {metric}: its network needs frames of {side} pixels per side or more")

    def put_csim(self, name: str, curve: np.ndarray, valid: np.ndarray) -> None:
        result = identity.summary(curve, valid)
        self.put(name, result.mean, result.detected)
        self.put(f"{name}_zero", result.zero, result.valid)
        self.curve(name, np.where(valid, curve, np.nan))

    def put_changes(self, predicted: Changes, target: Changes | None, borders: tuple[int, ...]) -> None:
        """Flicker and seams."""
        self.put("flicker", flicker(predicted.curvature), len(predicted.curvature))
        self.curve("change", predicted.differences)
        if target is not None:
            excess = flicker_excess(predicted.curvature, target.curvature)
            self.put("flicker_excess", excess, len(predicted.curvature))
            self.put("flicker_distance", abs(excess), len(predicted.curvature))
            self.curve("change_truth", target.differences)
        seams = seam_score(predicted.differences, borders, None if target is None else target.differences)
        self.put("seam_score", seams.score, len(seams.borders))
        self.put("seam_worst", seams.worst, 1)

    def put_identity(
        self, suffix: str, rows: np.ndarray, reference: np.ndarray | None, target_rows: np.ndarray | None
    ) -> None:
        """Identity of one person from embeddings float[t,512] by one recogniser. ``suffix`` names the recogniser."""
        valid = np.ones(len(rows), bool)
        if target_rows is not None:
            valid = np.asarray(np.isfinite(target_rows).all(axis=1))
        if reference is not None:
            curve = identity.cosines(rows, reference)
            comparable = np.asarray(valid & bool(np.isfinite(reference).all()))
            self.put_csim(f"csim_ref{suffix}", curve, comparable)
            if not suffix:  # over the frames that CSIM is a mean of
                self._put_drift(np.where(comparable, curve, np.nan))
        if target_rows is not None:
            self.put_csim(f"csim_gt{suffix}", identity.cosines(rows, target_rows), valid)
        if not suffix:
            detected = np.isfinite(rows).all(axis=1) & valid
            self.put("face_rate", detected.sum() / valid.sum() if valid.any() else np.nan, int(valid.sum()))

    def put_people(self, curves: PeopleCurves) -> None:
        """Identity of several people: the means over them, and each one's."""
        self.people = curves.people()
        for metric in curves.curves:
            for name, pick in ((metric, "detected"), (f"{metric}_zero", "valid")):
                known = [one.values[name] for one in self.people if np.isfinite(one.values[name])]
                count = sum(getattr(one, pick) for one in curves.summaries(metric))
                self.put(name, float(np.mean(known)) if known else np.nan, count)
            self.curve(metric, curves.mean_curve(metric))
        for k, number in enumerate(curves.numbers):
            curve, valid = curves.curves["csim_ref"][k], curves.valid["csim_ref"][k]
            self.curve(f"csim_ref_person_{number}", np.where(valid, curve, np.nan))
        self._put_drift(curves.mean_curve("csim_ref"))
        detected = sum(one.detected for one in curves.summaries("csim_ref"))
        valid_frames = sum(one.valid for one in curves.summaries("csim_ref"))
        self.put("face_rate", detected / valid_frames if valid_frames else np.nan, valid_frames)

    def _put_drift(self, curve: np.ndarray) -> None:
        self.put("identity_drift", identity.drift(curve), 1)
        lowest, first = identity.worst(curve)
        self.put("identity_worst", lowest, 1)
        if first >= 0:
            self.worst_window = first, min(first + identity.WORST, len(curve))
