"""Inputs of ``sa preprocess`` as a list of videos and images, each with a unique clip name."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stableanimator_cli import clip_folder
from stableanimator_cli.catalogue.home import expanded
from stableanimator_cli.errors import BadInput, command
from stableanimator_cli.files import natural_key, require_file
from stableanimator_cli.media import open_clip, resample, take
from stableanimator_cli.media.decode import VIDEO_SUFFIXES
from stableanimator_cli.media.image import SUFFIXES as PICTURES
from stableanimator_cli.readers import read_text

LISTS = (".txt",)
_NUMBERED = re.compile(r"(.*?)(\d+)$")
_LONGEST_NAME = 150, 215  # characters and bytes of a clip's name; temporary names add some, and 255 bytes is the limit
_LONGEST_PART = 255  # bytes of one name in a path
_TICK = Fraction(1, 1000)  # seconds: a frame that starts this much late is in time (``media.resample``)
RESERVED = frozenset({"failed", "report.json", "report.html", "index.jsonl"})
"""Files that ``sa preprocess`` writes beside the clips: a clip of such a name is renamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One video or image: its path, the name of its clip, and its number in the full list, from 1."""

    path: Path
    name: str
    number: int


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """All videos and images of ``inputs``, in a fixed order.

    Folders are searched recursively without hidden ones and clip folders, which earlier runs wrote; the numbered images
    of one (``frame_0.png``, ``frame_1.png`` ...) are one clip. A ``.txt`` file lists one path per line, relative to its
    own folder; ``#`` starts a comment. A file named by itself may have any suffix. Raises ``BadInput`` for a missing
    file and for a folder without videos.
    """
    found = list(dict.fromkeys(pair for path in inputs for pair in _named(path)))
    names = _names([inside for _, inside in found])
    pairs = enumerate(zip(found, names, strict=True), 1)
    return [Source(path=path, name=name, number=number) for number, ((path, _), name) in pairs]


def shard_of(sources: Sequence[Source], shard: tuple[int, int] | None) -> list[Source]:
    """Every n-th source from the i-th: neighbours, often of similar length, go to different shards."""
    return list(sources) if shard is None else list(sources[shard[0] :: shard[1]])


def count_frames(path: Path, frames: tuple[int | None, int | None] | None, fps: Fraction | None) -> int:
    """Frames of a video after ``--frames`` and ``--fps``, for a plan. With ``fps`` they are counted from the mean rate,
    and a video is decoded only if it does not record its length. Raises ``SaError`` if it cannot be read."""
    clip = take(open_clip(path), *(frames or (None, None)))
    if clip.count is None:
        return sum(1 for _ in (clip if fps is None else resample(clip, fps)).frames())
    if fps is None or clip.fps is None:
        return clip.count
    return max(1, math.ceil((clip.count / clip.fps - _TICK) * fps))


def is_sequence(folder: Path) -> bool:
    """Whether the images of a folder are one clip: two or more whose names differ in their last number only."""
    images = [file for file in _visible(folder) if file.suffix.lower() in PICTURES and file.is_file()]
    stems = [_NUMBERED.fullmatch(file.stem) for file in images]
    prefixes = {match[1] for match in stems if match is not None}
    return len(images) > 1 and None not in stems and len(prefixes) == 1


def _named(path: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs (path, path relative to the input) of one input."""
    if path.is_dir():
        sequence = is_sequence(path)
        if sequence:
            yield path, Path(path.resolve().name)
        found = list(_search(path))
        if not found and not sequence:
            if any(map(clip_folder.is_clip, clip_folder.find_folders(path))):
                hint = "`sa train` reads it and --lint checks it; to detect again, name the videos"
                raise BadInput(path, "clips, which are finished", "videos or images", hint=hint)
            raise BadInput(
                path, "a folder without videos or images", f"files ending in {', '.join(VIDEO_SUFFIXES[:5])} ...",
                hint=f"look with: {command('ls', path)}",
            )  # fmt: skip
        yield from ((file, file.relative_to(path)) for file in found)
        return
    require_file(path, "a video, an image, a folder of them or a list (.txt)")
    if path.suffix.lower() not in LISTS:
        yield path, Path(path.name)
        return
    lines = [line.split("#", 1)[0].strip() for line in read_text(path, "a list with one path per line").splitlines()]
    if not any(lines):
        raise BadInput(path, "a list without paths", "one path per line")
    if any("\0" in line for line in lines):
        raise BadInput(path, "a null character", "one path per line")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if any(len(os.fsencode(part)) > _LONGEST_PART for part in Path(line).parts):
            problem = f"line {number} names a file of more than {_LONGEST_PART} bytes, which no file system holds"
            raise BadInput.because(path, problem, hint="write one path per line")
        file = path.parent / expanded(line)
        # Listed files are not checked here: one missing file in a thousand belongs in the report.
        yield file, Path(file.name if Path(line).is_absolute() or ".." in Path(line).parts else line)


def _search(top: Path) -> Iterator[Path]:
    """Videos, images and folders of numbered images below ``top``; of such a folder, ``top`` too, all but its images: a
    video may have its poster beside it. A folder is searched once, however many links lead to it. Clip folders are not
    searched: they hold a link to a video and its contact sheet.

    Not recursive: folders may be nested deeper than Python's stack.
    """

    def content(folder: Path, *, images: bool) -> Iterator[Path]:
        return (entry for entry in _visible(folder) if images or entry.suffix.lower() not in PICTURES or entry.is_dir())

    seen = {top.resolve()}
    stack = [] if clip_folder.is_clip(top) else [content(top, images=not is_sequence(top))]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif not entry.is_dir():
            if entry.suffix.lower() in VIDEO_SUFFIXES + PICTURES:
                yield entry
        elif (real := entry.resolve()) not in seen:
            seen.add(real)
            if clip_folder.is_clip(entry):
                continue
            sequence = is_sequence(entry)
            if sequence:
                yield entry
            stack.append(content(entry, images=not sequence))


def _visible(folder: Path) -> list[Path]:
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def _names(inside: Sequence[Path]) -> list[str]:
    """A folder name per path: without its suffix and with ``__`` for slashes; with the suffix if two would share a
    name, and with a digest of the full path if that is not enough."""
    plain = ["__".join(path.with_suffix("").parts) if path.suffix else "__".join(path.parts) for path in inside]
    full = ["__".join(path.parts) for path in inside]
    plain_counts, full_counts = Counter(map(str.casefold, plain)), Counter(map(str.casefold, full))
    names = []
    for path, short, long in zip(inside, plain, full, strict=True):
        if plain_counts[short.casefold()] == 1:
            names.append(_safe(short))
        elif full_counts[long.casefold()] == 1:
            names.append(_safe(long))
        else:
            names.append(_safe(long) + "." + hashlib.sha256(os.fsencode(path)).hexdigest()[:8])
    taken = Counter(map(str.casefold, names))
    return [name if taken[name.casefold()] == 1 else f"{name}.{number:05d}" for number, name in enumerate(names, 1)]


def _safe(name: str) -> str:
    """A name that every file system accepts and that is not hidden."""
    cleaned = re.sub(r'[\x00-\x1f\x7f<>:"|?*\\\ud800-\udfff]', "_", name).strip(". ")
    characters, size = _LONGEST_NAME
    short = cleaned[:characters].encode()[:size].decode(errors="ignore") or "clip"
    return f"{short}_" if short.casefold() in RESERVED else short
