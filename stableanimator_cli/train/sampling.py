"""Which clip, which of its frames and which reference a step sees: a pure function of seed and number.

Nothing here has a state, so a run that goes on at step n sees what an unbroken one sees there, however many processes
share the work. Every draw has a generator of its own, keyed by the seed, what it is for, and the number of the sample.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

ReferenceSource = Literal["unchosen", "outside", "any", "first"]


def keyed_rng(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator of one draw; ``seed`` and ``numbers`` are 0 or more."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers]))


class BatchSampler:
    """Batches of ``batch`` places out of buckets of ``lengths`` items.

    A round has as many batches of each bucket as its items need, in a shuffled order: the reference implementation's
    way of mixing sizes. Within a bucket items follow one another in epochs, each a permutation, with none left out
    where an epoch ends inside a batch.
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
        """Steps after which every item has been seen once or more."""
        return sum(self._counts)

    def at(self, step: int) -> tuple[int, list[int]]:
        """(bucket, the item at each place of the batch) of one step."""
        number, place = divmod(step, self.round)
        buckets, earlier = _round(self._seed, self._counts, number)
        bucket = int(buckets[place])
        length = self._lengths[bucket]
        first = (number * self._counts[bucket] + int(earlier[place])) * self._batch
        items = []
        for position in range(first, first + self._batch):
            epoch, within = divmod(position, length)
            items.append(int(_epoch(self._seed, bucket, length, epoch)[within]))
        return bucket, items


@functools.lru_cache(maxsize=4)
def _round(seed: int, counts: tuple[int, ...], number: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each step of a round, and how many steps before it in the round have the same."""
    buckets = keyed_rng(seed, "round", number).permutation(np.repeat(np.arange(len(counts)), counts))
    earlier = np.zeros(len(buckets), np.int64)
    for bucket, count in enumerate(counts):
        earlier[buckets == bucket] = np.arange(count)
    return buckets, earlier


@functools.lru_cache(maxsize=32)
def _epoch(seed: int, bucket: int, length: int, epoch: int) -> np.ndarray:
    return keyed_rng(seed, "epoch", bucket, epoch).permutation(length)


def choose_frames(
    rng: np.random.Generator, length: int, frames: int, *, stride: int, source: ReferenceSource
) -> tuple[np.ndarray, int]:
    """(int64[frames] of a clip of ``length`` frames, the reference frame), as the reference implementation draws them.

    ``frames`` lie ``stride`` apart from a random start; in a clip too short for that they are spread over all of it,
    some twice where it has fewer than ``frames``. The reference is none of them (``unchosen``), or not between the
    first and the last (``outside``), where the clip has such a frame; else, and with ``any``, it is any frame. With
    ``first`` it is frame 0, and ``frames`` come from what follows it: for clips that open with a picture of the person
    as users give one.
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
    for candidates in {"unchosen": (unchosen,), "outside": (outside, unchosen), "any": ()}[source]:
        if len(candidates):
            return chosen, int(rng.choice(candidates))
    return chosen, int(rng.choice(every))
