"""What there is to learn from: the clips of one or several datasets, and why others are left out.

All of a clip's numbers are read once at the start, so that a training of days does not end at a damaged file. A
dataset is a folder that ``sa preprocess`` wrote, any folder of clip folders, or the reference implementation's: a
folder with ``rec`` and ``vec``, a path list (``video_rec_path.txt``), or a single clip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli import clip_folder
from stableanimator_cli.errors import BadInput, NoFace, NoPerson, SaError
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.readers import read_json_lines, read_text
from stableanimator_cli.readers_fields import Fields
from stableanimator_cli.records import ChannelOrder, ModelFolder
from stableanimator_cli.train.annotations import ClipAnnotations, MotionClip
from stableanimator_cli.train.clips import IMAGES, TrainingClip
from stableanimator_cli.train.reference_layout import DrawnClip, open_upstream

INDEX = "index.jsonl"
LISTS = ("video_rec_path.txt", "video_vec_path.txt")
Reason = Literal["too-short", "no-skeleton", "broken", "failed"]
_WORDS: dict[Reason, str] = {
    "too-short": "too short",
    "no-skeleton": "without a skeleton",
    "broken": "broken",
    "failed": "given up by sa preprocess",
}
_MAKE = "make one with: sa preprocess VIDEOS -o DATASET"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A clip that is not trained on, and why in one line."""

    clip: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """``clips`` in a fixed order; ``left_out`` and ``faceless`` (names of clips without an identity vector) for the
    report. Small: it travels to worker processes."""

    clips: tuple[TrainingClip, ...]
    left_out: tuple[LeftOut, ...] = ()
    faceless: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        return sum(clip.frames for clip in self.clips)

    def to_json(self) -> dict[str, Any]:
        return {
            "clips": len(self.clips),
            "frames": self.frames,
            "faceless": list(self.faceless),
            "left_out": [{"clip": one.clip, "reason": one.reason, "message": one.message} for one in self.left_out],
        }

    def summary(self) -> str:
        """One line: ``12 clips, 960 frames; left out: 2 too short (a, b), 1 broken (c)``."""
        text = f"{len(self.clips)} clips, {self.frames} frames"
        if self.faceless:
            text += f"; {len(self.faceless)} without a face ({_some(self.faceless)})"
        if self.left_out:
            text += f"; left out: {_told(self.left_out)}"
        return text


def open_dataset(
    paths: Sequence[Path],
    *,
    least: int,
    face_channel_order: ChannelOrder | None = None,
    reporter: Reporter | None = None,
) -> Dataset:
    """The clips of ``least`` frames or more in all of ``paths``, in their order, a folder named twice once.

    ``face_channel_order`` is the order that the model's identity vectors are made in; None does not look.
    ``BadInput`` where a path holds no clips, where none is left, and where vectors are of the other order.
    """
    reporter = reporter or NullReporter()
    kept: list[TrainingClip] = []
    left: list[LeftOut] = []
    faceless: list[str] = []
    found = [(root, item) for root in paths for item in _listed(root)]
    seen: set[Path] = set()
    with reporter.progress(len(found), "look at clips", "clip") as bar:
        for _, item in found:
            bar.update()
            if isinstance(item, LeftOut):
                left.append(item)
                continue
            if item.resolve() in seen:
                continue
            seen.add(item.resolve())
            try:
                clip = _open(item)
                observed = observe(clip)
            except (SaError, OSError) as error:
                reason: Reason = "no-skeleton" if isinstance(error, NoPerson) else "broken"
                left.append(LeftOut(clip=item.name, reason=reason, message=str(error)))
                continue
            if clip.frames < least:
                message = f"{clip.path}: {clip.frames} frames, expected {least} or more"
                left.append(LeftOut(clip=clip.name, reason="too-short", message=message))
                continue
            if not len(observed.faces.frame):
                faceless.append(clip.name)
            elif face_channel_order is not None:
                _check_order(clip, face_channel_order)
            kept.append(clip)
    if not kept:
        raise _nothing(paths, found, left, least)
    return Dataset(clips=tuple(kept), left_out=tuple(left), faceless=tuple(faceless))


def with_faces(dataset: Dataset, channel_order: ChannelOrder) -> Dataset:
    """``dataset`` after faces were looked for: ``faceless`` again. ``BadInput`` as ``open_dataset`` raises it."""
    faceless = []
    for clip in dataset.clips:
        if clip.name in dataset.faceless and not len(observe(clip).faces.frame):
            faceless.append(clip.name)
        elif clip.name in dataset.faceless:
            _check_order(clip, channel_order)
    return replace(dataset, faceless=tuple(faceless))


def check_faces(dataset: Dataset, model: ModelFolder, reporter: Reporter) -> None:
    """Warn if fewer than half of the clips show a face, which is all that identity is learned from; ``NoFace`` if none
    does."""
    total, missing = len(dataset.clips), len(dataset.faceless)
    if missing == total:
        reason = "" if "face" in model.files else f", and model {model.name!r} has no face detector"
        raise NoFace(
            f"none of the {total} clips has a face that could be recognized{reason}, so identity cannot be trained",
            hint="use clips that show a face and a model with a face detector, or train without faces: --face off",
        )
    if 2 * missing > total:
        reporter.warning(
            f"{missing} of {total} clips have no face that could be recognized: they do not train identity"
        )


