"""Clips, frames and reference of a training step: a pure function of seed and step.

There is no state, so a run that is resumed at step n continues as if uninterrupted, with any number of processes.
Every draw has its own generator, keyed by the seed, a purpose and the number of the sample.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

ReferenceSource = Literal["unchosen", "outside", "any", "first"]


def keyed_rng(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator of one draw. ``seed`` and ``numbers`` are non-negative."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers]))


class BatchSampler:
    """Batches of ``batch`` items out of buckets of ``lengths`` items.

    A round has as many batches of each bucket as its items need, in shuffled order, like the reference implementation
    mixes sizes. Within a bucket each epoch is a permutation; a batch may contain the end of one epoch and the start of
    the next.
    """

    def __init__(self, lengths: Sequence[int], *, seed: int, batch: int) -> None:
        if not lengths or min(lengths) < 1 or batch < 1:
            raise ValueError(f"buckets of {list(lengths)} items in batches of {batch}")
        self._lengths = tuple(lengths)
        self._seed = seed
        self._batch = batch
        self._counts = tuple(-(-length // batch) for length in lengths)

    @property
    def round(self) -> int:
        """Number of steps in which every item is sampled at least once."""
        return sum(self._counts)

    def at(self, step: int) -> tuple[int, list[int]]:
        """(bucket, items of the batch) of one step."""
        number, position = divmod(step, self.round)
        buckets, earlier = _round(self._seed, self._counts, number)
        bucket = int(buckets[position])
        length = self._lengths[bucket]
        first = (number * self._counts[bucket] + int(earlier[position])) * self._batch
        items = []
        for index in range(first, first + self._batch):
            epoch, within = divmod(index, length)
            items.append(int(_epoch(self._seed, bucket, length, epoch)[within]))
        return bucket, items


@functools.lru_cache(maxsize=4)
def _round(seed: int, counts: tuple[int, ...], number: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each step of a round, and the number of earlier steps of the round with the same bucket."""
    buckets = keyed_rng(seed, "round", number).permutation(np.repeat(np.arange(len(counts)), counts))
    earlier = np.zeros(len(buckets), np.int64)
    for bucket, count in enumerate(counts):
        earlier[buckets == bucket] = np.arange(count)
    return buckets, earlier


@functools.lru_cache(maxsize=32)
def _epoch(seed: int, bucket: int, length: int, epoch: int) -> np.ndarray:
    return keyed_rng(seed, "epoch", bucket, epoch).permutation(length)


def choose_frames(
    rng: np.random.Generator, length: int, frames: int, *, stride: int, source: ReferenceSource,
    suitable: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Draw (int64[frames] of a clip of ``length`` frames, the reference frame), like the reference implementation.

    Frames are ``stride`` apart from a random start. In a clip too short for that they are spread over all of it, with
    repetitions if it has fewer than ``frames``. ``source`` of the reference:

    * ``unchosen``: none of the frames; ``outside``: not between the first and the last. Any frame if there is none.
    * ``any``: any frame. ``first``: frame 0, and ``frames`` follow it, for clips that start with a reference image.

    ``suitable`` returns bool[length] from the chosen frames: references that are preferred, if there are any.
    """
    if source == "first":
        opening = 1 if length > 1 else 0
        chosen, _ = choose_frames(rng, length - opening, frames, stride=stride, source="any")
        return chosen + opening, 0
    span = min(length, (frames - 1) * stride + 1)
    start = int(rng.integers(0, length - span + 1))
    chosen = np.linspace(start, start + span - 1, frames, dtype=np.int64)
    every = np.arange(length)
    unchosen = np.setdiff1d(every, chosen)
    outside = every[(every < start) | (every >= start + span)]
    choices = {"unchosen": (unchosen,), "outside": (outside, unchosen), "any": (every,)}[source]
    if suitable is not None:
        preferred = suitable(chosen)
        choices = (*(candidates[preferred[candidates]] for candidates in choices), *choices)
    for candidates in choices:
        if len(candidates):
            return chosen, int(rng.choice(candidates))
    return chosen, int(rng.choice(every))
