"""Matching of predicted frames with those of the ground truth: by number, never by order alone."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.pairs import listed
from stableanimator_cli.files import natural_key
from stableanimator_cli.media.image import SUFFIXES
from stableanimator_cli.records import Clip

Key = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedFrames:
    """Frames to compare: ``predicted`` and ``target`` are positions in each source, pair by pair in ascending order.

    ``numbers`` rise by one per pair and by more across a gap, which no clip and no change may span. The ``dropped``
    frames have no counterpart.
    """

    predicted: tuple[int, ...]
    target: tuple[int, ...]
    numbers: tuple[int, ...]
    dropped_predicted: tuple[str, ...] = ()
    dropped_target: tuple[str, ...] = ()

    def describe_dropped(self) -> str:
        """``2 of the prediction (3.png, 4.png), 1 of the ground truth (7.png)``, empty if every frame has its pair."""
        sides = (("prediction", self.dropped_predicted), ("ground truth", self.dropped_target))
        return ", ".join(f"{len(names)} of the {side} ({listed(names)})" for side, names in sides if names)


def match_frames(predicted: Clip, target: Clip, *, truncate: bool = False) -> MatchedFrames | None:
    """Match the frames of two sources if one is a folder of images; None for two videos, which are matched in order.

    Images are matched by the number in their names, or by the full name if a folder has no numbers. Frames of a video
    are numbered from 0 or, beside a folder without an image 0, from the number of its first image. Raises ``BadInput``
    with the frames without a counterpart unless ``truncate``, and if no frame has one.
    """
    names = [image_names(clip.path) if clip.path.is_dir() else None for clip in (predicted, target)]
    if names[0] is None and names[1] is None:
        return None
    keys = _keys(predicted, target, *names)
    labels = [
        [f"frame {index}" for index in range(len(side))] if own is None else own
        for own, side in zip(names, keys, strict=True)
    ]
    positions = [{key: index for index, key in enumerate(side)} for side in keys]
    shared = [key for key in keys[0] if key in positions[1]]
    lost = [
        tuple(label for label, key in zip(labels[side], keys[side], strict=True) if key not in positions[1 - side])
        for side in (0, 1)
    ]
    matched = MatchedFrames(
        predicted=tuple(positions[0][key] for key in shared),
        target=tuple(positions[1][key] for key in shared),
        numbers=_consecutive(shared),
        dropped_predicted=lost[0],
        dropped_target=lost[1],
    )
    if any(a > b for a, b in itertools.pairwise(matched.target)):
        raise BadInput.because(
            target.path, f"its images have another order than those of {predicted.path}",
            hint="name the frames of both by their numbers",
        )  # fmt: skip
    if not shared or (any(lost) and not truncate):
        raise BadInput.because(
            predicted.path,
            f"frames have no counterpart: {matched.describe_dropped()} at {target.path}",
            hint="frames are paired by number; name both folders alike"
            + (", or leave these frames out with --truncate" if shared else ""),
        )
    return matched


def image_names(folder: Path) -> list[str]:
    """File names of a folder's images, in the order in which they are read as a clip."""
    names = [e.name for e in folder.iterdir() if e.suffix.lower() in SUFFIXES and not e.name.startswith(".")]
    return sorted(names, key=natural_key)


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The frame number in each file name: the last group of digits that differs between names. None if there is no such
    group, or the numbers do not rise in reading order."""
    groups = [re.findall(r"[0-9]+", Path(name).stem) for name in names]
    if not groups or len({len(own) for own in groups}) != 1 or not groups[0]:
        return None
    columns = list(zip(*groups, strict=True))
    varying = [column for column in columns if len(set(column)) > 1]
    column = varying[-1] if varying else columns[-1]
    if any(len(digits) > 18 for digits in column):
        return None
    numbers = [int(digits) for digits in column]
    return numbers if all(a < b for a, b in itertools.pairwise(numbers)) else None


def frames_at(clip: Clip, positions: Sequence[int] | None) -> Iterator[tuple[Any, np.ndarray]]:
    """Frames of a clip at ascending positions, with their times; all of them for None."""
    if positions is None:
        yield from clip.frames()
        return
    requested = set(positions)
    for index, item in enumerate(clip.frames()):
        if index in requested:
            yield item
        if index >= positions[-1]:
            return


def _keys(
    predicted: Clip, target: Clip, names: list[str] | None, target_names: list[str] | None
) -> tuple[Sequence[Key], Sequence[Key]]:
    if names is not None and target_names is not None:
        numbers = numbers_of(names), numbers_of(target_names)
        if numbers[0] is not None and numbers[1] is not None:
            return numbers[0], numbers[1]
        return _stems(predicted.path, names), _stems(target.path, target_names)
    if names is not None:
        own = numbers_of(names) or list(range(len(names)))
        return own, _beside(own, target)
    assert target_names is not None
    own = numbers_of(target_names) or list(range(len(target_names)))
    return _beside(own, predicted), own


def _beside(numbers: Sequence[int], video: Clip) -> range:
    """Numbers of a video's frames beside a folder of numbered images."""
    count = video.count if video.count is not None else sum(1 for _ in video.frames())
    complete = len(numbers) == count and numbers[-1] - numbers[0] + 1 == count
    first = numbers[0] if complete else min(numbers[0], 1)
    return range(first, first + count)


def _stems(folder: Path, names: Sequence[str]) -> list[Key]:
    counts = Counter(Path(name).stem for name in names)
    stem, count = counts.most_common(1)[0]
    if count > 1:
        raise BadInput.because(folder, f"{count} images are named {stem}", hint="leave one image per frame")
    return [Path(name).stem for name in names]


def _consecutive(keys: Sequence[Key]) -> tuple[int, ...]:
    if not all(isinstance(key, int) for key in keys):
        return tuple(range(len(keys)))
    steps = [b - a for a, b in itertools.pairwise(keys)]  # type: ignore[operator]
    usual = Counter(steps).most_common(1)[0][0] if steps else 1
    return tuple(itertools.accumulate((1 if step == usual else 2 for step in steps), initial=0))


def at_positions(borders: tuple[int, ...], matched: MatchedFrames | None) -> tuple[int, ...]:
    """Borders, numbered as the predicted frames, in the numbering of the frames that are compared."""
    if matched is None:
        return borders
    index_of = {frame: index for index, frame in enumerate(matched.predicted)}
    return tuple(index_of[border] for border in borders if border in index_of and border - 1 in index_of)


def past_the_end(predicted: int, target: int) -> str:
    """Frames of the longer video that the shorter one does not have."""
    if predicted == target:
        return ""
    side, shorter, longer = (
        ("prediction", target, predicted) if predicted > target else ("ground truth", predicted, target)
    )
    return f"{longer - shorter} of the {side} (frames {shorter} to {longer - 1})"