def observe(clip: TrainingClip) -> ClipAnnotations:
    """Key points or skeleton pictures, and faces. ``BadInput`` where they are damaged or not of this clip, ``NoPerson``
    where nobody is in any frame."""
    if clip.folder is None:
        return DrawnClip.open(clip)
    try:
        return MotionClip(clip.folder.motion(), clip.folder.faces())
    except NoPerson as error:
        raise NoPerson(f"{clip.path}: {error.message}", hint=error.hint) from None


def _listed(root: Path) -> Iterator[Path | LeftOut]:
    """Folders that should be clips, in the order of the dataset."""
    if not root.exists():
        raise BadInput(root, "nothing there", "a dataset", hint=_MAKE)
    if root.is_file():
        yield from _from_list(root)
    elif (root / clip_folder.RECORD).is_file() or (root / IMAGES).is_dir():
        yield root
    elif (root / INDEX).is_file():
        yield from _from_index(root)
    elif any((root / name).is_file() for name in LISTS):
        for name in LISTS:
            if (root / name).is_file():
                yield from _from_list(root / name)
    else:
        inside = clip_folder.find_folders(root)
        pictures = [p for places in ("*", "rec/*", "vec/*") for p in sorted(root.glob(places)) if (p / IMAGES).is_dir()]
        yield from inside
        yield from (p for p in pictures if p not in set(inside))


def _from_index(root: Path) -> Iterator[Path | LeftOut]:
    """Clips in the order in which their videos were given."""
    file, what = root / INDEX, "an index of clips"
    hint = "run the same `sa preprocess` again: it writes the index anew"
    for number, line in read_json_lines(file, what, hint=hint):

        def at(path: Path | str, problem: str, *, hint: str | None = None, number: int = number) -> BadInput:
            return BadInput.because(path, f"line {number}: {problem}", hint=hint)

        row = Fields.of(line, file, what, error=at, hint=hint)
        status, source = row.choice("status", ("ok", "failed", "pending")), row.text("source")
        if status == "ok":
            clip = row.text("clip", empty=False)
            if "\0" in clip or Path(clip).is_absolute() or ".." in Path(clip).parts:
                row.fail("clip", "the name of a clip folder beside the index")
            yield root / clip
        elif status == "failed":
            message = row.fields("error", default={}).text("message", default="no reason is told")
            yield LeftOut(clip=Path(source).name, reason="failed", message=message)


def _from_list(file: Path) -> Iterator[Path]:
    """A path list of the reference implementation: a folder a line, relative ones from where the list lies."""
    text = read_text(file, "a list of clip folders", hint=_MAKE)
    for number, line in enumerate(text.splitlines(), start=1):
        if "\0" in line:
            raise BadInput.because(file, f"line {number} is no path: it holds a null byte", hint=_MAKE)
        if line.strip():
            yield file.parent / line.strip()


def _open(path: Path) -> TrainingClip:
    if not (path / clip_folder.RECORD).is_file() and (path / IMAGES).is_dir():
        return open_upstream(path)
    folder = clip_folder.open_folder(path)
    if not (path / IMAGES).is_dir():
        _ = folder.source  # says where it was looked for
    return TrainingClip(
        name=folder.name,
        path=path,
        frames=folder.frames,
        size=folder.size,
        key=str(folder.record["key"]),
        folder=folder,
    )


def _check_order(clip: TrainingClip, wanted: ChannelOrder) -> None:
    found = clip_folder.load_faces(clip.faces_file()).channel_order
    if found != wanted:
        again = "run `sa preprocess VIDEOS -o ANOTHER --model NAME` with the model that is trained"
        raise BadInput(
            clip.faces_file(), f"identity vectors of {found} pictures", f"{wanted}, as the model wants them",
            hint=again if clip.folder is not None else "delete the file: `sa train` finds the faces again",
        )  # fmt: skip


def _nothing(paths: Sequence[Path], found: Sequence[Any], left: Sequence[LeftOut], least: int) -> BadInput:
    where = ", ".join(map(str, paths))
    if not found:
        return BadInput(where, "no clips", "clip folders, or rec and vec with images", hint=_MAKE)
    if all(one.reason == "too-short" for one in left):
        longest = left[0].message if len(left) == 1 else f"{len(left)} clips, all shorter than {least} frames"
        return BadInput(where, longest, f"clips of {least} frames or more", hint="use longer videos or fewer --frames")
    return BadInput(
        where, f"no clip that can be used: {_told(left)}", "one or more", hint=f"{left[0].clip}: {left[0].message}"
    )


def _told(left: Sequence[LeftOut]) -> str:
    counts: Counter[Reason] = Counter(one.reason for one in left)
    parts = []
    for reason, count in counts.items():
        names = [one.clip for one in left if one.reason == reason]
        parts.append(f"{count} {_WORDS[reason]} ({_some(names)})")
    return ", ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
