"""Frozen records that stages pass to one another (``docs/design.md`` §4). Standard library and numpy only.

Axes: ``t`` frame, ``p`` person, ``h w`` pixels. Points are pixels (x right, y down), pixel centres at integers + 0.5
do not matter at this precision: a point (0, 0) is the top-left pixel. Absence is a value (``None``, ``present`` false,
score 0), never a vector of zeros that looks like data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

ChannelOrder = Literal["bgr", "rgb"]
NETWORKS = ("unet", "pose_net", "face_encoder", "vae", "image_encoder")
"""The roles of a model without which nothing is animated."""
STRIDE = 8
"""Pixels a latent: four levels of SVD's VAE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video or picture sequence as a lazy stream; nothing is decoded before ``frames`` is iterated.

    ``size`` is (width, height) after rotation is applied. ``fps`` is the mean rate, ``None`` for what has no clock (a
    folder of pictures); ``count`` may be ``None`` where the container does not say. Each iteration of ``frames()``
    decodes again and yields ``(time, rgb uint8[h,w,3])``, the time in exact seconds or ``None``.
    """

    path: Path
    size: tuple[int, int]
    fps: Fraction | None
    count: int | None
    audio: bool
    frames: Callable[[], Iterator[tuple[Fraction | None, np.ndarray]]]
    tag: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One detected face. ``box`` float32[4] (x0, y0, x1, y1), ``landmarks`` float32[5,2] (eyes, nose, mouth corners),
    ``embedding`` float32[512] raw as ArcFace gives it (not normalised), or ``None`` where none was computed."""

    box: np.ndarray
    landmarks: np.ndarray
    score: float
    embedding: np.ndarray | None

    @property
    def area(self) -> float:
        return float(max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """What moves: 134 key points a person and frame.

    ``keypoints`` float32[t,p,134,3] (x, y in pixels of ``size``, score in 0..1); ``present`` bool[t,p];
    ``track`` int[p]; ``face_boxes`` float32[t,p,4] with NaN rows where no face is visible; ``size`` (width, height);
    ``times`` exact seconds a frame, or ``None`` where the source has no clock (folders of pictures or JSON).
    """

    keypoints: np.ndarray
    present: np.ndarray
    track: np.ndarray
    face_boxes: np.ndarray
    size: tuple[int, int]
    times: tuple[Fraction, ...] | None = None

    def __post_init__(self) -> None:
        t, p = self.present.shape
        if self.keypoints.shape != (t, p, 134, 3):
            raise ValueError(f"keypoints {self.keypoints.shape} do not fit present {self.present.shape}")
        if self.face_boxes.shape != (t, p, 4) or self.track.shape != (p,):
            raise ValueError(f"face_boxes {self.face_boxes.shape} or track {self.track.shape} do not fit ({t}, {p})")
        if self.times is not None and len(self.times) != t:
            raise ValueError(f"{len(self.times)} times for {t} frames")

    def __len__(self) -> int:
        return int(self.present.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The picture to animate: ``image`` uint8[h,w,3] RGB, its faces (largest first, may be empty), and its own
    key points float32[134,3] where they are known."""

    image: np.ndarray
    faces: tuple[Face, ...] = ()
    keypoints: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model on disk, resolved: which file plays which role, and the configs that say what the networks are.

    ``files`` maps a role (``unet``, ``pose_net``, ``face_encoder``, ``vae``, ``image_encoder``, ``face`` ...) to its
    weight file or folder; ``configs`` maps a role to its JSON config. ``defaults`` are the settings the model does best
    with. ``digests`` maps a role to the sha256 recorded for its file, where one is known. ``warnings`` are sentences
    that a user of the model should read.
    """

    name: str
    path: Path
    files: Mapping[str, Path]
    configs: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    licence: str
    face_channel_order: ChannelOrder
    digests: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
