"""Drawings of the reference implementation that its recordings do not cover, as checksums.

Recorded by running ``draw_pose`` of its ``DWPose/skeleton_extraction.py`` (commit 020e7f2, OpenCV 5.0) on ``people``.
A checksum is the CRC-32 of its picture as RGB [h,w,3].
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from stableanimator_cli.motion.skeleton import draw_normalised


def people(seed: int, kind: str, count: int, size: tuple[int, int]) -> np.ndarray:
    """float64[count,134,3] in shares of ``size``, drawn from ``seed``; ``kind`` is what is unusual about them."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.2, 0.8, (count, 1, 2)) + rng.normal(0, 0.15, (count, 134, 2))
    scores = rng.uniform(0, 1, (count, 134))
    lost = -1 / np.array(size)
    if kind == "low scores":
        scores *= 0.35
    elif kind == "at the edges":
        points[:, ::2] = rng.choice([-0.01, 0.0, 1e-3, 1.0, 1.01], points[:, ::2].shape)
    elif kind == "lost points":
        scores -= 0.4
        points[scores <= 0] = lost
    elif kind == "lost hands":
        scores[:, 92:], points[:, 92:113] = 0, lost
    elif kind == "one place":
        points[:] = points[:, :1]
    return np.concatenate([points, scores[..., None]], axis=-1)


@pytest.mark.parametrize(
    ("seed", "kind", "count", "size", "checksum"),
    [
        (0, "plain", 1, (512, 512), 3957422059),
        (1, "plain", 3, (512, 904), 3451511190),
        (2, "low scores", 2, (576, 1024), 134128883),
        (3, "at the edges", 2, (1024, 576), 871594431),
        (4, "lost points", 2, (300, 777), 3294138055),
        (5, "lost hands", 1, (63, 101), 620982994),
        (6, "one place", 2, (256, 256), 1902711651),
        (7, "plain", 2, (1920, 1080), 243230868),  # a canvas of exactly twice the size
    ],
)
def test_drawings_are_those_of_the_reference_implementation(seed, kind, count, size, checksum):
    drawn = draw_normalised(people(seed, kind, count, size), size)
    assert drawn.shape == (size[1], size[0], 3)
    assert zlib.crc32(np.ascontiguousarray(drawn)) == checksum
