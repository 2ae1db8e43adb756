"""``sa preprocess --lint``: whether a dataset can be trained on, clip by clip, before a GPU is rented for it.

Clip folders and the reference implementation's layout are both checked. Errors would break training, or train it on
wrong pairs; warnings would make it worse.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import clip_folder
from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.errors import BadInput, SaError, command
from stableanimator_cli.files import natural_key, require_file, sha256_of
from stableanimator_cli.media.image import image_size_of
from stableanimator_cli.preprocess.quality import SHORTEST, ClipFinding, findings, measure_quality
from stableanimator_cli.preprocess.report import INDEX, listed_clips
from stableanimator_cli.progress import Reporter

_IMAGES = (".png", ".jpg", ".jpeg")
_SHOWN = 200  # lines of the summary


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """``clips`` checked, and their findings as pairs (folder, finding)."""

    dataset: Path
    clips: int
    found: tuple[tuple[Path, ClipFinding], ...]

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for _, finding in self.found)

    @property
    def warnings(self) -> int:
        return len(self.found) - self.errors

    @property
    def exit_code(self) -> int:
        return 8 if self.errors else 0

    @property
    def message(self) -> str:
        return f"{self.dataset}: {self.clips} clips, {self.errors} errors, {self.warnings} warnings"

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "dataset": str(self.dataset),
            "clips": self.clips,
            "errors": self.errors,
            "warnings": self.warnings,
            "findings": [{"clip": str(folder), **finding.to_json()} for folder, finding in self.found],
        }
        if self.errors:
            data |= {"error": "check-failed", "message": self.message, "exit_code": self.exit_code}
        return data

    def summary(self) -> str:
        lines = [
            f"{finding.severity:8}{folder}: {finding.text} [{finding.code}]"
            for folder, finding in sorted(self.found, key=lambda pair: pair[1].severity)[:_SHOWN]
        ]
        if len(self.found) > _SHOWN:
            lines.append(f"... and {len(self.found) - _SHOWN} more (--json has all)")
        return "\n".join([*lines, self.message])


def run(config: PreprocessConfig, reporter: Reporter) -> LintReport:
    """Check every clip below the only input. Raises ``BadInput`` if there is no clip."""
    root, *others = config.inputs
    expected = "one folder that `sa preprocess` wrote"
    if others:
        raise BadInput(others[0], "a second dataset", expected, hint="check one dataset per run")
    if not root.is_dir():
        require_file(root, expected)
        raise BadInput(root, "a file, no dataset", expected, hint="name the folder of the dataset")
    clips = clip_folder.find_folders(root)
    plain = [folder for folder in clips if not (folder / "images").is_dir()]
    upstream = sorted({*find_upstream(root), *clips} - {*plain})
    if not plain and not upstream:
        raise BadInput(root, "no clip folder", "folders with clip.json, or with images, poses and faces",
                       hint="make one with: " + command("sa", "preprocess", "VIDEOS", "-o", root))  # fmt: skip
    listed = listed_clips(root)
    found: list[tuple[Path, ClipFinding]] = []
    by_digest: dict[str, list[Path]] = defaultdict(list)
    with reporter.progress(len(plain) + len(upstream), "lint", "clip") as bar:
        for index, folder in enumerate((*plain, *upstream)):
            checks = _clip_findings(folder, by_digest) if index < len(plain) else upstream_findings(folder)
            if listed is not None and folder not in listed:
                checks = iter([_warning("unlisted", f"{INDEX} does not list it: `sa train` leaves it out")])
            found += [(folder, finding) for finding in checks]
            bar.update()
    for first, *others in by_digest.values():
        found += [(folder, _warning("duplicate", f"the same video as {first}")) for folder in others]
    return LintReport(dataset=root, clips=len(plain) + len(upstream), found=tuple(found))


def _error(code: str, text: str) -> ClipFinding:
    return ClipFinding(code=code, severity="error", text=text)


def _warning(code: str, text: str) -> ClipFinding:
    return ClipFinding(code=code, severity="warning", text=text)


def _clip_findings(folder: Path, by_digest: dict[str, list[Path]]) -> Iterator[ClipFinding]:
    """Findings of a clip folder as it is now. Its digest is added to ``by_digest``."""
    try:
        clip = clip_folder.open_folder(folder)
        motion = clip.motion()
        faces = clip.faces()
        frames = clip.pictures()
    except SaError as error:
        yield _error("damaged", error.message)
        return
    digest = clip.record["source"].get("sha256")
    if digest is not None:
        by_digest[digest].append(folder)
    source = clip.source
    if clip_folder.source_inside(folder) is None and not (folder / "images").is_dir():
        yield _warning(
            "source-missing", f"no source in it, {source} is read instead: run `sa preprocess` on that again"
        )
    if digest is not None and sha256_of(source) != digest:
        what = "are not the images" if source.is_dir() else "is not the video"
        yield _error("source-changed", f"{source.name} {what} that the motion was made of")
    elif tuple(frames.size) != clip.size or tuple(motion.size) != clip.size:
        yield _error("size", f"frames of {frames.size}, motion of {motion.size}")
    if len(faces) and (faces.frame.max() >= len(motion) or faces.person.max() >= len(motion.track)):
        yield _error("faces", "faces of frames or people that the motion does not have")
    elif len(motion.track) > 1 and len(faces):
        known_people = set(faces.person[np.isfinite(faces.embeddings).all(axis=1)].tolist())
        unknown = [person for person in range(len(motion.track)) if person not in known_people]
        if unknown:
            names = ", ".join(map(str, unknown))
            yield _warning("person-faceless", f"no recognised face of person {names}: `sa train --people` learns none")
    known: Mapping[str, Any] = clip.record.get("quality", {})
    yield from findings({**known, **measure_quality(motion, None, None)})


def find_upstream(root: Path) -> list[Path]:
    """All folders with ``images`` and ``poses`` at or below ``root``."""
    folders = (root, *(folder for folder in root.rglob("*") if folder.is_dir()))
    found = (folder for folder in folders if (folder / "images").is_dir() and (folder / "poses").is_dir())
    return sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(root).parts))


def upstream_findings(folder: Path) -> Iterator[ClipFinding]:
    """Findings of a folder in the reference implementation's layout."""
    images, poses, masks = (_frames(folder / name) for name in ("images", "poses", "faces"))
    if len(images) < SHORTEST:
        yield _error("too-short", f"{len(images)} frames, training reads {SHORTEST}")
    for name, others in (("poses", poses), ("faces", masks)):
        missing = [frame for frame in images if frame not in others]
        if missing:
            yield _error(f"missing-{name}", f"{len(missing)} images without {name}, the first is {missing[0]}")
        extra = [frame for frame in others if frame not in images]
        if extra:
            yield _error(f"extra-{name}", f"{len(extra)} {name} without an image, the first is {extra[0]}")
    numbers = [frame for frame in images if frame.isdecimal()]
    if len(numbers) != len(images):
        odd = next(frame for frame in images if not frame.isdecimal())
        yield _error("names", f"{odd!r} is not numbered, as frame_0 is")
    elif sorted(map(int, numbers)) != list(range(min(map(int, numbers), default=0), len(numbers))):
        yield _error("gap", "numbers of frames are missing or do not start at 0")
    sizes: Counter[Any] = Counter()
    try:
        for files in (images, poses, masks):
            sizes.update(image_size_of(files[frame]) for frame in _some(list(files)))
    except SaError as error:
        yield _error("damaged", error.message)
        return
    if len(sizes) > 1:
        yield _error("size", "images of " + ", ".join(f"{w}x{h}" for w, h in sorted(sizes)))


def _frames(folder: Path) -> dict[str, Path]:
    """Map from number, or from name without one, to file, in natural order."""
    if not folder.is_dir():
        return {}
    files = (file for file in folder.iterdir() if file.suffix.lower() in _IMAGES and not file.name.startswith("."))
    ordered = sorted(files, key=lambda file: natural_key(file.name))
    return {file.stem.removeprefix("frame_"): file for file in ordered}


def _some(frames: Sequence[str], count: int = 8) -> list[str]:
    """A few frames spread over the clip, the first and the last among them."""
    if len(frames) <= count:
        return list(frames)
    return [frames[round(k * (len(frames) - 1) / (count - 1))] for k in range(count)]
