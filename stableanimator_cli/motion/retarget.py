"""Scale limbs to the lengths of the reference's, from the neck outwards; every bone keeps its direction.

The idea is that of motion retargeting in skeletons (Gleicher, "Retargetting motion to new characters"), in the image
plane: a bone's vector is scaled by one factor for the whole clip, so what foreshortens it in the driving motion
foreshortens it in the result. Left and right get the same factor.
"""

from __future__ import annotations

import math

import numpy as np

from stableanimator_cli.motion.keypoints import FACE, LEFT_HAND, RIGHT_HAND, visible
from stableanimator_cli.motion.limb_lengths import lengths, ratios

LARGEST = 2.0
"""The largest factor by which a length is scaled, and the inverse of the smallest."""

_NECK, _NOSE = 1, 0
_BONES = (  # (parent, child, name of the length), from the trunk outwards
    (1, 2, "shoulders"), (2, 3, "upper_arm"), (3, 4, "forearm"),
    (1, 5, "shoulders"), (5, 6, "upper_arm"), (6, 7, "forearm"),
    (8, 9, "thigh"), (9, 10, "shin"), (11, 12, "thigh"), (12, 13, "shin"),
    (1, 0, "neck"),
)  # fmt: skip
_HIPS = (8, 11)
_HEAD = (14, 15, 16, 17, *range(FACE.start, FACE.stop))
_HANDS = {4: range(RIGHT_HAND.start, RIGHT_HAND.stop), 7: range(LEFT_HAND.start, LEFT_HAND.stop)}
_FEET = {13: range(18, 21), 10: range(21, 24)}


def factors(points: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The factor by which each length of one person float64[t,134,3] becomes that of the reference float64[134,3].

    It is 1 if one of the two does not show the length. A factor beyond ``LARGEST`` means that one of the two was seen
    from the side, not that their builds differ: beyond it the factor falls back, to 1 at the square of ``LARGEST``.
    ``head`` is the median of the factors of eyes, ears and face. A hand that the reference does not show has the factor
    of the forearm, a foot that of the shin.
    """
    each = ratios(lengths(reference), lengths(points))
    head = [each[name] for name in ("eyes", "ears", "face") if not math.isnan(each[name])]
    each["head"] = float(np.median(head)) if head else math.nan
    if math.isnan(each["hand"]):
        each["hand"] = each["forearm"]
    return {name: 1.0 if math.isnan(ratio) else _sane(ratio) for name, ratio in each.items()}


def _sane(ratio: float) -> float:
    size, largest = abs(math.log(ratio)), math.log(LARGEST)
    return math.exp(math.copysign(max(0.0, min(size, 2 * largest - size)), math.log(ratio)))


def retarget(
    points: np.ndarray, boxes: np.ndarray, reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Give one person's body the reference's lengths.

    ``points`` float64[t,134,3] and face ``boxes`` float64[t,4] are in the reference's pixels, mapped there by an affine
    fit; ``reference`` float64[134,3]. Returns both changed, and ``factors``. If the neck is visible in both, it is
    moved so that its median over time is the reference's neck. A bone with an invisible end keeps its vector and moves
    with its parent. Hands are scaled about the wrists, feet about the ankles, face and head about the nose.
    """
    scale = factors(points, reference)
    seen, xy = visible(points), points[..., :2]
    moved = np.zeros_like(xy)  # displacement of each point

    def hang(parent: int, child: int, factor: float, scaled: np.ndarray) -> None:
        both = (seen[:, parent] & scaled[:, child])[:, None]
        moved[:, child] = moved[:, parent] + np.where(both, (factor - 1) * (xy[:, child] - xy[:, parent]), 0.0)

    if visible(reference[_NECK]) and seen[:, _NECK].any():
        moved += reference[_NECK, :2] - np.median(xy[seen[:, _NECK], _NECK], axis=0)
    middle = xy[:, _HIPS].mean(axis=1)
    both_hips = seen[:, _HIPS[0]] & seen[:, _HIPS[1]]
    along = np.where((both_hips & seen[:, _NECK])[:, None], (scale["trunk"] - 1) * (middle - xy[:, _NECK]), 0.0)
    for hip in _HIPS:
        # A hip's vector is the sum of the trunk's and half the hips' width; a single visible hip moves with the trunk.
        hang(_NECK, hip, scale["trunk"], seen)
        across = moved[:, _NECK] + along + (scale["hips"] - 1) * (xy[:, hip] - middle)
        moved[:, hip] = np.where(both_hips[:, None], across, moved[:, hip])
    for parent, child, name in _BONES:
        hang(parent, child, scale[name], seen)
    # Faces and hands are drawn whatever their scores are, so all of their points are scaled.
    given = points[..., 2] > 0
    for child in _HEAD:
        hang(_NOSE, child, scale["head"], given)
    for group, name in ((_HANDS, "hand"), (_FEET, "shin")):
        for parent, children in group.items():
            for child in children:
                hang(parent, child, scale[name], given)

    result = points.copy()
    result[..., :2] = np.where(given[..., None], xy + moved, xy)
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    about = np.where(seen[:, _NOSE, None], (scale["head"] - 1) * (centre - xy[:, _NOSE]), 0.0)
    centre, half = centre + moved[:, _NOSE] + about, half * scale["head"]
    return result, np.concatenate([centre - half, centre + half], axis=-1), scale
