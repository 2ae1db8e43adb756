"""Videos as motions: what they show, and their pixels for backbones that are driven by the video itself."""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

from stableanimator_cli.animate.inputs import is_openpose
from stableanimator_cli.clip_folder import is_clip, open_folder
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.errors import BadInput
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.skeleton import is_tagged, looks_like_skeleton
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip

_SAMPLED = 8  # frames that decide what an untagged video is
_VIDEO = "a video of a person, or a clip folder of sa preprocess"


def open_pixels(config: AnimateConfig, reporter: Reporter) -> Clip:
    """The video of a motion that drives by its pixels. Raises ``BadInput`` for keypoints and drawn skeletons."""
    path = config.motion
    if is_clip(path):
        return open_folder(path).pictures()
    hint = "this model is driven by the pixels of a video: give the one from which the motion was detected"
    if path.suffix.lower() == ".npz" or is_openpose(path):
        raise BadInput(path, "keypoints", _VIDEO, hint=hint)
    clip = open_clip(path)
    if shows_skeletons(clip, config.motion_kind, reporter):
        raise BadInput(path, "drawn skeletons", _VIDEO, hint=f"{hint}; if it shows a person, add --motion-kind video")
    return clip


def letterboxed(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[h,w,3] in a frame of ``size`` (width, height) with black bars, to the bit as Wan-Animate-2's processor.

    Source: diffusers' ``WanAnimate2VideoProcessor``, bilinear, which places contents of odd sides half a pixel back.
    """
    (width, height), (rows, columns) = size, image.shape[:2]
    if (columns, rows) == size:
        return image
    wide = columns * height >= rows * width
    inner = (width, rows * width // columns) if wide else (columns * height // rows, height)
    frame = Image.new("RGB", size)
    inner = max(1, inner[0]), max(1, inner[1])
    picture = Image.fromarray(image).resize(inner, Image.Resampling.BILINEAR)
    frame.paste(picture, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.asarray(frame)


def shows_skeletons(clip: Clip, kind: str, reporter: Reporter) -> bool:
    """Whether a video shows drawn skeletons rather than people. ``kind``: the value of ``--motion-kind``."""
    if kind != "auto":
        return kind == "skeleton"
    tagged = is_tagged(clip.tag)
    sampled = [] if tagged else [frame for _, frame in itertools.islice(clip.frames(), _SAMPLED)]
    skeleton = tagged or sum(map(looks_like_skeleton, sampled)) * 2 > len(sampled)
    why = "by its tag" if tagged else "black except its limbs" if skeleton else "not black like a skeleton"
    reporter.info(f"{clip.path.name}: read as a {'skeleton' if skeleton else 'plain'} video ({why})")
    return skeleton
