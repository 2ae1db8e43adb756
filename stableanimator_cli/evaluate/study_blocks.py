"""Balanced blocks of a study: what each person compares, of more comparisons than one person makes.

The paper's study has 30 videos and 7 competitors, 210 comparisons. A block is a part of a long sequence of all
comparisons, so that after every round of blocks each comparison was shown equally often. Within a block competitors
alternate, and videos are as far apart as their number allows (Cochran and Cox, "Experimental Designs", chapter 11:
incomplete blocks).
"""

from __future__ import annotations

import math

import numpy as np

_ENOUGH = 64  # blocks: people of one study who get different ones
_MOST = 512


def balanced_blocks(videos: int, baselines: int, size: int, seed: int) -> list[list[int]]:
    """Blocks of ``size`` comparisons; comparison ``video * baselines + baseline`` is of one video and one baseline.

    All blocks together hold each comparison equally often, unless that takes more than 512 blocks. In a block the
    counts of two baselines differ by one at most. ``size`` of all comparisons or more is one block of all.
    """
    total = videos * baselines
    if size >= total:
        return [list(range(total))]
    complete = total // math.gcd(total, size)  # blocks after which every comparison was shown equally often
    count = min(_MOST, complete * math.ceil(_ENOUGH / complete))
    repeats = math.ceil(min(complete, count) * size / total)
    rng = np.random.default_rng(seed)
    sequence: list[int] = []
    while len(sequence) < count * size:  # rounds of one order: no block that crosses two holds a comparison twice
        sequence += _round(videos, baselines, rng) * repeats
    return [sequence[start : start + size] for start in range(0, count * size, size)]


def _round(videos: int, baselines: int, rng: np.random.Generator) -> list[int]:
    """Each comparison once. Cycles of all baselines, each with another video; a video comes back after as many cycles
    as possible."""
    order = rng.permutation(videos)
    shifts = rng.permutation([baseline * videos // baselines for baseline in range(baselines)])
    cycle = rng.permutation(baselines)
    return [
        int(order[(step + shifts[baseline]) % videos]) * baselines + int(baseline)
        for step in range(videos)
        for baseline in cycle
    ]
