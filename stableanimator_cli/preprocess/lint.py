"""``sa preprocess --lint``: whether a dataset can be trained on, clip by clip, before a GPU is rented for it.

Clip folders and the reference implementation's layout are both looked over. Errors would break training, or teach it
from wrong pairs; warnings would make it worse.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli import clip_folder
from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.errors import BadInput, SaError
from stableanimator_cli.files import natural_key, sha256_of
from stableanimator_cli.media.image import picture_size
from stableanimator_cli.preprocess.quality import SHORTEST, Finding, findings, measure
from stableanimator_cli.progress import Reporter

_IMAGES = (".png", ".jpg", ".jpeg")
_SHOWN = 200  # lines of the summary


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """``clips`` looked at, and what was found: (folder, finding)."""

    dataset: Path
    clips: int
    found: tuple[tuple[Path, Finding], ...]

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for _, finding in self.found)

    @property
    def exit_code(self) -> int:
        return 8 if self.errors else 0

    @property
    def message(self) -> str:
        warnings = len(self.found) - self.errors
        return f"{self.dataset}: {self.clips} clips, {self.errors} errors, {warnings} warnings"

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "dataset": str(self.dataset),
            "clips": self.clips,
            "errors": self.errors,
            "warnings": len(self.found) - self.errors,
            "findings": [{"clip": str(folder), **finding.to_json()} for folder, finding in self.found],
        }
        if self.errors:
            told |= {"error": "check-failed", "message": self.message, "exit_code": self.exit_code}
        return told

    def summary(self) -> str:
        lines = [
            f"{finding.severity:8}{folder}: {finding.text} [{finding.code}]"
            for folder, finding in sorted(self.found, key=lambda pair: pair[1].severity)[:_SHOWN]
        ]
        if len(self.found) > _SHOWN:
            lines.append(f"... and {len(self.found) - _SHOWN} more (--json tells all)")
        return "\n".join([*lines, self.message])


def run(config: PreprocessConfig, reporter: Reporter) -> LintReport:
    """Look over every clip under the one input. ``BadInput`` where there is no clip at all."""
    if len(config.inputs) != 1 or not config.inputs[0].is_dir():
        raise BadInput(config.inputs[0], "no dataset", "one folder that `sa preprocess` wrote", hint="--lint DATASET")
    root = config.inputs[0]
    ours, theirs = clip_folder.find_folders(root), find_upstream(root)
    theirs = [folder for folder in theirs if folder not in set(ours)] + [f for f in ours if (f / "images").is_dir()]
    plain = [folder for folder in ours if not (folder / "images").is_dir()]
    if not plain and not theirs:
        raise BadInput(root, "no clip folder", "folders with clip.json, or with images, poses and faces",
                       hint="make one with: sa preprocess VIDEOS -o " + str(root))  # fmt: skip
    found: list[tuple[Path, Finding]] = []
    same: dict[str, list[Path]] = defaultdict(list)
    with reporter.progress(len(plain) + len(theirs), "lint", "clip") as bar:
        for folder in plain:
            found += [(folder, finding) for finding in _clip(folder, same)]
            bar.update()
        for folder in theirs:
            found += [(folder, finding) for finding in upstream_findings(folder)]
            bar.update()
    for folders in same.values():
        found += [
            (folder, Finding(code="duplicate", severity="warning", text=f"the same video as {folders[0]}"))
            for folder in folders[1:]
        ]
    return LintReport(dataset=root, clips=len(plain) + len(theirs), found=tuple(found))


def _clip(folder: Path, same: dict[str, list[Path]]) -> Iterator[Finding]:
    """What is wrong with one clip folder of ours, judged by what lies there now."""
    try:
        clip = clip_folder.open_folder(folder)
        motion = clip.motion()
        faces = clip.faces()
        pictures = clip.pictures()
    except SaError as error:
        yield Finding(code="damaged", severity="error", text=error.message)
        return
    digest = clip.record["source"].get("sha256")
    if digest is not None:
        same[digest].append(folder)
    source = clip.source
    if clip_folder.source_inside(folder) is None and not (folder / "images").is_dir():
        yield Finding(code="source-missing", severity="warning",
                      text=f"no source in it, {source} is read instead: run `sa preprocess` on that again")  # fmt: skip
    if digest is not None and source.is_file() and sha256_of(source) != digest:
        yield Finding(code="source-changed", severity="error",
                      text=f"{source.name} is not the video that the motion was made of")  # fmt: skip
    elif tuple(pictures.size) != clip.size or tuple(motion.size) != clip.size:
        yield Finding(code="size", severity="error", text=f"frames of {pictures.size}, motion of {motion.size}")
    if len(faces) and (faces.frame.max() >= len(motion) or faces.person.max() >= len(motion.track)):
        yield Finding(code="faces", severity="error", text="faces of frames or people that the motion does not have")
    known: Mapping[str, Any] = clip.record.get("quality", {})
    yield from findings({**known, **measure(motion, None, None)})


def find_upstream(root: Path) -> list[Path]:
    """All folders with ``images`` and ``poses`` at or below ``root``."""
    places = (root, *(folder for folder in root.rglob("*") if folder.is_dir()))
    found = (folder for folder in places if (folder / "images").is_dir() and (folder / "poses").is_dir())
    return sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(root).parts))


def upstream_findings(folder: Path) -> Iterator[Finding]:
    """What is wrong with a folder of the reference implementation's layout."""
    images, poses, masks = (_frames(folder / name) for name in ("images", "poses", "faces"))
    if len(images) < SHORTEST:
        yield Finding(code="too-short", severity="error", text=f"{len(images)} frames, training reads {SHORTEST}")
    for name, others in (("poses", poses), ("faces", masks)):
        lacking = [frame for frame in images if frame not in others]
        if lacking:
            yield Finding(code=f"missing-{name}", severity="error",
                          text=f"{len(lacking)} images without {name}, the first is {lacking[0]}")  # fmt: skip
        extra = [frame for frame in others if frame not in images]
        if extra:
            yield Finding(code=f"extra-{name}", severity="error",
                          text=f"{len(extra)} {name} without an image, the first is {extra[0]}")  # fmt: skip
    numbers = [frame for frame in images if frame.isdigit()]
    if len(numbers) != len(images):
        odd = next(frame for frame in images if not frame.isdigit())
        yield Finding(code="names", severity="error", text=f"{odd!r} is not numbered, as frame_0 is")
    elif sorted(map(int, numbers)) != list(range(min(map(int, numbers), default=0), len(numbers))):
        yield Finding(code="gap", severity="error", text="numbers of frames are missing or do not begin at 0")
    sizes: Counter[Any] = Counter()
    try:
        for files in (images, poses, masks):
            sizes.update(picture_size(files[frame]) for frame in _some(list(files)))
    except SaError as error:
        yield Finding(code="damaged", severity="error", text=error.message)
        return
    if len(sizes) > 1:
        yield Finding(code="size", severity="error",
                      text="pictures of " + ", ".join(f"{w}x{h}" for w, h in sorted(sizes)))  # fmt: skip


def _frames(folder: Path) -> dict[str, Path]:
    """Number, or name where it has none, to file, in natural order."""
    if not folder.is_dir():
        return {}
    files = (file for file in folder.iterdir() if file.suffix.lower() in _IMAGES and not file.name.startswith("."))
    ordered = sorted(files, key=lambda file: natural_key(file.name))
    return {file.stem.removeprefix("frame_"): file for file in ordered}


def _some(frames: Sequence[str], count: int = 8) -> list[str]:
    """A few, spread over the clip, the first and the last among them."""
    if len(frames) <= count:
        return list(frames)
    return [frames[round(k * (len(frames) - 1) / (count - 1))] for k in range(count)]
