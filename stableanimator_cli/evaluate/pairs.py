"""Pairs of videos: predictions and targets matched by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stableanimator_cli.errors import BadInput, command
from stableanimator_cli.files import natural_key, require_file
from stableanimator_cli.media.decode import VIDEO_SUFFIXES
from stableanimator_cli.media.image import SUFFIXES as IMAGES

FACE_PASTE = "face-paste"
"""The system that ``--face-paste`` makes."""
_SHOWN = 5  # names that an error lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One video to score. ``target`` is the ground truth, None if there is none (another person's movement).
    ``reference`` is the animated image, ``poses`` the motion; ``borders`` are first frames of windows or chunks."""

    name: str
    predicted: Path
    target: Path | None = None
    reference: Path | None = None
    poses: Path | None = None
    borders: tuple[int, ...] | None = None


def find_videos(path: Path) -> dict[str, Path]:
    """Videos by name, in natural order: one file, one folder of images, or a folder of such files and folders.

    Hidden files and previews are skipped. Raises ``BadInput`` if there are none, or two of one name.
    """
    if not path.is_dir():
        return {require_file(path, "a video, or a folder of videos or images").stem: path}
    entries = sorted((e for e in path.iterdir() if not e.name.startswith(".")), key=lambda e: natural_key(e.name))
    videos: dict[str, Path] = {}
    for entry in entries:
        is_video = entry.suffix.lower() in VIDEO_SUFFIXES and entry.is_file() and not entry.stem.endswith(".preview")
        if not is_video and not _has_images(entry):
            continue
        name = entry.stem if is_video else entry.name
        if name in videos:
            raise BadInput(
                entry, f"a second video named {name}, beside {videos[name].name}", "one video per name",
                hint="move one of them out of the folder",
            )  # fmt: skip
        videos[name] = entry
    if not videos and _has_images(path):
        return {path.resolve().name: path}
    if not videos:
        raise BadInput(
            path, "a folder without videos",
            f"files ending in {', '.join(VIDEO_SUFFIXES[:4])} ..., or folders of images",
            hint=f"look with: {command('ls', path)}",
        )  # fmt: skip
    return videos


def find_images(path: Path) -> dict[str, Path]:
    """Images by name, of a folder or of one file."""
    if not path.is_dir():
        return {require_file(path, "an image or a folder of images").stem: path}
    files = (e for e in path.iterdir() if e.is_file() and not e.name.startswith(".") and e.suffix.lower() in IMAGES)
    images = {file.stem: file for file in sorted(files, key=lambda e: natural_key(e.name))}
    if not images:
        hint = f"look with: {command('ls', path)}"
        raise BadInput(path, "a folder without images", "one image per video, of its name", hint=hint)
    return images


def require_folder(path: Path, expected: str) -> Path:
    """Return ``path`` if it is a folder. Raises ``BadInput`` otherwise, as ``files.require_file`` does."""
    if not path.is_dir():
        require_file(path, expected)
        raise BadInput(path, "a file", expected, hint="name the folder")
    return path


def match(predicted: Path, target: Path) -> list[Pair]:
    """Pair videos by name; one video on each side is a pair whatever the names.

    Raises ``BadInput`` if a video has no counterpart: a mean over other videos than intended is no score.
    """
    predictions, targets = find_videos(predicted), find_videos(target)
    if len(predictions) == len(targets) == 1:
        (name, path), (other,) = next(iter(predictions.items())), targets.values()
        return [Pair(name=name, predicted=path, target=other)]
    check_names(predictions, predicted, targets, target)
    check_names(targets, target, predictions, predicted)
    return [Pair(name=name, predicted=path, target=targets[name]) for name, path in predictions.items()]


def check_names(names: Collection[str], path: Path, videos: Mapping[str, Path], videos_path: Path) -> None:
    """Raise ``BadInput`` for names (of ``path``) that ``videos`` (of ``videos_path``) lacks."""
    missing = [name for name in names if name not in videos]
    if missing:
        raise BadInput(
            videos_path, f"no video named {listed(missing)}", f"one for each of the {len(names)} in {path}",
            hint="videos are paired by their names without the suffix; move aside what is not to be scored",
        )  # fmt: skip


def find_baselines(folder: Path | None, names: Sequence[str], source: Path) -> dict[str, dict[str, Path]]:
    """Videos by name of each system, a folder in ``folder``. ``names`` are those of ``source``, and every system has
    them all: ``BadInput`` if one does not."""
    if folder is None:
        return {}
    entries = sorted(require_folder(folder, "a folder with one folder of videos per system").iterdir())
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        raise BadInput(
            folder, "no folders", "one folder per system, with its videos under the names of ours",
            hint=f"names: {', '.join(list(names)[:5])}" + (" ..." if len(names) > 5 else ""),
        )  # fmt: skip
    found = {}
    for entry in folders:
        videos = find_videos(entry)
        if len(names) == len(videos) == 1:  # a pair whatever their names
            videos = dict(zip(names, videos.values(), strict=True))
        check_names(names, source, videos, entry)
        found[entry.name] = {name: videos[name] for name in names}
    return found


def match_files(pairs: Sequence[Pair], path: Path, kind: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """One of ``files`` (in ``path``) per pair: one file for all, or one per name. ``kind`` names them in ``BadInput``,
    which is raised for a pair without one."""
    if len(files) == 1 and not path.is_dir():
        return dict.fromkeys((pair.name for pair in pairs), next(iter(files.values())))
    missing = [pair.name for pair in pairs if pair.name not in files]
    if missing:
        raise BadInput(path, f"no {kind} named {listed(missing)}", f"a {kind} for each of the {len(pairs)} videos")
    return {pair.name: files[pair.name] for pair in pairs}


def listed(names: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(
        file.suffix.lower() in IMAGES and not file.name.startswith(".") for file in folder.iterdir()
    )
