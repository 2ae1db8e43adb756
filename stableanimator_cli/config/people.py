"""Options of ``sa animate`` for several people. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stableanimator_cli.config.paths import path_of
from stableanimator_cli.config.schema import check_fields, option
from stableanimator_cli.errors import ConfigError

SEVERAL = "Several people"
"""Panel of the help."""
MOST = 64
"""People of one motion."""

Chosen = str | tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
_PERSON = "largest, all, or different numbers of people, as 0 or 1,0"
_PAIR = "PERSON:FACE, each person once, as 0:1,1:0, or none"
_FACE_OF = "PERSON=IMAGE, each person once, as 1=other.png"


def parse_person(value: str | int | Sequence[int], label: str = "--person") -> Chosen:
    """``"1,0"`` -> (1, 0): numbers of people, in order; ``"largest"`` and ``"all"`` stay."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if text in ("largest", "all"):
        return text
    words = text.split(",") if not isinstance(value, bool) else []
    numbers = tuple(int(word) for word in words if re.fullmatch(r"\s*\d{1,6}\s*", word, re.ASCII))
    if not numbers or len(numbers) != len(words) or len(set(numbers)) < len(numbers) or len(numbers) > MOST:
        raise ConfigError(label, value, _PERSON)
    return numbers


def dump_person(chosen: Chosen) -> str:
    return chosen if isinstance(chosen, str) else ",".join(map(str, chosen))


def parse_pairs(value: str | Sequence[Sequence[int]], label: str = "--pair") -> Pairs:
    """``"0:1,1:0"`` -> ((0, 1), (1, 0)): people, and faces of the reference; ``"none"`` -> ()."""
    if isinstance(value, str):
        words = [] if value == "none" else value.split(",")
    elif isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) for pair in value):
        words = [":".join(map(str, pair)) for pair in value]
    else:
        words = [""]
    if not words:
        return ()
    found = [re.fullmatch(r"\s*(\d{1,3})\s*:\s*(\d{1,3})\s*", word, re.ASCII) for word in words]
    pairs = tuple((int(match[1]), int(match[2])) for match in found if match)
    if not pairs or len(pairs) < len(words) or len({person for person, _ in pairs}) < len(pairs):
        raise ConfigError(label, value, _PAIR, hint="people and faces are counted from 0, faces from left to right")
    return pairs


def dump_pairs(pairs: Pairs) -> str:
    return ",".join(f"{person}:{face}" for person, face in pairs) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleConfig:
    """People of the motion, and the face of each.

    ``person`` chooses people by their numbers in the motion, and orders them; None is everybody of keypoints, and of a
    video as many as the reference shows faces. ``pair`` and ``face_of`` count the chosen people from 0. ``pair`` None
    pairs by position from left to right; () gives everybody the largest face.
    """

    # fmt: off
    person: Chosen | None = option("--person", None, parse=parse_person, dump=dump_person, metavar="largest|all|N,...",
        panel=SEVERAL, default_text="all of keypoints; in a video as many as REFERENCE shows faces",
        help="People of MOTION to animate, and their order: the largest, all, or numbers as 1,0, which sa preprocess "
        "--people shows.")
    pair: Pairs | None = option("--pair", None, parse=parse_pairs, dump=dump_pairs, metavar="P:F,...|none",
        panel=SEVERAL, default_text="by position from left to right",
        help="Face of each person: P counts the people of --person from 0, F the faces of REFERENCE from left to right "
        "from 0. none: one face, the largest, for everybody.")
    face_of: tuple[str, ...] = option("--face-of", (), metavar="P=IMAGE", panel=SEVERAL, default_text="none",
        help="Take the face of person P from another image; give it once per person.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        twice = {person for person, _ in self.pair or ()} & set(self.face_files)
        if twice:
            raise ConfigError("--face-of", self._text(min(twice)), "a person that --pair does not name")
        if self.pair == () and self.face_of:
            raise ConfigError("--pair", "none", "a pairing, or no --pair, beside --face-of")
        chosen = len(self.person) if isinstance(self.person, tuple) else MOST
        if self.named and self.named[-1] >= chosen:
            flag, value = self.label(self.named[-1])
            known = f"people 0 to {chosen - 1}" if chosen > 1 else "person 0, the only one"
            hint = "people are counted from 0, in the order of --person"
            raise ConfigError(flag, value, f"{known} of --person {dump_person(self.person or 'all')}", hint=hint)

    @property
    def face_files(self) -> dict[int, Path]:
        """Images of ``face_of`` by person. Raises ``ConfigError``."""
        files: dict[int, Path] = {}
        for text in self.face_of:
            match = re.fullmatch(r"\s*(\d{1,3})\s*=(.+)", text, re.ASCII | re.DOTALL)
            if match is None or int(match[1]) in files:
                raise ConfigError("--face-of", text, _FACE_OF)
            files[int(match[1])] = path_of(match[2], "--face-of")
        return files

    @property
    def names_faces(self) -> str | None:
        """The flag that names the face of a person; None if none does."""
        return "--pair" if self.pair else "--face-of" if self.face_of else None

    @property
    def named(self) -> tuple[int, ...]:
        """People whose face is named, by their index among the chosen ones."""
        return tuple(sorted({*(person for person, _ in self.pair or ()), *self.face_files}))

    def label(self, person: int) -> tuple[str, str]:
        """Flag and value that name the face of ``person``, for errors."""
        if person in self.face_files:
            return "--face-of", self._text(person)
        return "--pair", dump_pairs(self.pair or ())

    def _text(self, person: int) -> str:
        return f"{person}={self.face_files[person]}"
