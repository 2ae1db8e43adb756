"""Parity of skeleton drawings with recordings of the reference implementation (see ``tests.parity``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stableanimator_cli.motion.interchange import from_pose_dict
from stableanimator_cli.motion.skeleton import draw_normalised


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
