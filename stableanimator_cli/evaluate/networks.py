"""LPIPS, similarity to the reference image, and distances of sets. Absent networks become ``Missing``.

Statistics of a target's clips are cached by its digest: baselines and repeated runs do not compute them again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stableanimator_cli.catalogue import evaluation_cache
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.metric_networks import Features, features
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.scores import Row, row_of
from stableanimator_cli.metrics.accumulators import RunningMean
from stableanimator_cli.metrics.bootstrap import MINIMUM, interval_of
from stableanimator_cli.metrics.frechet import Moments
from stableanimator_cli.metrics.perceptual import PREPARE, SHORTEST_SIDE, Perceptual
from stableanimator_cli.metrics.result import METRICS, Missing
from stableanimator_cli.metrics.similarity import IMAGE_STYLES, ReferenceSimilarity
from stableanimator_cli.metrics.video import STYLES, ClipFeatures, ClipStyle, pooled, set_distance
from stableanimator_cli.progress import Reporter

_FORMAT = 2  # of cached statistics


@dataclass(slots=True)
class _Distance:
    """One distance of sets: moments of both sides by video. ``key`` is the cache key of the current target."""

    network: Features
    predicted: ClipFeatures
    target: ClipFeatures
    key: str | None = None
    is_cached: bool = False


@dataclass(slots=True)
class MetricNetworks:
    """Networks of one system's evaluation, fed one video at a time: ``begin``, ``add`` each pair of frames, ``end``.

    Similarity to the reference image needs no pairs: ``add_frame`` each predicted frame, ``similarities``.
    """

    missing: list[Missing]
    rules: str
    _frames: dict[str, tuple[Features, Perceptual]] = field(default_factory=dict)
    _clips: dict[str, _Distance] = field(default_factory=dict)
    _images: dict[str, tuple[Features, ReferenceSimilarity]] = field(default_factory=dict)
    _name: str = ""

    @classmethod
    def open(
        cls, names: Sequence[str], device: str, *, rules: str, opened: dict[str, Features | Missing] | None = None
    ) -> MetricNetworks:
        """Open the networks of the metrics ``names``. Raises for a damaged one.

        ``opened`` holds networks by name and takes those opened here, so that metrics and systems share them.
        """
        networks, plan = cls(missing=[], rules=rules), DevicePlan.of(DeviceConfig(device=device))
        opened = {} if opened is None else opened
        for metric in names:
            name = str(METRICS[metric].network)
            if name not in opened:
                opened[name] = features(name, plan)
            network = opened[name]
            if isinstance(network, Missing):
                networks.missing.append(replace(network, metric=metric))
            elif metric in PREPARE:
                networks._frames[metric] = (network, Perceptual(metric, network))
            elif metric in IMAGE_STYLES:
                networks._images[metric] = (network, ReferenceSimilarity(metric, network))
            else:
                style = STYLES[metric]
                networks._clips[metric] = _Distance(network, ClipFeatures(style, network), ClipFeatures(style, network))
        return networks

    @property
    def of_reference(self) -> tuple[str, ...]:
        """The metrics that compare frames with the reference image."""
        return tuple(self._images)

    def begin(self, name: str, target: str | None, reference: np.ndarray | None = None) -> None:
        """The next video. ``target`` is the digest of its target, None if its statistics must not be cached.
        ``reference`` is its image uint8[h,w,3]."""
        self._name = name
        for _, similarity in self._images.values():
            similarity.begin(reference)
        for distance in self._clips.values():
            distance.key, moments = None, None
            if target is not None:
                about = [_FORMAT, target, self.rules, distance.predicted.style.about(), distance.network.about]
                distance.key = json.dumps(about, sort_keys=True, default=str)
                moments = _cached(distance.key)
            distance.is_cached = moments is not None
            if moments is not None:
                distance.target.videos[name] = moments

    def add(self, predicted: np.ndarray, target: np.ndarray, number: int) -> None:
        """The next pair of frames uint8[h,w,3] of one size; no clip spans a gap in their numbers.

        Frames below a network's ``SHORTEST_SIDE`` have no value of its metric and are counted as absent.
        """
        for metric, (_, perceptual) in self._frames.items():
            if min(predicted.shape[:2]) < SHORTEST_SIDE.get(metric, 1):
                perceptual.scores.add(self._name, math.nan)
            else:
                perceptual.add(self._name, number, predicted, target)
        for distance in self._clips.values():
            distance.predicted.add(self._name, number, predicted)
            if not distance.is_cached:
                distance.target.add(self._name, number, target)

    def add_frame(self, frame: np.ndarray) -> None:
        """The next predicted frame uint8[h,w,3], whole and at its own size."""
        for _, similarity in self._images.values():
            similarity.add(frame)

    def similarities(self) -> dict[str, np.ndarray]:
        """Return the similarity of each frame that was seen: float64[t] by metric."""
        found = {metric: similarity.finish() for metric, (_, similarity) in self._images.items()}
        return {metric: curve for metric, curve in found.items() if curve is not None}

    def forget(self, name: str) -> None:
        """Drop a video that could not be read to its end."""
        for distance in self._clips.values():
            distance.predicted.forget(name)
            distance.target.forget(name)
        for _, perceptual in self._frames.values():
            perceptual.forget(name)

    def end(self) -> dict[str, RunningMean]:
        """Return the video's means."""
        for distance in self._clips.values():
            distance.predicted.finish()
            distance.target.finish()
            if distance.key is not None and not distance.is_cached:
                evaluation_cache.store_arrays("clips", distance.key, distance.target.videos[self._name].to_arrays())
        for _, perceptual in self._frames.values():
            perceptual.finish()
        return {metric: perceptual.scores.videos[self._name] for metric, (_, perceptual) in self._frames.items()}

    def about(self) -> dict[str, Mapping[str, Any]]:
        """Files and digests of the network of each metric."""
        return {metric: network.about for metric, (network, _) in (*self._frames.items(), *self._images.items())}

    def set_rows(self, *, seed: int, samples: int, reporter: Reporter) -> tuple[dict[str, Row], list[Missing]]:
        """Distances over all videos seen, with intervals over videos (both sides resampled together).

        A sample of 100 videos of 30 clips with 2,048 features takes half a minute of one core, hence the progress.
        """
        rows, missing = {}, []
        for metric, distance in self._clips.items():
            style = distance.predicted.style
            predicted, target = distance.predicted.videos, distance.target.videos
            try:
                value = set_distance(style, predicted, target, distance.network.about)
            except BadInput as error:
                reason = f"{error.message}; a clip has {style.length} frames"
                missing.append(Missing(metric=metric, reason=reason, command=""))
                continue
            names = [name for name in predicted if predicted[name].count and target[name].count]

            def resampled(
                picks: np.ndarray,
                names: list[str] = names,
                sides: tuple[Mapping[str, Moments], ...] = (predicted, target),
                style: ClipStyle = style,
            ) -> float:
                moments = [pooled(side[names[pick]] for pick in picks) for side in sides]
                return style.distance(*moments) if min(side.count for side in moments) > 1 else float("nan")

            interval = None
            if len(names) >= MINIMUM:
                with reporter.progress(samples, f"bootstrap {metric}", "sample") as bar:
                    interval = interval_of(resampled, len(names), seed=seed, draws=samples, drawn=bar.update)
            rows[metric] = row_of(value, interval, len(names))
        return rows, missing


def _cached(key: str) -> Moments | None:
    arrays = evaluation_cache.load_arrays("clips", key)
    try:
        return None if arrays is None else Moments.from_arrays(arrays)
    except (ValueError, KeyError):  # damaged
        return None
