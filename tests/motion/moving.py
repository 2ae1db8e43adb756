"""Motions that are moved, turned, spoilt: what alignment, tracking and repair are tried on."""

from __future__ import annotations

import dataclasses

import numpy as np

from stableanimator_cli.motion.keypoints import face_box
from stableanimator_cli.records import Motion
from tests.waving import waving


def mapped(points: np.ndarray, scale: float | tuple[float, float] = 1.0, shift=(0.0, 0.0), degrees: float = 0.0):
    """[...,134,3] turned (clockwise as seen), scaled and shifted; float64."""
    points = np.array(points, np.float64)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    points[..., :2] = points[..., :2] @ np.array([[c, -s], [s, c]]).T * scale + shift
    return points


def with_points(motion: Motion, points: np.ndarray, **others) -> Motion:
    points = points.astype(np.float32)
    boxes = np.where(motion.present[..., None], face_box(points), np.float32(np.nan))
    return dataclasses.replace(motion, keypoints=points, face_boxes=boxes, **others)


def standing(size: tuple[int, int] = (512, 512)) -> np.ndarray:
    """One person, float64[134,3]; the first frame of ``waving``."""
    return waving(1, size).keypoints[0, 0].astype(np.float64)


def side_by_side(*motions: Motion) -> Motion:
    """People of several motions of one size and length in one."""
    return dataclasses.replace(
        motions[0],
        keypoints=np.concatenate([m.keypoints for m in motions], axis=1),
        present=np.concatenate([m.present for m in motions], axis=1),
        face_boxes=np.concatenate([m.face_boxes for m in motions], axis=1),
        track=np.arange(sum(len(m.track) for m in motions)),
    )
