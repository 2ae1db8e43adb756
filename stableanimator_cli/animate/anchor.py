"""The reference's own pose: MimicMotion's anchor of every window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stableanimator_cli.animate.people import PersonFace, regions_of
from stableanimator_cli.detect.capture import Detectors, pose_of
from stableanimator_cli.errors import ModelMissing, NoPerson
from stableanimator_cli.motion.geometry import ResizeTransform
from stableanimator_cli.motion.keypoints import COUNT, bounding_box
from stableanimator_cli.motion.left_to_right import people_left_to_right
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.motion.track import match_faces
from stableanimator_cli.records import Motion


def anchor_pose(
    path: Path,
    image: np.ndarray,
    transform: ResizeTransform,
    detectors: Callable[[], Detectors],
    *,
    plan_only: bool = False,
) -> np.ndarray:
    """Draw the reference's own skeleton at the output's size. Black for a plan, which only checks that there are
    detectors."""
    opened = _opened(detectors)
    if plan_only:
        width, height = transform.target
        return np.zeros((height, width, 3), np.uint8)
    keypoints = pose_of(image, opened)
    if keypoints is None:
        raise _no_person(path)
    keypoints = keypoints.copy()
    keypoints[:, :2] = transform.apply_points(keypoints[:, :2])
    return draw_skeleton(keypoints[None], transform.target)


def anchor_people(
    path: Path,
    image: np.ndarray,
    transform: ResizeTransform,
    detectors: Callable[[], Detectors],
    faces: Sequence[PersonFace],
    motion: Motion,
) -> tuple[np.ndarray, np.ndarray]:
    """Skeletons of the reference's people who belong to the motion's people, and weights float32[1,k+1,h/8,w/8].

    A person of the reference belongs to the person who gets that one's face. Others, whose faces come from elsewhere,
    are matched by position from left to right.
    """
    opened = _opened(detectors)
    (boxes,) = opened.people.detect([image])
    if not len(boxes):
        raise _no_person(path)
    found = opened.points.estimate([image], [boxes])[0]
    owners = _owners(found, faces, motion)
    keypoints = np.zeros((1, len(motion.track), COUNT, 3), np.float32)
    present = np.zeros((1, len(motion.track)), bool)
    face_boxes = np.full((1, len(motion.track), 4), np.nan, np.float32)
    for index, row in owners.items():
        keypoints[0, index], present[0, index] = found[row], True
    for one in faces:
        if one.index in owners and one.face_number is not None:
            face_boxes[0, one.index] = one.face.box
    still = Motion(
        keypoints=keypoints, present=present, track=motion.track, face_boxes=face_boxes,
        size=(image.shape[1], image.shape[0]),
    )  # fmt: skip
    placed = transform.transform_motion(still)
    return draw_skeleton(placed.keypoints[0][placed.present[0]], transform.target), regions_of(placed, faces)


def _owners(found: np.ndarray, faces: Sequence[PersonFace], motion: Motion) -> dict[int, int]:
    """Row of ``found`` float32[n,134,3] by the index of the motion's person."""
    known = [one for one in faces if one.face_number is not None]
    rows = match_faces(found, np.array([one.face.box for one in known], np.float32).reshape(-1, 4))
    owners: dict[int, int] = {}
    for row, face in enumerate(rows.tolist()):
        if face >= 0:
            owners[known[face].index] = row
    boxes = bounding_box(found, minimum=1)
    centres = np.nan_to_num(boxes[:, 0] + boxes[:, 2])
    rest = sorted((row for row in range(len(found)) if row not in owners.values()), key=lambda row: centres[row])
    missing = [index for index in range(len(motion.track)) if index not in owners]
    return owners | dict(zip(people_left_to_right(motion, missing), rest, strict=False))


def _opened(detectors: Callable[[], Detectors]) -> Detectors:
    try:
        return detectors()
    except ModelMissing as error:
        hint = (error.hint or "", "or use --anchor first, which needs no detectors")
        message = f"{error.message}, which --anchor reference needs"
        raise ModelMissing(message, hint=hint, downloads=error.downloads) from None


def _no_person(path: Path) -> NoPerson:
    return NoPerson(
        f"{path}: no person found, and --anchor reference needs the person's own pose",
        hint="use --anchor first, or an image that shows the whole person",
    )
