"""Training clips, and why others are skipped.

All annotations are read once at the start, so that a long training does not fail on a damaged file. A dataset is a
folder that ``sa preprocess`` wrote, any folder of clip folders, or one of the reference implementation: a folder with
``rec`` and ``vec``, a path list (``video_rec_path.txt``), or a single clip.
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
from stableanimator_cli.train.annotations import Faces, MotionAnnotations
from stableanimator_cli.train.clips import IMAGES, TrainingClip
from stableanimator_cli.train.reference_layout import ImageAnnotations, open_reference_clip

INDEX = "index.jsonl"
LISTS = ("video_rec_path.txt", "video_vec_path.txt")
ClipAnnotations = MotionAnnotations | ImageAnnotations
Reason = Literal["too-short", "no-skeleton", "broken", "failed"]
_REASONS: dict[str, str] = {
    "too-short": "too short",
    "no-skeleton": "without a skeleton",
    "broken": "broken",
    "failed": "failed in sa preprocess",
}
_PREPROCESS = "make one with: sa preprocess VIDEOS -o DATASET"


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedClip:
    """A clip that is not trained on, and why."""

    clip: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """``clips`` in a fixed order, ``skipped`` clips, and names of ``faceless`` clips without a face embedding.

    ``several``: number of clips in which several people are trained.
    """

    clips: tuple[TrainingClip, ...]
    skipped: tuple[SkippedClip, ...] = ()
    faceless: tuple[str, ...] = ()
    several: int = 0

    @property
    def frames(self) -> int:
        return sum(clip.frames for clip in self.clips)

    def to_json(self) -> dict[str, Any]:
        return {
            "clips": len(self.clips),
            "frames": self.frames,
            "faceless": list(self.faceless),
            "several_people": self.several,
            "left_out": [{"clip": one.clip, "reason": one.reason, "message": one.message} for one in self.skipped],
        }

    def summary(self) -> str:
        """One line: ``12 clips, 960 frames; skipped: 2 too short (a, b), 1 broken (c)``."""
        text = f"{len(self.clips)} clips, {self.frames} frames"
        if self.several:
            text += f"; {self.several} of several people"
        if self.faceless:
            text += f"; {len(self.faceless)} without a face ({_first_names(self.faceless)})"
        return text + (f"; skipped: {_count_reasons(self.skipped)}" if self.skipped else "")


def open_dataset(
    paths: Sequence[Path],
    *,
    min_frames: int,
    face_channel_order: ChannelOrder | None = None,
    people: int = 1,
    reporter: Reporter | None = None,
) -> Dataset:
    """Open the clips with at least ``min_frames`` frames in all ``paths``, in order and without duplicates.

    ``people``: the most people of a clip that are trained, each with a face of their own.
    ``face_channel_order`` is the channel order of the model's face embeddings; None skips the check. Raises
    ``BadInput`` if a path holds no clips, no clip can be used, or face embeddings have the other channel order.
    """
    clips: list[TrainingClip] = []
    skipped: list[SkippedClip] = []
    faceless: list[str] = []
    listed = [item for root in paths for item in _list_clips(root)]
    seen: set[Path] = set()
    several = 0
    with (reporter or NullReporter()).progress(len(listed), "look at clips", "clip") as bar:
        for item in listed:
            bar.update()
            if isinstance(item, SkippedClip):
                skipped.append(item)
                continue
            if item.resolve() in seen:
                continue
            seen.add(item.resolve())
            try:
                clip = _open_clip(item)
                annotations = load_annotations(clip, people)
            except (SaError, OSError) as error:
                reason: Reason = "no-skeleton" if isinstance(error, NoPerson) else "broken"
                skipped.append(SkippedClip(clip=item.name, reason=reason, message=str(error)))
                continue
            if clip.frames < min_frames:
                message = f"{clip.path}: {clip.frames} frames, expected {min_frames} or more"
                skipped.append(SkippedClip(clip=clip.name, reason="too-short", message=message))
                continue
            if not annotations.has_faces:
                faceless.append(clip.name)
            elif face_channel_order is not None:
                _check_channel_order(clip, annotations.faces, face_channel_order)
            several += len(annotations.people) > 1
            clips.append(clip)
    if not clips:
        raise _no_clips(", ".join(map(str, paths)), skipped, min_frames)
    return Dataset(clips=tuple(clips), skipped=tuple(skipped), faceless=tuple(faceless), several=several)


def with_faces(dataset: Dataset, channel_order: ChannelOrder) -> Dataset:
    """``dataset`` with ``faceless`` updated after faces were detected. Raises ``BadInput`` like ``open_dataset``."""
    faceless = []
    for clip in dataset.clips:
        if clip.name in dataset.faceless:
            faces = load_annotations(clip).faces
            if len(faces.frame):
                _check_channel_order(clip, faces, channel_order)
            else:
                faceless.append(clip.name)
    return replace(dataset, faceless=tuple(faceless))


def check_faces(dataset: Dataset, model: ModelFolder, reporter: Reporter) -> None:
    """Warn if fewer than half of the clips have a face, from which identity is learned. ``NoFace`` if none has."""
    total, missing = len(dataset.clips), len(dataset.faceless)
    if missing == total:
        reason = "" if "face" in model.files else f", and model {model.name!r} has no face detector"
        raise NoFace(
            f"none of the {total} clips has a recognisable face{reason}, so identity cannot be trained",
            hint="use clips that show a face and a model with a face detector, or train without faces: --face off",
        )
    if 2 * missing > total:
        reporter.warning(f"{missing} of {total} clips have no recognisable face: they do not train identity")


def load_annotations(clip: TrainingClip, people: int = 1) -> ClipAnnotations:
    """Read keypoints or skeleton images, and faces of at most ``people`` people; images of skeletons have one.

    Raises ``BadInput``, or ``NoPerson`` if no frame shows anyone.
    """
    if clip.folder is None:
        return ImageAnnotations(clip)
    try:
        return MotionAnnotations(clip.folder.motion(), clip.folder.faces(), people)
    except NoPerson as error:
        raise NoPerson(f"{clip.path}: {error.message}", hint=error.hint) from None


def check_paths(paths: Sequence[Path], hint: str | None = None) -> None:
    """Raise ``BadInput`` for a path that does not exist, by default with the hint to make a dataset."""
    for path in paths:
        if not path.exists():
            raise BadInput(path, "no such path", "a dataset", hint=hint or _PREPROCESS)


def _list_clips(root: Path) -> Iterator[Path | SkippedClip]:
    """Folders that should be clips, in the order of the dataset."""
    check_paths([root])
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
        ours = clip_folder.find_folders(root)
        folders = [path for pattern in ("*", "rec/*", "vec/*") for path in sorted(root.glob(pattern))]
        yield from ours
        yield from (path for path in folders if (path / IMAGES).is_dir() and path not in set(ours))


def _from_index(root: Path) -> Iterator[Path | SkippedClip]:
    """Clips in the order in which their videos were given to ``sa preprocess``."""
    file, what = root / INDEX, "an index of clips"
    hint = "run the same `sa preprocess` again: it rewrites the index"
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
            message = row.fields("error", default={}).text("message", default="no reason given")
            yield SkippedClip(clip=Path(source).name, reason="failed", message=message)


def _from_list(file: Path) -> Iterator[Path]:
    """A path list of the reference implementation: one folder per line, relative to the folder of the list."""
    text = read_text(file, "a list of clip folders", hint=_PREPROCESS)
    for number, line in enumerate(text.splitlines(), start=1):
        if "\0" in line:
            raise BadInput.because(file, f"line {number} is no path: it contains a null byte", hint=_PREPROCESS)
        if line.strip():
            yield file.parent / line.strip()


def _open_clip(path: Path) -> TrainingClip:
    if not (path / clip_folder.RECORD).is_file() and (path / IMAGES).is_dir():
        return open_reference_clip(path)
    folder = clip_folder.open_folder(path)
    if not (path / IMAGES).is_dir():
        _ = folder.source  # raises if the video is missing
    return TrainingClip(
        name=folder.name,
        path=path,
        frames=folder.frames,
        size=folder.size,
        key=str(folder.record["key"]),
        folder=folder,
    )


def _check_channel_order(clip: TrainingClip, faces: Faces, expected: ChannelOrder) -> None:
    if faces.channel_order != expected:
        again = "run `sa preprocess VIDEOS -o ANOTHER --model NAME` with the model that is trained"
        raise BadInput(
            clip.faces_path,
            f"face embeddings of {faces.channel_order} images",
            f"{expected}, like the model",
            hint=again if clip.folder is not None else "delete the file: `sa train` detects the faces again",
        )


def _no_clips(where: str, skipped: Sequence[SkippedClip], min_frames: int) -> BadInput:
    if not skipped:
        return BadInput(where, "no clips", "clip folders, or rec and vec with images", hint=_PREPROCESS)
    if all(one.reason == "too-short" for one in skipped):
        several = f"{len(skipped)} clips, all shorter than {min_frames} frames"
        found = skipped[0].message.partition(", expected")[0] if len(skipped) == 1 else several
        hint = "use longer videos or fewer --frames"
        return BadInput(where, found, f"clips of {min_frames} frames or more", hint=hint)
    hint = f"{skipped[0].clip}: {skipped[0].message}"
    return BadInput(where, f"no clip that can be used: {_count_reasons(skipped)}", "one or more", hint=hint)


def _count_reasons(skipped: Sequence[SkippedClip]) -> str:
    parts = []
    for reason, count in Counter(one.reason for one in skipped).items():
        names = [one.clip for one in skipped if one.reason == reason]
        parts.append(f"{count} {_REASONS[reason]} ({_first_names(names)})")
    return ", ".join(parts)


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
