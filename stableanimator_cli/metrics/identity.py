"""Identity preservation: cosine similarity of face embeddings (CSIM), its drift and its worst stretch.

Embeddings are float[t,512] of ArcFace, with rows of NaN for frames without a face. Absence is masked: it lowers the
detection rate and nothing else. CSIM as in Zakharov et al., "Few-Shot Adversarial Learning of Realistic Neural Talking
Head Models", and Deng et al., "ArcFace".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stableanimator_cli.metrics.result import define

WORST = 16
"""Frames of the worst stretch of a video."""
_COSINE = "cosine of the ArcFace vectors of the largest face of each frame and of"
_SIDES = {"ref": ("reference", "the reference image's"), "gt": ("truth", "the same frame of the ground truth")}
_BY = {
    "": ("", "; the recogniser that the model is conditioned on and optimised with"),
    "_judge": (" (judge)", "; a recogniser that the model never saw"),
}
for _side, (_title, _of) in _SIDES.items():
    for _judge, (_short, _note) in _BY.items():
        for _zero, _policy in (("", "frames without a face are left out"), ("_zero", "frames without a face count 0")):
            define(
                f"csim_{_side}{_judge}{_zero}", f"CSIM {_title}{_short}" + (", absent 0" if _zero else ""), "higher",
                f"{_COSINE} {_of}; mean over frames, {_policy}{_note}",
                source="Deng et al., ArcFace; StableAnimator's Table 1 names neither the pairing nor the policy",
                range="-1..1",
            )  # fmt: skip
define(
    "face_rate", "faces found", "higher",
    "share of the frames in which a face is found, of those whose ground truth shows one (of all frames where there is "
    "no ground truth)",
    source="ours: CSIM leaves frames without a face out, and this says how many", range="0..1",
)  # fmt: skip
define(
    "identity_drift", "identity drift", "higher",
    "mean CSIM (reference) of the last fifth of the frames with a face minus that of the first fifth; frames whose "
    "ground truth shows no face are left out",
    source="ours", range="-2..2; 0 is a person who stays, below 0 one who gets lost",
)  # fmt: skip
define(
    "identity_worst", "worst 16 frames", "higher",
    "lowest mean CSIM (reference) of 16 frames in a row; frames whose ground truth shows no face are left out",
    source="ours", range="-1..1",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Csim:
    """CSIM of one video. ``mean`` is over the ``detected`` frames, NaN if there are none. ``zero`` counts missing
    faces as 0, over all ``valid`` frames (whose other side has a face)."""

    mean: float
    zero: float
    detected: int
    valid: int

    @property
    def detection_rate(self) -> float:
        """Fraction of the valid frames with a detected face; NaN if there are none."""
        return self.detected / self.valid if self.valid else float("nan")


def cosines(embeddings: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cosine of each row of float[t,d] with ``target`` (float[d], or float[t,d] row by row): float64[t] in -1..1.

    NaN if either side is missing (not finite) or has no length.
    """
    a = np.asarray(embeddings, np.float64)
    b = np.broadcast_to(np.asarray(target, np.float64), a.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.where(np.isfinite(value), np.clip(value, -1, 1), np.nan)


def summary(curve: np.ndarray, valid: np.ndarray) -> Csim:
    """CSIM from cosines float[t] (NaN: no face) and the frames bool[t] whose other side has a face."""
    detected = np.isfinite(curve) & valid
    total = float(curve[detected].sum())
    return Csim(
        mean=total / detected.sum() if detected.any() else float("nan"),
        zero=total / valid.sum() if valid.any() else float("nan"),
        detected=int(detected.sum()),
        valid=int(valid.sum()),
    )


def drift(curve: np.ndarray) -> float:
    """Mean similarity of the last fifth of the frames with a face minus that of the first fifth. NaN below five such
    frames; negative if identity is lost."""
    known = np.asarray(curve)[np.isfinite(curve)]
    if len(known) < 5:
        return float("nan")
    part = max(1, len(known) // 5)
    return float(known[-part:].mean() - known[:part].mean())


def worst(curve: np.ndarray, length: int = WORST) -> tuple[float, int]:
    """The lowest mean similarity over ``length`` consecutive frames, and its first frame; windows without a face are
    skipped. (NaN, -1) if no frame has a face."""
    curve = np.asarray(curve, np.float64)
    length = max(1, min(length, len(curve)))
    known = np.isfinite(curve)
    if not known.any():
        return float("nan"), -1
    sums = np.convolve(np.where(known, curve, 0.0), np.ones(length), "valid")
    counts = np.convolve(known.astype(float), np.ones(length), "valid")
    means = np.full(len(sums), np.inf)
    np.divide(sums, counts, out=means, where=counts > 0.5)
    start = int(means.argmin())
    return float(means[start]), start
