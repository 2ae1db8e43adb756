"""Mixed resolutions: every clip is trained at the size whose aspect ratio is nearest to its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stableanimator_cli.config.parse import dump_size
from stableanimator_cli.train.clips import TrainingClip

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The clips trained at one ``size`` (width, height)."""

    size: Size
    clips: tuple[TrainingClip, ...]


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The first of ``sizes`` whose aspect ratio is nearest to that of ``size``."""
    return min(sizes, key=lambda other: abs(math.log((size[0] * other[1]) / (size[1] * other[0]))))


def into_buckets(clips: Sequence[TrainingClip], sizes: Sequence[Size]) -> tuple[Bucket, ...]:
    """One bucket per size that has clips, in the order of ``sizes``."""
    groups: dict[Size, list[TrainingClip]] = {size: [] for size in sizes}
    for clip in clips:
        groups[nearest_size(clip.size, sizes)].append(clip)
    return tuple(Bucket(size=size, clips=tuple(group)) for size, group in groups.items() if group)


def used_sizes(clips: Sequence[TrainingClip], sizes: Sequence[Size]) -> tuple[Size, ...]:
    """Those of ``sizes`` that have clips, in their order."""
    return tuple(bucket.size for bucket in into_buckets(clips, sizes))


def unused_sizes(clips: Sequence[TrainingClip], stages: Sequence[Sequence[Size]]) -> Iterator[str]:
    """One warning per list of sizes, of the ``stages``, that has sizes without clips."""
    for sizes in dict.fromkeys(map(tuple, stages)):
        used = used_sizes(clips, sizes)
        unused = [dump_size(size) for size in sizes if size not in used]
        if unused:
            given = ",".join(map(dump_size, sizes))
            yield (
                f"sizes {given}: no clip is trained at {' or '.join(unused)}, as another size is as near to its aspect "
                "ratio or nearer"
            )
