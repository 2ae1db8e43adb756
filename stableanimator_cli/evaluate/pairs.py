"""Which video is compared with which: names to paths, prediction to ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import natural_key, require_file
from stableanimator_cli.media.image import SUFFIXES as PICTURES

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg")
_SHOWN = 5  # names that an error lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One video to score. ``truth`` None: there is no ground truth (another person's movement). ``reference`` is the
    picture that was animated, ``poses`` what drove it, ``borders`` where windows or chunks meet; None is unknown."""

    name: str
    predicted: Path
    truth: Path | None = None
    reference: Path | None = None
    poses: Path | None = None
    borders: tuple[int, ...] | None = None


def find_videos(path: Path) -> dict[str, Path]:
    """Videos by name, in natural order: one file, one folder of pictures, or a folder of such files and folders.

    Previews beside videos and hidden files are passed over. Raises ``BadInput`` for what is not there, for a folder
    without any, and for two of one name.
    """
    if not path.is_dir():
        return {require_file(path, "a video, or a folder of videos or pictures").stem: path}
    entries = sorted((e for e in path.iterdir() if not e.name.startswith(".")), key=lambda e: natural_key(e.name))
    found: dict[str, Path] = {}
    for entry in entries:
        video = entry.suffix.lower() in VIDEOS and entry.is_file() and not entry.stem.endswith(".preview")
        if not video and not _holds_pictures(entry):
            continue
        name = entry.stem if video else entry.name
        if name in found:
            raise BadInput(
                entry, f"a second video named {name}, beside {found[name].name}", "one video a name",
                hint="move one of them out of the folder",
            )  # fmt: skip
        found[name] = entry
    if not found and _holds_pictures(path):
        return {path.resolve().name: path}
    if not found:
        raise BadInput(
            path, "a folder without videos", f"files ending in {', '.join(VIDEOS[:4])} ..., or folders of pictures",
            hint=f"look with: ls {path}",
        )  # fmt: skip
    return found


def find_pictures(path: Path) -> dict[str, Path]:
    """Pictures by name, of a folder or of one file (under its own name)."""
    if not path.is_dir():
        return {require_file(path, "a picture or a folder of pictures").stem: path}
    files = (e for e in path.iterdir() if e.is_file() and not e.name.startswith(".") and e.suffix.lower() in PICTURES)
    found = {file.stem: file for file in sorted(files, key=lambda e: natural_key(e.name))}
    if not found:
        raise BadInput(path, "a folder without pictures", "a picture a video, of its name", hint=f"ls {path}")
    return found


def match(predicted: Path, truth: Path) -> list[Pair]:
    """Pairs by name; one video on each side is a pair whatever the names.

    Raises ``BadInput`` where a prediction has no ground truth or the other way round: a mean over other videos than
    was meant is no score.
    """
    made, true = find_videos(predicted), find_videos(truth)
    if len(made) == len(true) == 1:
        (name, path), (other,) = next(iter(made.items())), true.values()
        return [Pair(name=name, predicted=path, truth=other)]
    alone(made, predicted, true, truth)
    alone(true, truth, made, predicted)
    return [Pair(name=name, predicted=path, truth=true[name]) for name, path in made.items()]


def alone(names: Mapping[str, Path], where: Path, others: Mapping[str, Path], there: Path) -> None:
    """Raise ``BadInput`` for names of ``where`` that ``there`` lacks."""
    lacking = [name for name in names if name not in others]
    if lacking:
        raise BadInput(
            there,
            f"no video named {listed(lacking)}",
            f"one for each of the {len(names)} in {where}",
            hint="videos are paired by their names without the suffix; move aside what is not to be scored",
        )


def by_name(pairs: Sequence[Pair], path: Path, kind: str, found: Mapping[str, Path]) -> dict[str, Path]:
    """What of ``found`` (in ``path``) belongs to each pair: one for all, or one a name. ``BadInput`` for a name without
    one; ``kind`` says what it is."""
    if len(found) == 1 and not path.is_dir():
        return dict.fromkeys((pair.name for pair in pairs), next(iter(found.values())))
    lacking = [pair.name for pair in pairs if pair.name not in found]
    if lacking:
        raise BadInput(path, f"no {kind} named {listed(lacking)}", f"a {kind} for each of the {len(pairs)} videos")
    return {pair.name: found[pair.name] for pair in pairs}


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(
        file.suffix.lower() in PICTURES and not file.name.startswith(".") for file in folder.iterdir()
    )
