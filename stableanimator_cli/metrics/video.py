"""Distances of sets of videos: clips cut from streams of frames, their features, and the distance between two sets.

A style is a network, a clip length, a stride and the preparation of frames. Distances of two styles are not comparable,
nor are those over different numbers of clips. Frames are streamed; only moments of features remain of a video.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from stableanimator_cli.metrics.frechet import Moments, frechet_distance
from stableanimator_cli.metrics.mmd import mmd_polynomial
from stableanimator_cli.metrics.result import Value, define
from stableanimator_cli.metrics.similarity import IMAGENET

ClipNetwork = Callable[[np.ndarray], np.ndarray]
"""Clips as a style prepares them [b,t,...] -> features float[b,d]."""

RESNET_MEAN = np.array([114.7748, 107.7354, 99.4750], np.float32)  # of Kinetics, 0..255 RGB


def squashed(frame: np.ndarray, side: int, resample: Image.Resampling) -> np.ndarray:
    """uint8[h,w,3] -> float32[3,side,side] in about 0..255 without a crop: Pillow's antialiased filter in floating
    point, so that nothing is rounded or clipped."""
    planes = [Image.fromarray(np.ascontiguousarray(frame[..., c], np.float32)) for c in range(3)]
    return np.stack([np.asarray(plane.resize((side, side), resample)) for plane in planes])


def prepare_disco(frame: np.ndarray) -> np.ndarray:
    """uint8[h,w,3] -> float32[3,224,224] for I3D as DisCo does it: bicubic, then -1..1 (a filter may overshoot)."""
    return squashed(frame, 224, Image.Resampling.BICUBIC) / np.float32(127.5) - 1


def prepare_resnet(frame: np.ndarray) -> np.ndarray:
    """uint8[h,w,3] -> float32[3,112,112] for the 3D ResNet: bicubic, 0..255 less the mean of Kinetics."""
    return squashed(frame, 112, Image.Resampling.BICUBIC) - RESNET_MEAN[:, None, None]


def prepare_puppet(frame: np.ndarray) -> np.ndarray:
    """uint8[h,w,3] -> float32[3,64,64] in -1..1 for the puppets' classifier: means over areas, as it was trained."""
    return squashed(frame, 64, Image.Resampling.BOX) / np.float32(127.5) - 1


