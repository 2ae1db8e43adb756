"""Align a driving motion with the reference's person in position, size and build.

Five modes (``MODES``), computed in float64 and returned in the reference's pixels:

* ``upstream``: the reference implementation's fit, in fractions of the frames, with its aspect fault;
* ``affine``: one scale for both axes and a shift, robust against outliers and moving limbs;
* ``similarity``: rotation, scale and shift by SVD of weighted point sets (Umeyama, "Least-squares estimation of
  transformation parameters between two point patterns"; the guidance of StableAnimator++);
* ``bones``: ``affine``, then the limb lengths of the reference (``retarget``);
* ``none``: no change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from stableanimator_cli.errors import NoPerson
from stableanimator_cli.motion.keypoints import BODY, COUNT, visible
from stableanimator_cli.motion.misalignment import Misalignment, misalignment
from stableanimator_cli.motion.retarget import retarget
from stableanimator_cli.motion.track import largest
from stableanimator_cli.records import Motion

Mode = Literal["upstream", "affine", "bones", "similarity", "none"]
MODES: tuple[str, ...] = get_args(Mode)

POINTS = (0, 1, 2, 5, *range(8, 18))
"""Body points that are fitted: trunk, legs and head. Arms move too much."""

_ROUNDS = 50  # of reweighting at most
_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """``motion`` in the reference's pixels (unchanged with ``none``).

    ``matrix`` float64[2,3] maps driving pixels (x, y, 1) to reference pixels. ``limbs`` holds the length factors of
    ``bones``. ``person`` is the index of the fitted person, ``before`` and ``after`` are their misalignments.
    """

    motion: Motion
    mode: Mode
    person: int
    matrix: np.ndarray
    limbs: Mapping[str, float]
    before: Misalignment
    after: Misalignment

    @property
    def scale(self) -> tuple[float, float]:
        """Along x and y."""
        across, down = np.linalg.norm(self.matrix[:, :2], axis=0)
        return float(across), float(down)

    @property
    def rotation(self) -> float:
        """Degrees, clockwise as seen; 0 except with ``similarity``."""
        return math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))

    def describe(self) -> str:
        """One line."""
        if self.mode == "none":
            return f"not aligned: {self.after.describe()}"
        across, down = self.scale
        scale = f"{across:.3f}" if abs(across - down) < 5e-4 else f"{across:.3f} across and {down:.3f} down"
        turned = f", {self.rotation:+.1f} degrees" if self.mode == "similarity" else ""
        return f"aligned ({self.mode}): scale {scale}{turned}; {self.before.number:.2f} before, {self.after.describe()}"

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "matrix": self.matrix.tolist(),
            "limbs": dict(self.limbs),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def align(
    motion: Motion,
    reference: np.ndarray,
    size: tuple[int, int],
    mode: Mode = "affine",
    *,
    person: int | None = None,
) -> Alignment:
    """Align a motion with the person of a reference image.

    ``reference`` float[134,3] in pixels of the image, whose ``size`` is (width, height). ``person`` is the index of the
    person to fit, by default the largest. The mapping is applied to all people, limb lengths to that person only.
    Times, scores and presence stay. Points of score 0 do not move, except with ``upstream``. Raises ``NoPerson`` if
    there are no people or too few common points, and ``ValueError`` for other modes.
    """
    if mode not in MODES:
        raise ValueError(f"alignment {mode!r}: expected one of {', '.join(MODES)}")
    reference = np.asarray(reference, np.float64)
    if reference.shape != (COUNT, 3):
        raise ValueError(f"a reference of shape {reference.shape}: expected ({COUNT}, 3)")
    size = int(size[0]), int(size[1])
    person = largest(motion) if person is None else person
    before = misalignment(motion, reference, size, person)
    limbs: Mapping[str, float] = {}
    if mode == "none":
        placed, matrix = motion, np.eye(2, 3)
    else:
        matrix = _fit_matrix(motion, reference, size, mode, person)
        points, boxes = _apply(motion, matrix, everything=mode == "upstream")
        if mode == "bones":
            frames = motion.present[:, person]
            changed = retarget(points[frames, person], boxes[frames, person], reference)
            points[frames, person], boxes[frames, person], limbs = changed
        placed = dataclasses.replace(
            motion, keypoints=points.astype(np.float32), face_boxes=boxes.astype(np.float32), size=size
        )
    after = before if mode == "none" else misalignment(placed, reference, size, person)
    return Alignment(motion=placed, mode=mode, person=person, matrix=matrix, limbs=limbs, before=before, after=after)


def upstream_map(
    points: np.ndarray, present: np.ndarray, reference: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The reference implementation's fit: scale float64[2] and shift float64[2] of x and y in fractions of the frames.

    ``points`` float64[t,p,134,3] are fractions of the driving frame, ``present`` bool[t,p], ``reference``
    float64[134,3] fractions of the reference image of ``size`` (width, height). y is fitted by least squares to the
    reference's visible points over all frames with exactly one person, whatever the scores. x gets the same factor of
    fractions, which stretches bodies if the aspects differ. Raises ``NoPerson`` if no frame holds one person, or the
    reference shows fewer than two of the points.
    """
    fitted = [i for i in POINTS if visible(reference[i])]
    single = present.sum(axis=1) == 1
    if not single.any():
        raise NoPerson(
            f"the upstream alignment needs a frame with exactly one person, and none of {len(present)} frames has one",
            hint="choose a person with --person, or use --align affine",
        )
    bodies = points[single][present[single]][:, fitted]
    if len(fitted) < 2 or not np.ptp(bodies[..., 1]) > 0:
        raise _too_few("the reference image", len(fitted))
    target = reference[fitted]
    slope, offset = np.polyfit(bodies[..., 1].flatten(), np.tile(target[:, 1], len(bodies)), 1)
    width, height = size
    across = slope / (height / width / height * width)  # nearly 1, and its rounding is theirs
    shift = np.mean(np.tile(target[:, 0], len(bodies)) - bodies[..., 0].flatten() * across)
    return np.array([across, slope]), np.array([shift, offset])


