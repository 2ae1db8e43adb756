"""Protocols of evaluation: how two videos are prepared for comparison. Each is written into its results in full.

``disco256`` repeats the evaluation code of Wang et al., "DisCo" (2023), which the papers of this field used, range
mistakes included; metrics with such a mistake are named after it. ``native`` measures videos as they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

Name = Literal["disco256", "native"]
SIDE = 256
PUPPET_NETWORKS = ("lpips_puppet", "fvd_puppet")
"""Metrics whose network was trained on drawn figures."""


REFERENCE_NETWORKS = ("clip_i", "dino")
"""Metrics that compare each whole frame with the reference image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalProtocol:
    """Everything that scores depend on besides the videos. ``mean`` is the mean in tables: over all ``frames`` (long
    videos weigh more) or over ``videos``. ``networks`` are the metrics that need one; ``table`` lists the columns."""

    name: Name
    crop: str
    size: str
    pairing: str
    faces: str
    no_face: str
    mean: Literal["frames", "videos"]
    clips: str
    reference_frame: str
    identical_frames: str
    intervals: str
    networks: tuple[str, ...]
    table: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """A frame uint8[h,w,3] as pixel metrics see it."""
        return centre_square(frame, SIDE) if self.name == "disco256" else frame


_FACES = (
    "found on the whole frame at its own size, before any crop, colours in their right order; the largest face of a "
    "frame counts"
)
_NO_FACE = (
    "a frame without a face is skipped and lowers the detection rate; *_zero counts it as 0; a frame whose ground "
    "truth has no face is not asked; a video whose reference image has none is left out and counted"
)
_CLIPS = "length and stride stand in each Frechet distance's row, with the number of clips; none crosses two videos"
_PAIRING = (
    "videos by name, frames by number; frames without a counterpart are an error, or with --truncate left out and "
    "listed"
)
_IDENTICAL = (
    "an identical frame counts as 100 dB in psnr_disco and psnr_disco_overflow; psnr, which would be infinite, is the "
    "mean of the other frames, and the identical ones are counted"
)
_INTERVALS = (
    "95 % by Student's t over videos, of Frechet distances with the bootstrap's standard error; none below 5 videos, "
    "and no farther than the metric's range"
)

PROTOCOLS: dict[str, EvalProtocol] = {
    "disco256": EvalProtocol(
        name="disco256",
        crop="central square of the shorter side, of prediction and ground truth",
        size="256x256, bilinear with antialiasing, rounded to 8 bits",
        pairing=_PAIRING,
        faces=_FACES,
        no_face=_NO_FACE,
        mean="frames",
        clips=_CLIPS,
        reference_frame="frame 0 of the ground truth is the usual reference image and is measured like every other",
        identical_frames=_IDENTICAL,
        intervals=_INTERVALS,
        networks=("lpips_vgg_disco", "fvd_disco", "fid_vid", "jedi", *REFERENCE_NETWORKS),
        table=("l1_disco", "psnr_disco", "ssim", "lpips_vgg_disco", "csim_ref", "fvd_disco"),
    ),
    "native": EvalProtocol(
        name="native",
        crop="none",
        size="that of the videos, which must be equal",
        pairing=_PAIRING,
        faces=_FACES,
        no_face=_NO_FACE,
        mean="videos",
        clips=_CLIPS,
        reference_frame="every frame is measured",
        identical_frames=_IDENTICAL,
        intervals=_INTERVALS,
        networks=("lpips_alex", "lpips_vgg", "fvd_stylegan_v", "jedi", *REFERENCE_NETWORKS),
        table=("mae_unit", "psnr", "ssim", "lpips_alex", "csim_ref", "csim_gt", *REFERENCE_NETWORKS, "fvd_stylegan_v",
               "jedi", "keypoint_error", "flicker_excess", "flicker_distance", "seam_score"),
    ),
}  # fmt: skip


def without_target(rules: EvalProtocol) -> EvalProtocol:
    """The protocol of videos that have no ground truth: nothing that needs one is opened or listed."""
    table = ("csim_ref", "csim_ref_judge", *REFERENCE_NETWORKS, "face_rate", "identity_drift", "identity_worst",
             "keypoint_error", "hand_error", "landmark_error", "flicker", "seam_score")  # fmt: skip
    return replace(rules, pairing="none: no ground truth", networks=REFERENCE_NETWORKS, table=table)


def centre_square(frame: np.ndarray, side: int) -> np.ndarray:
    """The central square of uint8[h,w,3] at ``side`` x ``side``, by Pillow's antialiased bilinear filter.

    Equals torchvision's ``RandomResizedCrop(side, (1, 1), (1, 1))`` for images that are not square.
    """
    height, width = frame.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = frame[top : top + short, left : left + short]
    if short == side:
        return np.ascontiguousarray(square)
    return np.asarray(Image.fromarray(np.ascontiguousarray(square)).resize((side, side), Image.Resampling.BILINEAR))
