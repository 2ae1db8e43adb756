"""Means that are fed one value at a time, and pairs of frame streams: memory does not grow with the length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.metrics.result import Value

_END = object()


@dataclass(slots=True)
class RunningMean:
    """Mean of what was added. NaN is absence: it is counted in ``absent`` and changes no mean."""

    total: float = 0.0
    count: int = 0
    absent: int = 0

    def add(self, value: float) -> None:
        if math.isnan(value):
            self.absent += 1
        else:
            self.total, self.count = self.total + value, self.count + 1

    def merge(self, other: RunningMean) -> None:
        """Take in what another has seen."""
        self.total, self.count, self.absent = (
            self.total + other.total,
            self.count + other.count,
            self.absent + other.absent,
        )

    @property
    def mean(self) -> float:
        """NaN where nothing was added."""
        return self.total / self.count if self.count else math.nan


@dataclass(slots=True)
class ByVideo:
    """A metric of frames, by video. Parts made by several processes are merged; a video may be in both."""

    videos: dict[str, RunningMean] = field(default_factory=dict)

    def add(self, video: str, *values: float) -> None:
        running = self.videos.setdefault(video, RunningMean())
        for value in values:
            running.add(value)

    def merge(self, other: ByVideo) -> None:
        for video, running in other.videos.items():
            self.videos.setdefault(video, RunningMean()).merge(running)

    @property
    def pooled(self) -> RunningMean:
        """Over all frames together."""
        total = RunningMean()
        for running in self.videos.values():
            total.merge(running)
        return total

    def value(self, metric: str, about: Mapping[str, Any] | None = None) -> Value:
        total = self.pooled
        return Value(
            metric=metric,
            pooled=total.mean,
            per_video={video: running.mean for video, running in self.videos.items()},
            count=total.count,
            about=dict(about or {}) | ({"absent": total.absent} if total.absent else {}),
        )


def paired(
    predicted: Iterable[np.ndarray], reference: Iterable[np.ndarray], *, name: str = "video", truncate: bool = False
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index, predicted frame, reference frame), frame by frame, of two streams uint8[h,w,3].

    Raises ``BadInput`` with ``name`` if the frames of a pair differ in size, or if one stream is longer. With
    ``truncate`` the rest of the longer one is not read.
    """
    frames, target_frames = iter(predicted), iter(reference)
    index = 0
    while True:
        a, b = next(frames, _END), next(target_frames, _END)
        if a is _END or b is _END:
            if (a is _END) != (b is _END) and not truncate:
                longer, shorter = ("reference", "prediction") if a is _END else ("prediction", "reference")
                raise BadInput(
                    name,
                    f"a {longer} longer than the {shorter}, which has {index} frames",
                    "as many frames on both sides",
                    hint="--truncate compares the frames that both have",
                )
            return
        assert isinstance(a, np.ndarray)
        assert isinstance(b, np.ndarray)
        if a.shape != b.shape:
            raise BadInput(
                name,
                f"{_size(a)} against {_size(b)}",
                "frames of one size on both sides",
                frame=index,
                hint="a protocol that resizes both sides makes them comparable",
            )
        yield index, a, b
        index += 1


def _size(frame: np.ndarray) -> str:
    return "x".join(map(str, frame.shape[1::-1])) if frame.ndim == 3 and frame.shape[2] == 3 else f"shape {frame.shape}"
