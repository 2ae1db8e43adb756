"""People of the motion: the animated ones, and the face of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.people import PeopleConfig, dump_pairs, dump_person
from stableanimator_cli.errors import ConfigError, NoFace, NoPerson
from stableanimator_cli.motion.left_to_right import people_left_to_right
from stableanimator_cli.motion.person_regions import person_regions
from stableanimator_cli.motion.track import Largest, Numbers, PersonSelector, largest, largest_people, select
from stableanimator_cli.records import STRIDE, Face, Motion


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonFace:
    """The face of one person. ``index`` counts the people of ``Driving.people``, ``number`` is the motion's own.

    ``face`` was detected in ``image`` uint8[h,w,3], which is the file ``path``; ``face_number`` counts the faces of
    REFERENCE from left to right, None for another image.
    """

    index: int
    number: int
    face: Face
    image: np.ndarray
    path: Path
    face_number: int | None

    @property
    def vector(self) -> np.ndarray:
        assert self.face.embedding is not None  # only faces with an embedding are paired
        return self.face.embedding

    def describe(self) -> str:
        which = "the face" if self.face_number is None else f"face {self.face_number}"
        return f"person {self.number} gets {which} of {self.path.name}"

    def to_json(self) -> dict[str, Any]:
        box = [round(float(side), 2) for side in self.face.box]
        return {"person": self.number, "image": str(self.path), "face": self.face_number, "box": box}


def chosen_people(
    motion: Motion, config: PeopleConfig, path: Path, frames: tuple[int | None, int | None] = (None, None)
) -> Motion:
    """The motion of ``--person``'s people; the largest is that of ``frames``, as in a video, or of all frames if
    these show no person. Raises ``NoPerson`` that names ``path`` if one is not there."""
    if config.person is None:
        return motion
    person = _person(config.person)
    if person == "largest" and motion.present[slice(*frames)].any():
        shown = people_of_frames(motion, range(len(motion))[slice(*frames)])
        person = int(shown.track[largest(shown)])
    try:
        return select(motion, person)
    except NoPerson as error:
        raise NoPerson(f"{path}: {error.message}", hint=error.hint) from None


def person_of_video(config: PeopleConfig, faces: Callable[[], int]) -> PersonSelector:
    """People of a plain video to track: ``--person``, else as many of the largest as there are ``faces``."""
    if config.person is not None:
        return _person(config.person)
    if config.pair == ():
        return "largest"
    count = max(faces(), *(index + 1 for index in config.named), 1)
    return "largest" if count == 1 else Largest(count)


def _person(chosen: str | tuple[int, ...]) -> PersonSelector:
    if isinstance(chosen, str):
        return "largest" if chosen == "largest" else "all"
    return Numbers(chosen)


def numbers_of(motion: Motion) -> tuple[int, ...]:
    """Track numbers of the people who are present in any frame."""
    return tuple(motion.track[motion.present.any(axis=0)].tolist())


def people_of_frames(motion: Motion, frames: Sequence[int]) -> Motion:
    """The motion in these frames, some twice or not at all, with the people who are present in one of them."""
    rows = list(frames)
    people = np.flatnonzero(motion.present[rows].any(axis=0))
    return dataclasses.replace(
        motion,
        keypoints=motion.keypoints[rows][:, people],
        present=motion.present[rows][:, people],
        face_boxes=motion.face_boxes[rows][:, people],
        track=motion.track[people],
        times=None,
    )


def check_people_of_images(config: PeopleConfig, path: Path, beside: Motion | None) -> None:
    """Raise ``ConfigError`` if people are chosen, or their faces named, in skeleton images that do not allow it.

    ``beside`` is the motion of the same images; without one it is unknown who is where.
    """
    hint = f"give the motion as keypoints: {path.with_suffix('.npz')}, which sa preprocess writes beside a video"
    if config.person is not None:
        shown = dump_person(config.person)
        raise ConfigError("--person", shown, f"a motion with keypoints, and {path} is drawn", hint=hint)
    if beside is None and config.names_faces is not None:
        value = config.label(config.named[0])[1]
        raise ConfigError(config.names_faces, value, f"a motion with keypoints, and {path} is drawn", hint=hint)


def named_people(config: PeopleConfig, motion: Motion, numbers: Sequence[int], path: Path) -> dict[int, int]:
    """Index in ``motion`` of each person whom ``--pair`` or ``--face-of`` names, by the index among all chosen people.

    ``numbers`` are those of the chosen people, also of those who are in none of the frames. Raises ``ConfigError`` if
    somebody is named who was not chosen, or is in none of the frames.
    """
    count, tracks, found = len(numbers), motion.track.tolist(), {}
    for index in config.named:
        flag, value = config.label(index)
        if index >= count:
            people = f"person 0, the only one of {path}" if count == 1 else f"people 0 to {count - 1} of {path}"
            hint = "add --person all" if config.person == "largest" else "people are counted from 0, after --person"
            raise ConfigError(flag, value, people, hint=hint)
        if numbers[index] not in tracks:
            people = f"people of the animated frames of {path}, where person {numbers[index]} is absent"
            raise ConfigError(flag, value, people, hint="choose other --frames, or name only who is in them")
        found[index] = tracks.index(numbers[index])
    return found


def left_to_right(faces: Sequence[Face]) -> list[Face]:
    """Faces in the order of their numbers."""
    return sorted(faces, key=lambda face: float(face.box[0] + face.box[2]))


def pair_people(
    config: AnimateConfig, motion: Motion, numbers: Sequence[int], faces: Sequence[Face], image: np.ndarray,
    others: Mapping[int, PersonFace],
) -> tuple[PersonFace, ...]:  # fmt: skip
    """The people with a known face. Empty if one face is for everybody: nothing is named, and the motion has one
    person, or REFERENCE one face.

    ``numbers``: see ``named_people``. ``faces`` are those of REFERENCE with an embedding, largest first, ``image`` is
    REFERENCE, and ``others`` are the faces of ``--face-of``, by the index among the chosen people. Raises
    ``ConfigError`` if a person or face is named that is not there.
    """
    people = config.people
    named = named_people(people, motion, numbers, config.motion)
    others = {named[index]: dataclasses.replace(other, index=named[index]) for index, other in others.items()}
    count, ordered = len(motion.track), left_to_right(faces)
    if people.pair:
        text = dump_pairs(people.pair)
        if not ordered:
            hint = "use an image where faces are larger, or --face-of"
            raise NoFace(f"{config.reference}: no face found, which --pair {text} needs", hint=hint)
        if max(number for _, number in people.pair) >= len(ordered):
            known = f"faces 0 to {len(ordered) - 1}" if len(ordered) > 1 else "face 0, the only one"
            hint = "faces are counted from left to right, from 0"
            raise ConfigError("--pair", text, f"{known} of {config.reference}", hint=hint)
        pairs = {named[person]: number for person, number in people.pair}
    elif people.pair == () or config.face_embedding is not None or (not others and min(count, len(faces)) < 2):
        return ()
    else:
        pairs = _by_position(motion, faces, ordered, others)
    paired = {
        index: PersonFace(
            index=index, number=int(motion.track[index]), face=ordered[number], image=image, path=config.reference,
            face_number=number,
        )
        for index, number in pairs.items()
    }  # fmt: skip
    paired |= {index: dataclasses.replace(other, number=int(motion.track[index])) for index, other in others.items()}
    return tuple(paired[index] for index in sorted(paired))


def _by_position(
    motion: Motion, faces: Sequence[Face], ordered: Sequence[Face], others: Mapping[int, PersonFace]
) -> dict[int, int]:
    """Number of the face of each person, both from left to right. The largest of both if one side has more; people of
    ``others`` count only if there are faces for all."""
    people = largest_people(motion, len(motion.track))
    if len(faces) < len(people):
        people = [index for index in people if index not in others]
    count = min(len(people), len(faces))
    numbers = sorted(number for number, face in enumerate(ordered) if any(face is one for one in faces[:count]))
    return dict(zip(people_left_to_right(motion, people[:count]), numbers, strict=True))


def most_faces(config: AnimateConfig, motion: Motion | None) -> int:
    """The most people who can get a face of their own, before faces are detected; 0 if one face is for everybody. If
    people are not known, as in the plan for a video of people: those whose face is named."""
    people = config.people
    if motion is None:
        return len(people.named)
    if len(motion.track) < 2 or people.pair == () or config.face_embedding is not None:
        return 0
    return len(people.named) if people.pair else len(motion.track)


def regions_of(motion: Motion, faces: Sequence[PersonFace]) -> np.ndarray:
    """Weights float32[t,k+1,h/8,w/8] of the people of ``faces``, and of all the rest."""
    weights = person_regions(motion.keypoints, motion.present, motion.face_boxes, motion.size, cell=STRIDE)
    known = [one.index for one in faces]
    rest = [index for index in range(weights.shape[1]) if index not in known]
    return np.concatenate([weights[:, known], weights[:, rest].sum(axis=1, keepdims=True)], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPeople:
    """For a plan: the numbers of the people of a motion with keypoints, and the face of each as it was named: a file,
    or the number of a face of ``reference``; None if detection will decide."""

    faces: Mapping[int, Path | int | None]
    reference: Path
    by_position: bool

    @classmethod
    def of(cls, config: AnimateConfig, motion: Motion | None, numbers: Sequence[int]) -> PlannedPeople | None:
        """None if the people are not known, or one face is for everybody. ``numbers``: see ``named_people``."""
        people = config.people
        if motion is None or (people.names_faces is None and len(motion.track) < 2):
            return None
        named: dict[int, Path | int] = {**dict(people.pair or ()), **people.face_files}
        by_number = {number: named.get(index) for index, number in enumerate(numbers)}
        faces = {number: by_number.get(number) for number in motion.track.tolist()}
        by_position = people.pair is None and config.face_embedding is None
        return cls(faces=faces, reference=config.reference, by_position=by_position)

    def describe(self) -> str:
        parts = []
        for number, face in self.faces.items():
            if face is not None:
                which = f"face {face} of {self.reference.name}" if isinstance(face, int) else f"the face of {face.name}"
                parts.append(f"person {number} gets {which}")
        rest = [str(number) for number, face in self.faces.items() if face is None]
        subject, gets = (
            f"{'person' if len(rest) == 1 else 'people'} {', '.join(rest)}",
            "gets" if len(rest) == 1 else "get",
        )
        if rest and self.by_position:
            enough = "a face for each" if parts else "several faces"
            parts.append(f"{subject} by position from left to right, if {self.reference.name} shows {enough}")
        elif rest:
            parts.append(f"{subject} {gets} {'no face' if parts else 'the one face'}")
        return ", ".join(parts)

    def to_json(self) -> list[dict[str, Any]]:
        """Per person: the number, and the image and number of the face; None if detection will decide."""
        rows = []
        for number, face in self.faces.items():
            image = None if face is None else str(self.reference if isinstance(face, int) else face)
            rows.append({"person": number, "image": image, "face": face if isinstance(face, int) else None})
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class UndetectedPeople:
    """For the plan of a plain video: the people of ``--person``, and those whose face is named. The rest is known only
    after detection."""

    config: PeopleConfig
    reference: Path

    @classmethod
    def of(cls, config: AnimateConfig) -> UndetectedPeople | None:
        """None if it is the largest person with the largest face."""
        people = config.people
        alone = people.person == "largest" or (people.person is None and people.pair == ())
        if alone and people.names_faces is None:
            return None
        return cls(config=people, reference=config.reference)

    def describe(self) -> str:
        person = self.config.person
        if isinstance(person, tuple):
            numbers = ", ".join(map(str, person))
            subject = f"{'person' if len(person) == 1 else 'people'} {numbers} of the video"
        elif person is not None:
            subject = "the largest person" if person == "largest" else "everybody"
        else:
            minimum = max((index + 1 for index in self.config.named), default=1)
            subject = f"as many of the largest people as {self.reference.name} shows faces"
            subject += f", at least {minimum}" if minimum > 1 else ""
        return "; ".join([*self._named(), f"known only after detection: {subject}, numbered from left to right"])

    def to_json(self) -> list[dict[str, Any]]:
        """Per person whose face is named: the number if it is known before detection, and image and face."""
        rows = []
        for index, face in self._faces().items():
            image, number = (self.reference, face) if isinstance(face, int) else (face, None)
            rows.append({"person": self._number(index), "image": str(image), "face": number})
        return rows

    def _faces(self) -> dict[int, int | Path]:
        return {**dict(self.config.pair or ()), **self.config.face_files}

    def _number(self, index: int) -> int | None:
        """The number of a chosen person in the video."""
        person = self.config.person
        return person[index] if isinstance(person, tuple) and index < len(person) else None

    def _named(self) -> list[str]:
        """Each person whose face is named, and that face, in words."""
        rows = []
        for index, face in sorted(self._faces().items()):
            number = self._number(index)
            subject = f"person {index} of those chosen" if number is None else f"person {number}"
            which = f"face {face} of {self.reference.name}" if isinstance(face, int) else f"the face of {face.name}"
            rows.append(f"{subject} gets {which}")
        return rows
