"""Faces of several people for the engine: detected in the images that show them, placed where the people are."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from stableanimator_cli.animate.driving_frames import Driving
from stableanimator_cli.animate.inputs import read_reference
from stableanimator_cli.animate.people import PersonFace, left_to_right, pair_people, person_of_video, regions_of
from stableanimator_cli.animate.reference_face import ReferenceFace, mode_of
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.engine.conditioning import PeopleFaces
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.errors import NoFace
from stableanimator_cli.media.image import unused_content
from stableanimator_cli.motion.track import PersonSelector
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Face, ModelFolder, Motion


def people_in_video(
    config: AnimateConfig, image: np.ndarray, device: str, detectors: Detectors
) -> tuple[PersonSelector, Detectors]:
    """The people of a plain video to track: as many as there are faces for, unless ``--person`` names them.

    With several, the detectors read faces too: people are then also distinguished by appearance.
    """

    @functools.cache
    def reader() -> FaceReader | None:
        model = detectors.model
        if "face" not in model.files:
            return None
        return FaceReader(model.files["face"], model.face_channel_order, device, arena=False)

    def faces() -> int:
        opened, others = None if config.face_embedding is not None else reader(), len(config.people.face_files)
        return others + (0 if opened is None else sum(face.embedding is not None for face in opened.faces(image)))

    person = person_of_video(config.people, faces)
    return person, detectors if person == "largest" else replace(detectors, faces=reader())


def read_other_faces(config: AnimateConfig, engine: Engine, reporter: Reporter) -> dict[int, PersonFace]:
    """The largest face of each image of ``--face-of``, by person. Raises ``NoFace`` that names the image."""
    others: dict[int, PersonFace] = {}
    for index, path in config.people.face_files.items():
        image = read_reference(path)
        for message in unused_content(path):
            reporter.info(message)
        known = [face for face in engine.faces().faces(image) if face.embedding is not None]
        if not known:
            flag, value = config.people.label(index)
            hint = "use an image where the face is larger and seen from the front"
            raise NoFace(f"{path}: no face found, which {flag} {value} needs", hint=hint)
        if len(known) > 1:
            reporter.info(f"{path.name}: {len(known)} faces, the largest is used")
        others[index] = PersonFace(
            index=index, number=index, face=known[0], image=image, path=path, face_number=None
        )  # fmt: skip
    return others


def with_people(
    reference: ReferenceFace,
    config: AnimateConfig,
    image: np.ndarray,
    driving: Driving,
    others: dict[int, PersonFace],
    reporter: Reporter,
) -> ReferenceFace:
    """``reference`` with the people of ``driving`` who have a face of their own; the choice is reported."""
    name, motion, known = config.reference.name, driving.people, _known(reference)
    people = () if motion is None else pair_people(config, motion, driving.numbers, known, image, others)
    if not people:
        if len(known) > 1:
            why = ""
            if motion is None and config.people.pair is None:
                why = f": {config.motion.name} does not contain the positions of people"
            reporter.info(f"{name}: {len(known)} faces, the largest is used{why}")
        return reference
    reporter.info(", ".join(one.describe() for one in people))
    assert motion is not None
    without = [str(number) for index, number in enumerate(motion.track) if index not in {one.index for one in people}]
    if without:
        reporter.info(f"{config.motion.name}: person {', '.join(without)} gets no face")
    used = {one.face_number for one in people}
    if len(unused := set(range(len(known))) - used) and not others:
        reporter.info(f"{name}: face {', '.join(map(str, sorted(unused)))} from the left is not used")
    return ReferenceFace(vector=people[0].vector, faces=reference.faces, people=people)


def hidden_faces(
    config: AnimateConfig, model: ModelFolder, image: np.ndarray, driving: Driving, reference: ReferenceFace,
    reporter: Reporter,
) -> tuple[Face, ...]:  # fmt: skip
    """Faces of REFERENCE that are hidden. Those of people who get others' faces are reported, hidden or not."""
    if config.hide_reference_face == "all":
        return reference.faces
    replaced, own = _replaced_faces(config, model, image, driving, reference)
    name, hidden = config.reference.name, sorted(replaced - own)
    if config.hide_reference_face == "exchanged" and hidden:
        which = f"face {hidden[0]} is" if len(hidden) == 1 else f"faces {', '.join(map(str, hidden))} are"
        reporter.info(f"{name}: {which} hidden: the network would mix what it shows with the other face")
        ordered = left_to_right(_known(reference))
        return tuple(ordered[number] for number in hidden)
    if replaced:
        hint = "; --hide-reference-face hides them, for models trained so" if hidden else ""
        reporter.info(
            f"{name}: the network also sees the faces that it shows, and mixes them with those of others{hint}"
        )
    return ()


def _replaced_faces(
    config: AnimateConfig, model: ModelFolder, image: np.ndarray, driving: Driving, reference: ReferenceFace
) -> tuple[set[int], set[int]]:
    """Numbers of the faces of people who get others' faces, and of those who get their own."""
    motion, known, replaced, own = driving.people, _known(reference), set[int](), set[int]()
    if not (model.facts.embeds_face and known and reference.people and motion):
        return replaced, own
    unnamed = replace(config, people=replace(config.people, pair=None, face_of=()))
    usual = {one.index: one.face_number for one in pair_people(unnamed, motion, driving.numbers, known, image, {})}
    if not usual:  # all of them have the one face
        largest = next(number for number, face in enumerate(left_to_right(known)) if face is known[0])
        usual = dict.fromkeys(range(len(motion.track)), largest)
    for one in reference.people:
        number = usual.get(one.index)
        if number is not None:
            (own if one.face_number == number else replaced).add(number)
    return replaced, own


def _known(reference: ReferenceFace) -> list[Face]:
    """The faces of REFERENCE with an embedding, largest first."""
    return [face for face in reference.faces if face.embedding is not None]


def warn_of_shared_face(
    config: AnimateConfig, model: ModelFolder, driving: Driving, reference: ReferenceFace, reporter: Reporter
) -> None:
    """Report what several people share with a backbone that has no face vectors: the reference image, and one video of
    a face, whose expression all of them get."""
    if model.facts.embeds_face or driving.people is None or len(driving.people.track) < 2:
        return
    stream = driving.streams.get("face")
    shared = "" if stream is None or stream.person is None else f", with the expression of person {stream.person}"
    own = ""
    if reference.people or config.people.names_faces is not None:
        means = {"face optimisation": mode_of(config, model) != "off", "--min-csim": config.refine.min_csim is not None}
        used = " and ".join(name for name, on in means.items() if on)
        own = f"; {used or 'nothing'} distinguishes their faces"
    reporter.warning(
        f"{model.name} ({model.backbone}) conditions {len(driving.people.track)} people on one reference image and one "
        f"video of a face{shared}{own}"
    )


def faces_for_unet(
    reference: ReferenceFace, motion: Motion | None, anchor: np.ndarray | None
) -> np.ndarray | PeopleFaces | None:
    """One embedding for the full frame, or one per person where that person is. ``anchor`` are the weights
    float32[1,k+1,h/8,w/8] of a frame in front."""
    if motion is None or not reference.people or len(motion.track) == 1:
        return reference.vector
    regions = regions_of(motion, reference.people)
    if anchor is not None:
        regions = np.concatenate([anchor, regions])
    vectors = np.stack([one.vector for one in reference.people])
    return PeopleFaces(vectors=vectors.astype(np.float32), regions=regions)
