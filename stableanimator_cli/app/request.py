"""Inputs and options of one ``sa animate`` from the form, its folder, and its command line."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stableanimator_cli.errors import BadInput, ConfigError, SaError
from stableanimator_cli.files import sha256_of, translate_os_errors

VIDEO = "video.mp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The form: two uploaded files, and options of ``sa animate`` by name, those that differ from the defaults.

    ``faces``: by person, another image of that person's face (``--face-of``).
    """

    reference: Path
    motion: Path
    options: Mapping[str, Any]
    faces: Mapping[int, Path] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Path, ...]:
        return (self.reference, self.motion, *self.faces.values())

    def key(self) -> tuple[str, ...]:
        """Equal for equal inputs and options: an interrupted run is resumed by an equal request."""
        options = (f"{name}={value}" for name, value in sorted(self.options.items()))
        faces = (f"face of {person}={sha256_of(path)}" for person, path in self.faces.items())
        return (sha256_of(self.reference), sha256_of(self.motion), *options, *faces)

    def all_options(self, faces: Mapping[int, Path] | None = None) -> dict[str, Any]:
        """Options, and ``face_of`` with the images of ``faces``, by default the uploaded ones."""
        faces = self.faces if faces is None else faces
        words = tuple(f"{person}={path}" for person, path in faces.items())
        return {**self.options, **({"face_of": words} if words else {})}


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
    def options(self) -> dict[str, Any]:
        """Options of ``sa animate`` that name the copies."""
        names = input_names(self.request)[2:]
        return self.request.all_options(
            {person: self.folder / name for person, name in zip(self.request.faces, names, strict=True)}
        )

    @property
    def copies(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in input_names(self.request))

    @property
    def has_inputs(self) -> bool:
        """Whether the copies exist: the folder is the user's, who may have removed it or moved it away."""
        return all(path.is_file() for path in self.copies)

    @property
    def video(self) -> Path:
        return self.folder / VIDEO

    @property
    def command(self) -> str:
        """The command line that does the same, in the folder where ``sa app`` was started."""
        words = ["sa", "animate", str(self.reference), str(self.motion), "-o", str(self.video)]
        return shlex.join([*words, *flags(self.options)])

    def copy_inputs(self) -> None:
        """Copy the inputs into the new folder. Raises ``BadInput``."""
        for source, target in zip(self.request.inputs, self.copies, strict=True):
            with translate_os_errors(target), source.open("rb") as read, target.open("xb") as write:
                shutil.copyfileobj(read, write)

    def keep_if_begun(self) -> bool:
        """Whether the folder holds more than the inputs, such as a checkpoint; else it is removed."""
        inputs = self.copies
        with contextlib.suppress(OSError):  # of a folder that was removed or cannot be changed
            if not set(self.folder.iterdir()) <= set(inputs):
                return True
            for path in inputs:
                path.unlink(missing_ok=True)
            self.folder.rmdir()
        return False


def input_names(request: Request) -> tuple[str, ...]:
    """File names of the copies of reference, motion and faces: those of the originals, unless they collide with one
    another or with the video; faces by the person."""
    reference, motion = request.reference.name, request.motion.name
    stem = Path(VIDEO).stem
    if reference.startswith(stem):
        reference = f"reference-{reference}"
    if motion == reference or motion.startswith(stem):
        motion = f"motion-{motion}"
    names = [reference, motion]
    for person, path in request.faces.items():
        name = f"face-of-{person}{path.suffix}"
        while name in names:
            name = f"other-{name}"
        names.append(name)
    return tuple(names)


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options by name as words of a command line."""
    words = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, tuple) else (value,):
            words += [flag] if one is True else [flag, str(one)]
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


def faces_by_person(files: Sequence[str], people: str) -> dict[int, Path]:
    """Uploaded faces by the people of ``people``, as ``"0,2"``; empty: 0, 1, ... Raises ``ConfigError``."""
    words = people.split(",") if people.strip() else [str(number) for number in range(len(files))]
    numbers = [int(word) for word in words if word.strip().isascii() and word.strip().isdigit()]
    if len(numbers) != len(words) or len(set(numbers)) != len(files) or len(numbers) != len(files):
        expected = f"{len(files)} different number(s), one per picture of a face, as 0,2"
        raise ConfigError("Whose faces they are", people, expected, hint="people are counted from 0")
    return {number: Path(file) for number, file in zip(numbers, files, strict=True)}


def number_of(text: str, label: str) -> int | None:
    """A whole number, None if the field is empty. Raises ``ConfigError``."""
    if not text.strip():
        return None
    if not (text.strip().isascii() and text.strip().isdigit()):
        raise ConfigError(label, text, "a whole number", hint="leave it empty for the model's own")
    return int(text)


def missing_input(reference: str | None, motion: str | None) -> SaError | None:
    """The error for a form that lacks a file."""
    for path, name, expected in (
        (reference, "Picture", "an image of the person: PNG, JPEG or WebP"),
        (motion, "Motion", "a skeleton video, a motion .npz, OpenPose JSON, or a video of a person"),
    ):
        if not path:
            return BadInput(name, "nothing", expected, hint="drop a file there, or take an example")
    return None
