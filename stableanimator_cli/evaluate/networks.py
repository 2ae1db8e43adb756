"""LPIPS and Frechet distances of an evaluation: networks opened where they are here, missing where they are not.

Moments of a ground truth's clips are remembered by its digest: rivals and repeated runs do not compute them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.metric_networks import Features, features
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.scores import Row, row_of
from stableanimator_cli.files import atomic_write
from stableanimator_cli.metrics.accumulators import RunningMean
from stableanimator_cli.metrics.bootstrap import interval_of
from stableanimator_cli.metrics.frechet import Moments, frechet_distance
from stableanimator_cli.metrics.perceptual import PREPARE, Perceptual
from stableanimator_cli.metrics.result import METRICS, Missing
from stableanimator_cli.metrics.video import STYLES, ClipFeatures, frechet_value, pooled
from stableanimator_cli.motion.motion_file import read_arrays

_FORMAT = 2  # of the remembered clips


@dataclass(slots=True)
class _Distance:
    """One Frechet distance: both sides' moments by video."""

    network: Features
    made: ClipFeatures
    truth: ClipFeatures


@dataclass(slots=True)
class MetricNetworks:
    """Networks of one system's evaluation, fed a video at a time: ``begin``, ``add`` each pair of frames, ``end``."""

    missing: list[Missing]
    rules: str
    _frames: dict[str, tuple[Features, Perceptual]] = field(default_factory=dict)
    _clips: dict[str, _Distance] = field(default_factory=dict)
    _name: str = ""
    _truth: str | None = None
    _known: set[str] = field(default_factory=set)

    @classmethod
    def open(
        cls, names: Sequence[str], device: str, *, rules: str, opened: dict[str, Features | Missing] | None = None
    ) -> MetricNetworks:
        """``names`` of metrics. Networks that are not on this machine become ``Missing``; a damaged one is raised.

        Metrics that look through one network share it, and so do systems whose ``opened`` is the same: it takes in
        what is opened here, by the network's name.
        """
        made, plan = cls(missing=[], rules=rules), DevicePlan.of(DeviceConfig(device=device))
        opened = {} if opened is None else opened
        for name in names:
            behind = str(METRICS[name].network)
            if behind not in opened:
                opened[behind] = features(behind, plan)
            network = opened[behind]
            if isinstance(network, Missing):
                made.missing.append(replace(network, metric=name))
                continue
            if name in PREPARE:
                made._frames[name] = (network, Perceptual(name, network))
            else:
                style = STYLES[name]
                made._clips[name] = _Distance(network, ClipFeatures(style, network), ClipFeatures(style, network))
        return made

    def begin(self, name: str, truth: str | None) -> None:
        """The next video; ``truth`` is the digest of its ground truth, None where what is seen is not to be kept."""
        self._name = name
        self._truth, self._known = truth, set()
        for metric, distance in self._clips.items():
            known = self._remembered(metric)
            if known is not None:
                distance.truth.videos[name] = known
                self._known.add(metric)

    def add(self, made: np.ndarray, truth: np.ndarray, number: int) -> None:
        """The next pair of frames uint8[h,w,3] of one size; no clip is taken across a gap in their numbers."""
        for _, perceptual in self._frames.values():
            perceptual.add(self._name, number, made, truth)
        for metric, distance in self._clips.items():
            distance.made.add(self._name, number, made)
            if metric not in self._known:
                distance.truth.add(self._name, number, truth)

    def forget(self, name: str) -> None:
        """Drop a video that could not be read to its end."""
        for distance in self._clips.values():
            distance.made.forget(name)
            distance.truth.forget(name)
        for _, perceptual in self._frames.values():
            perceptual.forget(name)

    def end(self) -> dict[str, RunningMean]:
        """The video's means."""
        for metric, distance in self._clips.items():
            distance.made.finish()
            distance.truth.finish()
            if metric not in self._known:
                self._remember(metric, distance.truth.videos[self._name])
        for _, perceptual in self._frames.values():
            perceptual.finish()
        return {metric: perceptual.scores.videos[self._name] for metric, (_, perceptual) in self._frames.items()}

    def about(self) -> dict[str, Mapping[str, Any]]:
        """What is behind each metric: files and digests."""
        return {metric: network.about for metric, (network, _) in self._frames.items()}

    def of_sets(self, *, seed: int, draws: int) -> tuple[dict[str, Row], list[Missing]]:
        """The Frechet distances over all videos seen, with intervals over videos (both sides drawn together)."""
        rows, missing = {}, []
        for metric, distance in self._clips.items():
            made, truth = distance.made.videos, distance.truth.videos
            try:
                value = frechet_value(distance.made.style, made, truth, distance.network.about)
            except BadInput as error:
                missing.append(Missing(metric=metric, reason=error.message, command=""))
                continue
            videos = sum(1 for name in made if made[name].count and truth[name].count)
            rows[metric] = row_of(value, _interval(made, truth, seed, draws), videos)
        return rows, missing

    def _key(self, metric: str) -> str:
        distance = self._clips[metric]
        told = [_FORMAT, self._truth, self.rules, distance.made.style.about(), distance.network.about]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def _remembered(self, metric: str) -> Moments | None:
        place = catalogue.cache_dir() / "clips" / f"{self._key(metric)}.npz"
        if self._truth is None or not place.is_file():
            return None
        try:
            return Moments.from_arrays(read_arrays(place, "moments of clips (.npz)"))
        except (BadInput, ValueError, KeyError):  # damaged: computed anew
            return None

    def _remember(self, metric: str, moments: Moments) -> None:
        if self._truth is None:
            return
        place = catalogue.cache_dir() / "clips" / f"{self._key(metric)}.npz"
        # a cache that cannot be written costs time at the next run, nothing else
        with contextlib.suppress(BadInput, OSError), atomic_write(place) as part, part.open("wb") as file:
            arrays: dict[str, Any] = dict(moments.to_arrays())
            np.savez_compressed(file, **arrays)


def _interval(
    made: Mapping[str, Moments], truth: Mapping[str, Moments], seed: int, draws: int
) -> tuple[float, float] | None:
    names = [name for name in made if made[name].count and truth[name].count]

    def drawn(picks: np.ndarray) -> float:
        sides = [pooled(side[names[pick]] for pick in picks) for side in (made, truth)]
        return frechet_distance(*sides) if min(side.count for side in sides) > 1 else float("nan")

    return interval_of(drawn, len(names), seed=seed, draws=draws)
