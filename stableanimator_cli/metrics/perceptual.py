"""LPIPS of pairs of frames, with the input range of each variant, in batches.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric". The networks come from
``engine.features`` as functions of two batches; here is what they are fed and how their numbers are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stableanimator_cli.metrics.accumulators import ByVideo
from stableanimator_cli.metrics.pixel import check_pair
from stableanimator_cli.metrics.result import define
from stableanimator_cli.metrics.video import prepare_puppet

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two batches float32[n,3,h,w] -> float[n]."""

EPSILON = 1e-10
"""Added to a feature's length before it is divided by it, as in the reference implementation."""


def signed(frame: np.ndarray) -> np.ndarray:
    """uint8[h,w,3] -> float32[3,h,w] in -1..1, the range that LPIPS is defined on."""
    return frame.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1


def unsigned(frame: np.ndarray) -> np.ndarray:
    """uint8[h,w,3] -> float32[3,h,w] in 0..1: what DisCo feeds a network that expects -1..1."""
    return frame.transpose(2, 0, 1).astype(np.float32) / np.float32(255)


PREPARE: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
SHORTEST_SIDE = {"lpips_alex": 31, "lpips_vgg": 16, "lpips_vgg_disco": 16}
"""Pixels that a frame needs, where the network has a minimum: its last layers see nothing of smaller frames."""


def _lpips(
    name: str, title: str, prepare: Callable, definition: str, *, network: str, source: str = "", range: str = ""
) -> None:
    define(
        name, title, "lower", definition, source=source or _PAPER, range=range or "0..; values above 1 are rare",
        network=network,
    )  # fmt: skip
    PREPARE[name] = prepare


_PAPER = "Zhang et al. 2018, v0.1 (richzhang/PerceptualSimilarity)"
_lpips("lpips_alex", "LPIPS (alex)", signed, "LPIPS v0.1, AlexNet, input in -1..1, no resize", network="lpips_alex")
_lpips("lpips_vgg", "LPIPS (vgg)", signed, "LPIPS v0.1, VGG16, input in -1..1, no resize", network="lpips_vgg")
_lpips(
    "lpips_vgg_disco", "LPIPS (DisCo)", unsigned,
    "LPIPS v0.1, VGG16, input in 0..1 where -1..1 is meant: smaller than lpips_vgg",
    source="LPIPS of published tables: Wangt-CN/DisCo, tool/metrics", network="lpips_vgg",
)  # fmt: skip
_lpips(
    "lpips_puppet", "LPIPS (puppet)", prepare_puppet,
    "unit_distance of three layers of this project's classifier of drawn figures at 64x64; no learned weights",
    source="this project; the unweighted form of Zhang et al. 2018", range="0..6", network="puppet_frame",
)  # fmt: skip


def unit_distance(predicted: Sequence[np.ndarray], target: Sequence[np.ndarray]) -> np.ndarray:
    """LPIPS without learned weights, from feature maps [n,c,h,w] of each layer: features scaled to unit length over
    channels, squared differences summed over channels, averaged over places, summed over layers: float64[n].

    Raises ``ValueError`` if the maps of a layer differ in shape.
    """
    total = np.zeros(len(predicted[0]))
    for a, b in zip(predicted, target, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"feature maps {a.shape} against {b.shape}")
        total += np.square(_unit(a) - _unit(b)).sum(axis=1).mean(axis=(1, 2))
    return total


def lpips(metric: str, network: Distance, a: np.ndarray, b: np.ndarray) -> float:
    """One of the LPIPS metrics (a name in ``PREPARE``) of two frames uint8[h,w,3]."""
    check_pair(a, b)
    prepare = PREPARE[metric]
    return float(network(prepare(a)[None], prepare(b)[None])[0])


@dataclass(slots=True)
class Perceptual:
    """An LPIPS metric over videos, streamed: ``add`` pairs, ``finish`` at the end, then ``scores.value(metric)``.

    At most ``batch`` pairs are held. Both return values computed since the last call, as (video, index, value).
    """

    metric: str
    network: Distance
    batch: int = 8
    scores: ByVideo = field(default_factory=ByVideo)
    _waiting: list[tuple[str, int, np.ndarray, np.ndarray]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.metric not in PREPARE:
            raise ValueError(f"no LPIPS metric is named {self.metric!r}: {', '.join(PREPARE)}")
        if self.batch < 1:
            raise ValueError(f"batches of {self.batch} frames")

    def add(self, video: str, index: int, a: np.ndarray, b: np.ndarray) -> list[tuple[str, int, float]]:
        """Frame ``index`` of ``video``: prediction and reference, uint8[h,w,3] of one size."""
        check_pair(a, b)
        prepare = PREPARE[self.metric]
        computed = []
        row = (video, index, prepare(a), prepare(b))
        if self._waiting and self._waiting[0][2].shape != row[2].shape:
            computed = self.finish()
        self._waiting.append(row)
        return computed + self.finish() if len(self._waiting) == self.batch else computed

    def forget(self, video: str) -> None:
        """Drop all that was added of a video."""
        self._waiting = [row for row in self._waiting if row[0] != video]
        self.scores.videos.pop(video, None)

    def finish(self) -> list[tuple[str, int, float]]:
        """Compute the pairs that still wait for a batch."""
        if not self._waiting:
            return []
        videos, indices, predicted, target = zip(*self._waiting, strict=True)
        self._waiting = []
        values = [float(value) for value in self.network(np.stack(predicted), np.stack(target))]
        for video, value in zip(videos, values, strict=True):
            self.scores.add(video, value)
        return list(zip(videos, indices, values, strict=True))


def _unit(maps: np.ndarray) -> np.ndarray:
    maps = np.asarray(maps, np.float64)
    return maps / (np.sqrt(np.square(maps).sum(axis=1, keepdims=True)) + EPSILON)
