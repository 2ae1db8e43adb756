"""What the form asks for: the inputs and options of one ``sa animate``, its folder, and the command line of it."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.errors import BadInput, SaError
from stableanimator_cli.files import sha256_of, translate_os_errors

VIDEO = "video.mp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The form: two uploaded files, and options of ``sa animate`` by name, those that differ from the defaults."""

    reference: Path
    motion: Path
    options: Mapping[str, Any]

    def key(self) -> tuple[str, ...]:
        """Equal for equal inputs and options: an interrupted run is resumed by an equal request."""
        digests = (sha256_of(self.reference), sha256_of(self.motion))
        return (*digests, *(f"{name}={value}" for name, value in sorted(self.options.items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A request in its folder: copies of the inputs, and the video that will be beside them."""

    request: Request
    folder: Path

    @property
    def reference(self) -> Path:
        return self.folder / input_names(self.request)[0]

    @property
    def motion(self) -> Path:
        return self.folder / input_names(self.request)[1]

    @property
    def video(self) -> Path:
        return self.folder / VIDEO

    @property
    def command(self) -> str:
        """The command line that does the same, in the folder where ``sa app`` was started."""
        words = ["sa", "animate", str(self.reference), str(self.motion), "-o", str(self.video)]
        return shlex.join([*words, *flags(self.request.options)])

    def copy_inputs(self) -> None:
        """Copy the inputs into the new folder. Raises ``BadInput``."""
        for source, target in ((self.request.reference, self.reference), (self.request.motion, self.motion)):
            with translate_os_errors(target), source.open("rb") as read, target.open("xb") as write:
                shutil.copyfileobj(read, write)

    def keep_if_begun(self) -> bool:
        """Whether the folder holds more than the inputs, such as a checkpoint; else it is removed."""
        inputs = (self.reference, self.motion)
        with contextlib.suppress(OSError):  # of a folder that was removed or cannot be changed
            if not set(self.folder.iterdir()) <= set(inputs):
                return True
            for path in inputs:
                path.unlink(missing_ok=True)
            self.folder.rmdir()
        return False


def input_names(request: Request) -> tuple[str, str]:
    """File names of the copies: those of the originals, unless they collide with one another or with the video."""
    reference, motion = request.reference.name, request.motion.name
    stem = Path(VIDEO).stem
    if reference.startswith(stem):
        reference = f"reference-{reference}"
    if motion == reference or motion.startswith(stem):
        motion = f"motion-{motion}"
    return reference, motion


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options by name as words of a command line."""
    words = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


def new_folder(output: Path) -> Path:
    """Create the next of ``output``/001, 002, ... Raises ``BadInput`` if the folder cannot be written."""
    with translate_os_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        taken = (int(path.name) for path in output.iterdir() if path.name.isascii() and path.name.isdigit())
        number = max(taken, default=0) + 1
        while True:
            folder = output / f"{number:03d}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            return folder


def in_words(error: SaError, folders: Sequence[Path]) -> tuple[str, str]:
    """Message and hint as the command line prints them, with files named as they were uploaded."""
    message, hint = error.message, error.hint or ""
    for folder in folders:
        message, hint = (text.replace(f"{folder}/", "") for text in (message, hint))
    return message, hint


def missing_input(reference: str | None, motion: str | None) -> SaError | None:
    """The error for a form that lacks a file."""
    for path, name, expected in (
        (reference, "Picture", "an image of the person: PNG, JPEG or WebP"),
        (motion, "Motion", "a skeleton video, a motion .npz, OpenPose JSON, or a video of a person"),
    ):
        if not path:
            return BadInput(name, "nothing", expected, hint="drop a file there, or take an example")
    return None