def prepare_jepa(frame: np.ndarray) -> np.ndarray:
    """uint8[h,w,3] -> float32[3,224,224] for V-JEPA: bilinear, 0..1, normalised by ImageNet's statistics."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in IMAGENET)
    return (squashed(frame, 224, Image.Resampling.BILINEAR) / np.float32(255) - mean) / std


def prepare_none(frame: np.ndarray) -> np.ndarray:
    """The frame uint8[h,w,3] itself: the network resizes inside."""
    return frame


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipStyle:
    """Cutting and preparation of clips. ``stride`` counts frames between starts of clips; ``steps`` describes
    ``prepare``, and ``estimate`` the ``distance`` of two sets."""

    metric: str
    length: int
    stride: int
    prepare: Callable[[np.ndarray], np.ndarray]
    steps: str
    distance: Callable[[Moments, Moments], float] = frechet_distance
    estimate: Mapping[str, Any] = field(default_factory=lambda: {"ddof": 1})

    def __post_init__(self) -> None:
        if self.length < 1 or self.stride < 1:
            raise ValueError(f"clips of {self.length} frames every {self.stride}")

    def about(self) -> dict[str, Any]:
        return {
            "clip_length": self.length, "clip_stride": self.stride, "preprocessing": self.steps, **self.estimate
        }  # fmt: skip


STYLES: dict[str, ClipStyle] = {}


def _style(
    style: ClipStyle,
    title: str,
    features: str,
    *,
    source: str,
    network: str,
    end: str = "unbiased covariance",
    distance: str = "Frechet distance",
) -> None:
    definition = f"{distance} of {features}; clips of {style.length} frames every {style.stride}, {style.steps}; {end}"
    define(
        style.metric, title, "lower", definition, source=source, range="0..inf; falls with the number of clips",
        network=network,
    )  # fmt: skip
    STYLES[style.metric] = style


_I3D = "Unterthiner et al., 'Towards Accurate Generative Models of Video'"
# fmt: off
_style(
    ClipStyle(metric="fvd_disco", length=16, stride=1, prepare=prepare_disco,
              steps="bicubic (Pillow, float) squash to 224x224, x / 127.5 - 1"),
    "FVD (DisCo)", "the 400 logits of I3D (i3d_pretrained_400.pt)",
    source=f"{_I3D}; Wangt-CN/DisCo, tool/metrics", network="i3d",
)
_style(
    ClipStyle(metric="fvd_stylegan_v", length=16, stride=16, prepare=prepare_none,
              steps="bilinear to 224x224 and scaling inside the network file"),
    "FVD (StyleGAN-V)", "the 400 logits of I3D (i3d_torchscript.pt)",
    source=f"{_I3D}; universome/stylegan-v", network="i3d_torchscript",
)
_style(
    ClipStyle(metric="fid_vid", length=16, stride=1, prepare=prepare_resnet,
              steps="bicubic (Pillow, float) squash to 112x112, less the mean of Kinetics"),
    "FID-VID", "the 2048 pooled features of a 3D ResNet-50 (resnet-50-kinetics.pth)",
    source="Wangt-CN/DisCo, tool/metrics; Hara et al., 'Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and "
    "ImageNet?'", network="resnet3d",
)
_style(
    ClipStyle(metric="fvd_puppet", length=8, stride=4, prepare=prepare_puppet,
              steps="mean over areas to 64x64, x / 127.5 - 1"),
    "FVD (puppet)", "128 features of this project's classifier of drawn figures (video.onnx)",
    source="this project; for drawn figures only", network="puppet_clip",
)
_style(
    ClipStyle(metric="jedi", length=16, stride=16, prepare=prepare_jepa,
              steps="bilinear (Pillow, float) squash to 224x224, ImageNet's mean and standard deviation",
              distance=mmd_polynomial, estimate={"kernel": "(x . y / d)^2", "estimate": "biased, times 100"}),
    "JEDi", "the 1280 features that the SSv2 probe pools from V-JEPA ViT-H/16 (vith16.pth.tar, ssv2-probe.pth.tar)",
    source="Luo et al., 'Beyond FVD'; oooolga/JEDi, which leaves the size of frames and the cutting of clips to its "
    "caller", network="vjepa", distance="maximum mean discrepancy",
    end="kernel (x . y / d)^2, biased estimate times 100",
)
# fmt: on


class ClipWindows:
    """Cuts clips from streamed frames, never across videos or across a gap in the numbers.

    A run of consecutive frames has a clip at its first frame and at every ``stride``-th after it, if ``length`` frames
    follow. At most ``length`` frames are held.
    """

    def __init__(self, length: int, stride: int) -> None:
        self.length, self.stride = length, stride
        self._frames: deque[np.ndarray] = deque(maxlen=length)
        self._video: str | None = None
        self._index = 0
        self._run = 0

    def add(self, video: str, index: int, frame: np.ndarray) -> np.ndarray | None:
        """The clip [t,...] that this frame completes, or None."""
        broken = video != self._video or index != self._index + 1
        if broken or (self._frames and self._frames[-1].shape != frame.shape):
            self._frames.clear()
            self._run = 0
        self._video, self._index = video, index
        self._frames.append(frame)
        self._run += 1
        start = self._run - self.length
        return np.stack(self._frames) if start >= 0 and start % self.stride == 0 else None


@dataclass(slots=True)
class ClipFeatures:
    """Features of one side's videos, streamed: ``add`` frames in order, ``finish`` at the end, then ``videos`` holds
    the moments of each. Two of these (predicted, reference) make a ``set_distance``; parts made apart ``merge``."""

    style: ClipStyle
    network: ClipNetwork
    batch: int = 4
    videos: dict[str, Moments] = field(default_factory=dict)
    _windows: ClipWindows = field(init=False)
    _waiting: list[tuple[str, np.ndarray]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batches of {self.batch} clips")
        self._windows = ClipWindows(self.style.length, self.style.stride)

    def add(self, video: str, index: int, frame: np.ndarray) -> None:
        """Frame ``index`` (consecutive numbers are consecutive frames) uint8[h,w,3] of ``video``."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame of {frame.dtype}{list(frame.shape)}, expected uint8[h,w,3]")
        self.videos.setdefault(video, Moments())
        clip = self._windows.add(video, index, self.style.prepare(frame))
        if clip is None:
            return
        if self._waiting and self._waiting[0][1].shape != clip.shape:
            self.finish()
        self._waiting.append((video, clip))
        if len(self._waiting) == self.batch:
            self.finish()

    def forget(self, video: str) -> None:
        """Drop all that was added of a video."""
        self._waiting = [row for row in self._waiting if row[0] != video]
        self.videos.pop(video, None)
        self._windows = ClipWindows(self.style.length, self.style.stride)

    def finish(self) -> None:
        """Run the network on the clips that still wait for a batch."""
        if self._waiting:
            videos, clips = zip(*self._waiting, strict=True)
            self._waiting = []
            rows = np.asarray(self.network(np.stack(clips)), np.float64)
            for video, row in zip(videos, rows, strict=True):
                self.videos[video].add(row)

    def merge(self, other: ClipFeatures) -> None:
        """Take in another part's moments; both must have finished."""
        if self._waiting or other._waiting:
            raise ValueError("clips still wait: finish both parts before they are merged")
        for video, moments in other.videos.items():
            self.videos.setdefault(video, Moments()).merge(moments)


def set_distance(
    style: ClipStyle,
    predicted: Mapping[str, Moments],
    reference: Mapping[str, Moments],
    about: Mapping[str, Any] | None = None,
) -> Value:
    """Distance of a style between two sides (``ClipFeatures.videos``), for all videos together.

    The style's parameters, the numbers of clips and the videos too short for one are added to ``about``. Raises
    ``BadInput`` if a side has fewer than two clips.
    """
    ours, target = pooled(predicted.values()), pooled(reference.values())
    short = sorted(video for side in (predicted, reference) for video, moments in side.items() if not moments.count)
    return Value(
        metric=style.metric,
        pooled=style.distance(ours, target),
        count=ours.count,
        about={
            **(about or {}),
            **style.about(),
            "clips_predicted": ours.count,
            "clips_reference": target.count,
            "dimensions": ours.width,
            **({"too_short": list(dict.fromkeys(short))} if short else {}),
        },
    )


def pooled(parts: Iterable[Moments]) -> Moments:
    """Moments of all videos together; a resampled video may occur more than once."""
    return Moments.merged(parts)
