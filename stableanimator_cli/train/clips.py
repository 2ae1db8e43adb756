"""One training clip in either layout, and its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stableanimator_cli.clip_folder import FACES, ClipFolder
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import visible_files
from stableanimator_cli.media import open_clip, read_image
from stableanimator_cli.media.image import SUFFIXES
from stableanimator_cli.records import Clip

IMAGES = "images"
"""The folder of frames in the reference implementation's layout."""

_CHANGED = "the video changed since the clip was made: run `sa preprocess` on it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingClip:
    """A clip on disk: ``name`` for messages, ``size`` (width, height), ``key`` that identifies its content.

    ``folder`` is the clip folder of ``sa preprocess``, None for the reference implementation's layout, whose ``key``
    identifies the frames and ``annotations_key`` their skeletons and masks: caches depend on the frames alone.
    ``former_key`` and ``former_annotations_key``: as earlier versions computed them, whose caches and runs stay valid.
    """

    name: str
    path: Path
    frames: int
    size: tuple[int, int]
    key: str
    annotations_key: str = ""
    former_key: str = ""
    former_annotations_key: str = ""
    folder: ClipFolder | None = None

    @property
    def faces_path(self) -> Path:
        return self.path / FACES

    def video(self) -> Clip:
        """All frames, decoded in order."""
        images = self.path / IMAGES
        if images.is_dir():
            return open_clip(images)
        if self.folder is None:
            raise BadInput(self.path, f"no folder {IMAGES}", "the frames of a clip")
        return self.folder.pictures()

    def images(self, frames: Sequence[int]) -> dict[int, np.ndarray]:
        """The given frames uint8[h,w,3] RGB by number.

        Only these files of an image folder are read. A video is decoded from the keyframes before them, or from its
        start if it was cut or resampled, or cannot seek. Raises ``BadInput`` if the video is too short or a frame has
        another size.
        """
        requested = set(frames)
        files = self._files()
        if files is not None:
            found = {number: read_image(files[number]) for number in requested if number < len(files)}
        else:
            sought = self._seek(frames)
            found = self._decode(requested) if sought is None else sought
        missing = requested - set(found)
        if missing:
            raise BadInput(
                self.path, "no such frame in the video", f"{self.frames} frames", frame=min(missing), hint=_CHANGED
            )
        for number, image in found.items():
            if image.shape[1::-1] != self.size:
                size = f"{image.shape[1]}x{image.shape[0]} pixels"
                raise BadInput(self.path, size, "{}x{}".format(*self.size), frame=number, hint=_CHANGED)
        return found

    def _is_cut(self) -> bool:
        """Whether the clip has other frames than its source: a range, or another frame rate."""
        assert self.folder is not None
        options = self.folder.record["options"]
        return bool(options.get("frames") or options.get("fps"))

    def _seek(self, frames: Sequence[int]) -> dict[int, np.ndarray] | None:
        if self.folder is None or not self.folder.source.is_file() or self._is_cut():
            return None
        from stableanimator_cli.media.seek import frames_at

        return frames_at(self.folder.source, frames, self.frames)

    def _decode(self, frames: set[int]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        stream = self.video().frames()
        try:
            for number, (_, image) in enumerate(stream):
                if number in frames:
                    found[number] = image
                if len(found) == len(frames):
                    break
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        return found

    def _files(self) -> list[Path] | None:
        """Image files of the frames, None if the clip is a video."""
        images = self.path / IMAGES
        if images.is_dir():
            return image_files(images)
        if self.folder is None:
            return []
        source = self.folder.source
        return image_files(source) if source.is_dir() and not self._is_cut() else None


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder in natural order."""
    return [file for file in visible_files(folder) if file.suffix.lower() in SUFFIXES]
