"""One clip to learn from, whichever tool wrote it, and its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stableanimator_cli.clip_folder import FACES, ClipFolder
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import visible_files
from stableanimator_cli.media import open_clip, read_picture
from stableanimator_cli.media.image import SUFFIXES
from stableanimator_cli.records import Clip

IMAGES = "images"
"""The folder of frames in the reference implementation's layout, ours included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingClip:
    """A clip on disk: ``name`` for messages, ``size`` (width, height), ``key`` a word for its content, and, where
    ``sa preprocess`` wrote it, its ``folder``; without one it is a folder of the reference implementation."""

    name: str
    path: Path
    frames: int
    size: tuple[int, int]
    key: str
    folder: ClipFolder | None = None

    def faces_file(self) -> Path:
        return self.path / FACES

    def video(self) -> Clip:
        """All frames, to be decoded in order."""
        images = self.path / IMAGES
        if images.is_dir():
            return open_clip(images)
        if self.folder is None:
            raise BadInput(self.path, f"no folder {IMAGES}", "the frames of a clip")
        return self.folder.pictures()

    def pictures(self, frames: Sequence[int]) -> dict[int, np.ndarray]:
        """The frames uint8[h,w,3] RGB by number. Of a folder of pictures only these are read; a video is decoded from
        the key frames before them, or from its start if it was cut, resampled or cannot be sought in. ``BadInput``
        where it ends before that or a frame has another size."""
        wanted = set(frames)
        files = self._files()
        if files is None:
            found = self._sought(frames)
            if found is None:
                found = self._decoded(wanted)
        else:
            found = {number: read_picture(files[number]) for number in wanted if number < len(files)}
        missing = wanted - set(found)
        if missing:
            raise BadInput(
                self.path, "no such frame in the video", f"{self.frames} frames", frame=min(missing), hint=_CHANGED
            )
        for number, picture in found.items():
            if picture.shape[1::-1] != self.size:
                sides = f"{picture.shape[1]}x{picture.shape[0]} pixels"
                raise BadInput(self.path, sides, "{}x{}".format(*self.size), frame=number, hint=_CHANGED)
        return found

    def _sought(self, frames: Sequence[int]) -> dict[int, np.ndarray] | None:
        if self.folder is None:
            return None
        options, source = self.folder.record["options"], self.folder.source
        if not source.is_file() or options.get("frames") or options.get("fps"):
            return None
        from stableanimator_cli.media.seek import frames_at

        return frames_at(source, frames, self.frames)

    def _decoded(self, wanted: set[int]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        stream = self.video().frames()
        try:
            for number, (_, picture) in enumerate(stream):
                if number in wanted:
                    found[number] = picture
                if len(found) == len(wanted):
                    break
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        return found

    def _files(self) -> list[Path] | None:
        """The pictures of a clip that is a folder of them, each of which can be read by itself."""
        images = self.path / IMAGES
        if images.is_dir():
            return picture_files(images)
        if self.folder is None:
            return []
        options, source = self.folder.record["options"], self.folder.source
        plain = source.is_dir() and not options.get("frames") and not options.get("fps")
        return picture_files(source) if plain else None


_CHANGED = "the video is not what it was when the clip was made: run `sa preprocess` on it again"


def picture_files(folder: Path) -> list[Path]:
    """Pictures of a folder in natural order."""
    return [file for file in visible_files(folder) if file.suffix.lower() in SUFFIXES]
