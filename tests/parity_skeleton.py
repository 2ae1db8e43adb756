"""Parity of poses with recordings of the reference implementation: decoded, aligned, drawn (see ``tests.parity``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.detect.pose import _Crop, _Letterbox, decode_people, decode_points
from stableanimator_cli.motion.align import upstream_map
from stableanimator_cli.motion.keypoints import from_wholebody
from stableanimator_cli.motion.motion_file import from_pose_dict
from stableanimator_cli.motion.skeleton import draw_normalised, draw_skeleton

COORDINATES = 1e-9  # pixels


def drawings(folder: Path, name: str) -> list[tuple[str, int]]:
    """(array name, pixels that differ) of each ``drawn_chw_HxW`` array: the pose beside it, drawn at that size."""
    pose = from_pose_dict(json.loads((folder / f"{name}_pose.json").read_text()))
    results = []
    with np.load(folder / f"{name}.npz") as arrays:
        for key in arrays.files:
            recorded = arrays[key][::-1].transpose(1, 2, 0)  # the function returns BGR planes; the saved PNG is RGB
            height, width = recorded.shape[:2]
            ours = draw_normalised(pose, (width, height))
            results.append((key, int((ours != recorded).any(axis=-1).sum())))
    return results


def aligned(folder: Path, name: str) -> list[tuple[str, float, float]]:
    """(what, found, limit) of each case of a file: pixels that differ once its motion is aligned and drawn."""
    rows = []
    with np.load(folder / f"{name}.npz") as arrays:
        for case, recorded in json.loads((folder / f"{name}.json").read_text()).items():
            drawn = _aligned_drawings(recorded)
            theirs = arrays[f"{case}__returned"][:, ::-1].transpose(0, 2, 3, 1)
            rows.append((case, _differing(drawn, theirs), 0.0))
            saved = arrays[f"{case}__png_as_pil_rgb"]
            rows.append((f"{case}, saved", _differing(drawn[0], saved), 0.0))
    return rows


def _aligned_drawings(case: dict[str, Any]) -> np.ndarray:
    """uint8[t,h,w,3]: the driving poses of a recorded case, aligned as the reference does and drawn."""
    height, width = case["ref_hw"]
    people = [from_pose_dict(pose) for pose in case["driving_poses"]]
    present = np.arange(max(map(len, people))) < np.array([[len(frame)] for frame in people])
    points = np.zeros((*present.shape, 134, 3))
    points[present] = np.concatenate(people)
    scale, shift = upstream_map(points, present, from_pose_dict(case["reference_pose"])[0], (width, height))
    points[..., :2] = points[..., :2] * scale + shift
    return np.stack([draw_normalised(p[there], (width, height)) for p, there in zip(points, present, strict=True)])


def decoded(folder: Path, name: str) -> list[tuple[str, float, float]]:
    """(what, found, limit) of each stage from a picture to skeletons: the detectors' inputs and outputs, boxes, points,
    drawings."""
    with np.load(folder / f"{name}.npz") as file:
        golden = dict(file)
    image = golden["image"]
    height, width = image.shape[:2]
    pixels, ratio = _Letterbox(golden["det_input"].shape[2:])(image)
    found = decode_people(golden["det_output"][0], ratio, golden["det_input"].shape[2:])
    boxes = golden["boxes"].reshape(-1, 4)
    within = boxes if len(boxes) else np.array([[0.0, 0.0, width, height]])  # nobody: the reference takes it all
    side = golden["pose_inputs"].shape[:1:-1]
    crops, centres, extents = zip(*(_Crop(side)(image, box) for box in within), strict=True)
    points = decode_points(golden["simcc_x"], golden["simcc_y"], np.stack(centres), np.stack(extents), size=side)
    people = from_wholebody(points)
    drawn = golden["drawn_chw"][::-1].transpose(1, 2, 0)
    return [
        ("detector's input", _farthest(pixels, golden["det_input"][0]), 0.0),
        ("boxes", _farthest(found[:, :4], boxes.astype(np.float32)), 0.0),
        ("pose network's input", _farthest(np.stack(crops), golden["pose_inputs"].astype(np.float32)), 0.0),
        ("coordinates", _farthest(people[..., :2], golden["keypoints"]), COORDINATES),
        ("scores", _farthest(people[..., 2], golden["scores"]), 0.0),
        ("drawing, pixels", _differing(draw_skeleton(people, (width, height)), drawn), 0.0),
    ]


def _differing(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Pixels that differ; infinite where shapes do."""
    return float((ours != theirs).any(axis=-1).sum()) if ours.shape == theirs.shape else float("inf")


def _farthest(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
