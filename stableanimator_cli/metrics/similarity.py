"""CLIP-I and DINO: similarity of each frame to the reference image, clothes, body and background included.

Ruiz et al., "DreamBooth": the cosine of image embeddings of CLIP and of DINO's ViT-S/16. The networks come from
``engine.features``; here is what they are fed and how their vectors are compared. Preprocessing repeats torchvision's
``Resize`` (of images, antialiased) and ``CenterCrop``, which the authors of both networks use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from stableanimator_cli.metrics.identity import cosines
from stableanimator_cli.metrics.result import define
from stableanimator_cli.records import CLIP_PIXELS

Embed = Callable[[np.ndarray], np.ndarray]
"""A batch float32[n,3,h,w] -> float[n,d]."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of RGB in 0..1."""
_CROP = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStyle:
    """Preparation of frames for an embedding: pixels of the shorter side, then mean and standard deviation of RGB."""

    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """uint8[h,w,3] -> float32[3,224,224]: bicubic resize of the shorter side, central square, normalised."""
        height, width = frame.shape[:2]
        short = min(height, width)
        size = (int(self.resize * width / short), int(self.resize * height / short))
        left, top = (round((side - _CROP) / 2) for side in size)
        image = Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image.crop((left, top, left + _CROP, top + _CROP)), np.float32) / np.float32(255)
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        return ((pixels - mean) / std).transpose(2, 0, 1)


IMAGE_STYLES: dict[str, ImageStyle] = {
    "clip_i": ImageStyle(resize=224, mean=CLIP_PIXELS[0], std=CLIP_PIXELS[1]),
    "dino": ImageStyle(resize=256, mean=IMAGENET[0], std=IMAGENET[1]),
}
for _name, _title, _features, _network, _source in (
    ("clip_i", "CLIP-I", "image embeddings of CLIP ViT-B/32, after the projection,", "clip_image",
     "preprocessing of openai/CLIP; ViT-B/32 is the usual choice, DreamBooth names none"),
    ("dino", "DINO", "class tokens of DINO ViT-S/16, after the last norm,", "dino",
     "preprocessing of facebookresearch/dino, eval_knn.py"),
):  # fmt: skip
    define(
        _name, _title, "higher",
        f"cosine of {_features} of each whole frame and of the reference image, both bicubic with the shorter side "
        f"at {IMAGE_STYLES[_name].resize} pixels and cut to the central 224x224; mean over frames",
        source=f"Ruiz et al., DreamBooth; {_source}", range="-1..1", network=_network,
    )  # fmt: skip


@dataclass(slots=True)
class ReferenceSimilarity:
    """Similarity of a video's frames to its reference image, streamed: ``begin``, ``add`` each frame, ``finish``.

    At most ``batch`` prepared frames are held. Nothing is computed without a reference.
    """

    metric: str
    network: Embed
    batch: int = 8
    _reference: np.ndarray | None = None
    _waiting: list[np.ndarray] = field(default_factory=list)
    _values: list[np.ndarray] = field(default_factory=list)

    def begin(self, reference: np.ndarray | None) -> None:
        """The next video, with its reference image uint8[h,w,3]. What was added before is dropped."""
        self._waiting, self._values, self._reference = [], [], None
        if reference is not None:
            self._reference = self.network(IMAGE_STYLES[self.metric].prepare(reference)[None])[0]

    def add(self, frame: np.ndarray) -> None:
        """The next frame uint8[h,w,3]."""
        if self._reference is None:
            return
        self._waiting.append(IMAGE_STYLES[self.metric].prepare(frame))
        if len(self._waiting) == self.batch:
            self._embed()

    def finish(self) -> np.ndarray | None:
        """Cosines float64[t] of all frames; None without a reference."""
        if self._waiting:
            self._embed()
        return np.concatenate([np.zeros(0), *self._values]) if self._reference is not None else None

    def _embed(self) -> None:
        assert self._reference is not None
        self._values.append(cosines(self.network(np.stack(self._waiting)), self._reference))
        self._waiting = []