def fit_affine(points: np.ndarray, weights: np.ndarray, reference: np.ndarray) -> tuple[float, np.ndarray]:
    """One scale and a shift float64[2] that map ``points`` float64[t,n,2] to ``reference`` float64[n,2].

    The scale is the weighted median of ratios of distances between all pairs of points within a frame. Jumps across
    the frame and a few outliers do not change it, and noise does not shrink it as it does a least-squares slope. Long
    distances weigh more. The shift is the weighted median of the rest. A weight (float64[t,n]) of 0 leaves a point
    out. Raises ``NoPerson`` if no frame has two known points.
    """
    first, second = np.triu_indices(len(reference), 1)
    target = np.linalg.norm(reference[first] - reference[second], axis=-1)
    actual = np.linalg.norm(points[:, first] - points[:, second], axis=-1)
    weight = np.minimum(weights[:, first], weights[:, second]) * target * (actual > 0)
    if not weight.any():
        raise _too_few("the motion", int((weights > 0).sum(axis=1).max(initial=0)))
    known = weight > 0
    logs = np.log(np.broadcast_to(target, actual.shape)[known] / actual[known])
    scale = math.exp(_weighted_median(logs, weight[known]))
    return scale, _shift(reference - scale * points, weights)


def fit_similarity(
    points: np.ndarray, weights: np.ndarray, reference: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation float64[2,2] and shift float64[2] that map ``points`` float64[t,n,2] to ``reference``.

    Weighted least squares in closed form (Umeyama) with every frame centred, so that walking does not count as a
    difference of size; repeated with smaller weights for outliers until it converges. Never a mirror image. Arguments
    and ``NoPerson`` as in ``fit_affine``.
    """
    fit_affine(points, weights, reference)  # raises NoPerson for too few points
    target = np.broadcast_to(reference, points.shape)
    robust, scale, rotation = weights.copy(), 1.0, np.eye(2)
    for _ in range(_ROUNDS):
        total = robust.sum(axis=1)[:, None, None]
        share = np.divide(robust[..., None], total, out=np.zeros_like(points[..., :1]), where=total > 0)
        here = points - (share * points).sum(axis=1, keepdims=True)
        centred = target - (share * target).sum(axis=1, keepdims=True)
        spread = float((robust * (here**2).sum(axis=-1)).sum())
        if not spread > 0:
            break
        left, stretch, right = np.linalg.svd(np.einsum("tn,tni,tnj->ij", robust, centred, here))
        sign = np.array([1.0, np.sign(np.linalg.det(left @ right))])
        last, rotation = (scale, rotation), (left * sign) @ right
        scale = float((stretch * sign).sum()) / spread
        if abs(scale - last[0]) + np.abs(rotation - last[1]).max() < _TOLERANCE:
            break
        error = np.linalg.norm(centred - scale * here @ rotation.T, axis=-1)
        seen = weights > 0
        deviation = 1.4826 * _weighted_median(error[seen], weights[seen])
        robust = weights / (1 + (error / max(3 * deviation, 1e-9 * float(np.ptp(reference)))) ** 2) ** 2
    if not scale > 0:
        raise _too_few("the motion", 1)
    return scale, rotation, _shift(target - scale * points @ rotation.T, weights)


def _fit_matrix(motion: Motion, reference: np.ndarray, size: tuple[int, int], mode: Mode, person: int) -> np.ndarray:
    """The matrix float64[2,3] from driving to reference pixels."""
    if mode == "upstream":
        target_size, own_size = np.array(size, np.float64), np.array(motion.size, np.float64)
        fractions = motion.keypoints.astype(np.float64) / [*own_size, 1.0]
        scale, shift = upstream_map(fractions, motion.present, reference / [*target_size, 1.0], size)
        return np.column_stack([np.diag(scale * target_size / own_size), shift * target_size])
    points, weights, target = _point_sets(motion, reference, person)
    if mode == "similarity":
        factor, rotation, shift = fit_similarity(points, weights, target)
        return np.column_stack([factor * rotation, shift])
    factor, shift = fit_affine(points, weights, target)
    return np.column_stack([factor * np.eye(2), shift])


def _point_sets(motion: Motion, reference: np.ndarray, person: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [t,n,2] to fit, their weights [t,n] (0 if not visible), and the reference's points [n,2].

    These are ``POINTS``, or all body points if motion and reference share fewer than three of them.
    """
    body = motion.keypoints[:, person].astype(np.float64)
    seen = visible(body) & motion.present[:, person, None]
    known = visible(reference)
    if not known[BODY].any():
        raise _too_few("the reference image", 0)
    common = [i for i in POINTS if known[i] and seen[:, i].any()]
    if len(common) < 3:
        common = [i for i in range(BODY.stop) if known[i] and seen[:, i].any()]
    weights = np.where(seen[:, common], body[:, common, 2].clip(0, 1) * reference[common, 2].clip(0, 1), 0.0)
    points = np.where(seen[:, common, None], body[:, common, :2], 0.0)
    return points, weights, reference[common, :2]


def _apply(motion: Motion, matrix: np.ndarray, *, everything: bool) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints float64[t,p,134,3] and face boxes float64[t,p,4] in reference pixels. Boxes stay upright."""
    points = motion.keypoints.astype(np.float64)
    moved = points[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    affected = motion.present[..., None] & (everything | (points[..., 2] > 0))
    points[..., :2] = np.where(affected[..., None], moved, points[..., :2])
    boxes = motion.face_boxes.astype(np.float64)
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    centre = centre @ matrix[:, :2].T + matrix[:, 2]
    half = half * np.linalg.norm(matrix[:, :2], axis=0)
    return points, np.concatenate([centre - half, centre + half], axis=-1)


def _shift(residual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted median of float64[t,n,2] per axis."""
    known = weights > 0
    return np.array([_weighted_median(residual[..., axis][known], weights[known]) for axis in (0, 1)])


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted median: half of the weight is below it and half above."""
    order = np.argsort(values, kind="stable")
    values, below = values[order], np.cumsum(weights[order])
    half = below[-1] / 2
    low = int(np.searchsorted(below, half * (1 - 1e-12), "left"))
    high = int(np.searchsorted(below, half * (1 + 1e-12), "right"))
    return float(values[low] + values[min(high, len(values) - 1)]) / 2


def _too_few(where: str, count: int) -> NoPerson:
    return NoPerson(
        f"{where} shows {count} of the points that an alignment uses, expected 2 or more (head, shoulders, hips, legs)",
        hint="use an image and a motion that show head and shoulders, or --align none",
    )
