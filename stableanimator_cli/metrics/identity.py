"""Is it the same person, and does it stay so? Cosines of face vectors, and what their curve over time says.

Vectors are float[t,512] as ArcFace gives them, a row of NaN where a frame shows no face (or none that could be
aligned). Absence is masked: it lowers the detection rate and nothing else. CSIM as in Zakharov et al., "Few-Shot
Adversarial Learning of Realistic Neural Talking Head Models", and Deng et al., "ArcFace".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stableanimator_cli.metrics.result import define

_COSINE = "cosine of the ArcFace vectors of the largest face of each frame and of"
_SIDES = {"ref": ("reference", "the reference picture's"), "gt": ("truth", "the same frame of the ground truth")}
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
    """CSIM of one video. ``mean`` over ``counted`` frames, NaN where that is 0; ``zero`` the mean with missing faces
    as 0, over all ``asked`` frames (those whose other side has a face)."""

    mean: float
    zero: float
    counted: int
    asked: int

    @property
    def detection(self) -> float:
        """Share of the asked frames in which a face was found; NaN where nothing was asked."""
        return self.counted / self.asked if self.asked else float("nan")


def cosines(vectors: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Cosine of each row of float[t,d] with ``against`` (float[d], or float[t,d] row by row): float64[t] in -1..1.

    NaN where either side is missing (not finite) or has no length.
    """
    a = np.asarray(vectors, np.float64)
    b = np.broadcast_to(np.asarray(against, np.float64), a.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.where(np.isfinite(value), np.clip(value, -1, 1), np.nan)


def csim(vectors: np.ndarray, against: np.ndarray) -> Csim:
    """CSIM of float[t,d] with one vector (the reference picture's) or with a vector a frame (the ground truth's)."""
    curve = cosines(vectors, against)
    other = np.broadcast_to(np.asarray(against, np.float64), np.shape(vectors))
    asked = np.asarray(np.isfinite(other).all(axis=-1))
    return summary(curve, asked)


def summary(curve: np.ndarray, asked: np.ndarray) -> Csim:
    """CSIM from a curve of cosines float[t] (NaN: no face) and which frames bool[t] could have one."""
    seen = np.isfinite(curve) & asked
    total = float(curve[seen].sum())
    return Csim(
        mean=total / seen.sum() if seen.any() else float("nan"),
        zero=total / asked.sum() if asked.any() else float("nan"),
        counted=int(seen.sum()),
        asked=int(asked.sum()),
    )


def drift(curve: np.ndarray) -> float:
    """How much the similarity changes from the first fifth of the video to the last fifth: mean of the last minus mean
    of the first, over the frames with a face. Negative: the person gets lost. NaN below five frames with a face."""
    seen = np.asarray(curve)[np.isfinite(curve)]
    if len(seen) < 5:
        return float("nan")
    part = max(1, len(seen) // 5)
    return float(seen[-part:].mean() - seen[:part].mean())


def worst(curve: np.ndarray, length: int = 16) -> tuple[float, int]:
    """The lowest mean of the similarity over ``length`` frames in a row, and where it begins; windows with no face are
    passed over. (NaN, -1) where no frame shows a face."""
    curve = np.asarray(curve, np.float64)
    length = max(1, min(length, len(curve)))
    seen = np.isfinite(curve)
    if not seen.any():
        return float("nan"), -1
    sums = np.convolve(np.where(seen, curve, 0.0), np.ones(length), "valid")
    counts = np.convolve(seen.astype(float), np.ones(length), "valid")
    means = np.full(len(sums), np.inf)
    np.divide(sums, counts, out=means, where=counts > 0.5)
    place = int(means.argmin())
    return float(means[place]), place
