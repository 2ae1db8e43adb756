"""Frozen records that stages pass to one another (``docs/design.md`` §4). Standard library and numpy only.

Axes: ``t`` frame, ``p`` person, ``h w`` pixels. Points are in pixels (x right, y down); (0, 0) is the top-left pixel.
Absence is a value (``None``, ``present`` false, score 0), never a vector of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stableanimator_cli import backbone_facts

ChannelOrder = Literal["bgr", "rgb"]
NETWORKS = backbone_facts.NETWORKS
"""Roles of a model of a backbone with one UNet."""
CLIP_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of RGB in 0..1, by which images are normalised for CLIP."""
STRIDE = 8
"""Pixels per latent: four levels of SVD's VAE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video or image sequence as a lazy stream; nothing is decoded before ``frames`` is iterated.

    ``size`` is (width, height) after rotation is applied. ``fps`` is the mean rate, ``None`` without a clock (a
    folder of images). ``count`` is None if the container does not record it. ``audio``: whether there is sound that
    can be decoded. Each iteration of ``frames()`` decodes again and yields ``(time, rgb uint8[h,w,3])``, the time in
    exact seconds or ``None``.
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
    ``embedding`` float32[512] as returned by ArcFace (not normalised), None if not computed."""

    box: np.ndarray
    landmarks: np.ndarray
    score: float
    embedding: np.ndarray | None

    @property
    def area(self) -> float:
        return float(max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """A motion: 134 keypoints per person and frame.

    ``keypoints`` float32[t,p,134,3] (x, y in pixels of ``size``, score in 0..1); ``present`` bool[t,p];
    ``track`` int[p]; ``face_boxes`` float32[t,p,4] with NaN rows if no face is visible; ``size`` (width, height);
    ``times`` exact seconds per frame, None if the source has no clock (folders of images or JSON).
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
class ModelFolder:
    """A model on disk, resolved.

    ``files`` maps a role (``unet``, ``pose_net``, ``face_encoder``, ``vae``, ``image_encoder``, ``face`` ...) to its
    weight file or folder, ``configs`` to its JSON config; ``digests`` maps files to the sha256 that their
    model.toml records. ``defaults`` are recommended settings by option name. ``warnings`` are sentences for the user.
    ``max_texture_error`` is that of the images that the model was trained on, None if unknown
    (``engine.conditioning.texture_error``).
    ``downloads``, for plans only: the names whose download writes the files that do not exist yet. ``backbone``: see
    ``engine.backbones``.
    """

    name: str
    path: Path
    files: Mapping[str, Path]
    configs: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    licence: str
    face_channel_order: ChannelOrder
    digests: Mapping[Path, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    max_texture_error: float | None = None
    downloads: tuple[str, ...] = ()
    backbone: str = backbone_facts.DEFAULT

    @property
    def facts(self) -> backbone_facts.BackboneFacts:
        return backbone_facts.BACKBONES[self.backbone]

    @property
    def networks(self) -> tuple[str, ...]:
        """Roles that the backbone needs."""
        return self.facts.networks

    @property
    def longest_window(self) -> int | None:
        """The largest number of frames that the networks know at once; None without a limit."""
        limits = [self.configs.get(role, {}).get("motion_max_seq_length") for role in self.facts.longest_window]
        return next((limit for limit in reversed(limits) if limit is not None), None)
