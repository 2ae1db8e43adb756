"""Who gets whose face: pairs by position, by number, from other images, and what is refused. Nothing is rendered."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.animate.driving import open_driving
from stableanimator_cli.animate.people import (
    PersonFace,
    PlannedPeople,
    UndetectedPeople,
    chosen_people,
    most_faces,
    pair_people,
    person_of_video,
    regions_of,
)
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.people import PeopleConfig, dump_pairs, dump_person, parse_pairs, parse_person
from stableanimator_cli.config.schema import resolve, to_toml
from stableanimator_cli.errors import ConfigError, NoFace, NoPerson
from stableanimator_cli.motion.left_to_right import people_left_to_right
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.person_regions import person_regions
from stableanimator_cli.motion.track import Largest, Numbers, largest_people
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.records import Face, Motion
from tests.animate.clips import Heard, skeleton_video

IMAGE = np.zeros((96, 96, 3), np.uint8)


def config(**people) -> AnimateConfig:
    return AnimateConfig(
        reference=Path("ref.png"), motion=Path("dance.npz"), output=Path("o.mp4"), people=PeopleConfig(**people)
    )


def motion(people: int = 2, frames: int = 4) -> Motion:
    return sample_scene("test", 0, people=people, framing="half", size=(96, 96), frames=frames).motion()


def face(x: float, width: float = 20) -> Face:
    box = np.array([x, 20, x + width, 45], np.float32)
    return Face(box=box, landmarks=np.zeros((5, 2), np.float32), score=1, embedding=np.full(512, x, np.float32))


def other(index: int) -> PersonFace:
    return PersonFace(
        index=index, number=-1, face=face(99), image=IMAGE, path=Path("other.png"), face_number=None
    )  # fmt: skip


def paired(people: Motion, faces: list[Face], others: tuple[int, ...] = (), **options) -> dict[int, float]:
    """Left side of the face (99: the other image's) by the person's number."""
    named = {index: other(index) for index in others}
    found = pair_people(config(**options), people, people.track.tolist(), faces, IMAGE, named)
    return {one.number: float(one.face.box[0]) for one in found}


def test_words_of_the_command_line_are_read_and_written():
    assert parse_person(" 1,0") == (1, 0)
    assert dump_person((1, 0)) == "1,0"
    assert dump_person(parse_person("largest")) == "largest"
    assert parse_pairs("0:1, 1:0") == ((0, 1), (1, 0))
    assert dump_pairs(parse_pairs("none")) == "none"
    assert PeopleConfig(face_of=("1=a=b.png",)).face_files == {1: Path("a=b.png")}


@pytest.mark.parametrize("text", ["", "a", "1,1", "-1", "1,", "0.5", "1;2", "²", ",".join(map(str, range(65)))])
def test_people_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match=r"--person: found .* expected largest, all, or different numbers"):
        parse_person(text)


@pytest.mark.parametrize("text", ["", "0", "0:", ":0", "0:0,", "0:0,0:1", "0:a", "0:-1", "0:0:0", "all"])
def test_pairs_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match=r"--pair: found .* expected PERSON:FACE, each person once"):
        parse_pairs(text)


def test_programs_may_give_numbers():
    assert parse_person([1, 0]) == parse_person((1, 0)) == (1, 0)
    assert parse_pairs([(0, 1), (1, 0)]) == parse_pairs(((0, 1), (1, 0))) == ((0, 1), (1, 0))
    assert parse_pairs(()) == ()


@pytest.mark.parametrize(
    "value", [((0, 1), (0, 0)), ((-1, 0),), (("a", 1),), (0, 1), {0: 1}, ((0, 1, 2),), (("0", True),)]
)
def test_numbers_that_are_no_pairs_are_refused(value):
    with pytest.raises(ConfigError, match=r"--pair: found .* expected PERSON:FACE, each person once"):
        parse_pairs(value)


@pytest.mark.parametrize("texts", [("1",), ("=a.png",), ("a=b.png",), ("1=a.png", "1=b.png"), ("-1=a.png",), ("1=",)])
def test_faces_of_other_images_that_cannot_be_are_refused(texts):
    with pytest.raises(ConfigError, match=r"--face-of: found .* expected PERSON=IMAGE, each person once"):
        PeopleConfig(face_of=texts)


def test_a_person_has_one_face():
    with pytest.raises(ConfigError, match=r"--face-of: found '1=a.png', expected a person that --pair does not name"):
        PeopleConfig(face_of=("1=a.png",), pair=((1, 0),))
    with pytest.raises(ConfigError, match=r"--pair: found 'none', expected a pairing"):
        PeopleConfig(face_of=("1=a.png",), pair=())
    flags = {"reference": "a.png", "motion": "b.npz", "output": "c.mp4", "face_embedding": "v.npy", "pair": "0:0"}
    with pytest.raises(ConfigError, match=r"--face-embedding: found 'v.npy', expected no --pair beside it"):
        resolve(AnimateConfig, flags)


def test_a_config_survives_its_file(tmp_path):
    made = config(person=(2, 0), pair=((0, 1),), face_of=("1=b.png",))
    (tmp_path / "run.toml").write_text(to_toml(made))
    assert resolve(AnimateConfig, {}, tmp_path / "run.toml") == made
    assert made.inputs["face_of_1"] == Path("b.png")


def test_files_of_older_versions_are_read(tmp_path):
    (tmp_path / "old.toml").write_text(to_toml(config()).replace("[people]\nface_of = []\n", ""))
    assert "people" not in (tmp_path / "old.toml").read_text()
    assert resolve(AnimateConfig, {}, tmp_path / "old.toml") == config()


def test_the_largest_person_is_that_of_the_animated_frames(tmp_path):
    """As in a video: somebody larger in other frames may be absent in these."""
    people = motion(2)
    (overall,) = chosen_people(people, PeopleConfig(person="largest"), Path("a.npz")).track.tolist()
    present = people.present.copy()
    present[3, people.track == overall] = False
    save_motion(tmp_path / "a.npz", dataclasses.replace(people, present=present))
    late = AnimateConfig(
        reference=Path("ref.png"), motion=tmp_path / "a.npz", output=Path("o.mp4"), size=(96, 96),
        frames=(-1, None), people=PeopleConfig(person="largest"),
    )  # fmt: skip
    assert open_driving(late, Heard()).numbers == (1 - overall,)
    assert open_driving(dataclasses.replace(late, frames=(0, 2)), Heard()).numbers == (overall,)


def test_people_are_chosen_and_ordered():
    people = motion(3)
    assert chosen_people(people, PeopleConfig(), Path("a.npz")) is people
    assert chosen_people(people, PeopleConfig(person=(2, 0)), Path("a.npz")).track.tolist() == [2, 0]
    assert len(chosen_people(people, PeopleConfig(person="largest"), Path("a.npz")).track) == 1
    with pytest.raises(NoPerson, match=r"a.npz: person 3: found no person with that number, expected one of 0, 1, 2"):
        chosen_people(people, PeopleConfig(person=(0, 3)), Path("a.npz"))


@pytest.mark.parametrize(
    ("options", "faces", "expected"),
    [
        ({}, 1, "largest"),
        ({}, 0, "largest"),
        ({}, 2, Largest(2)),
        ({"pair": ()}, 2, "largest"),
        ({"pair": ((2, 0),)}, 1, Largest(3)),
        ({"person": "all"}, 0, "all"),
        ({"person": (1, 0)}, 2, Numbers((1, 0))),
    ],
)
def test_as_many_people_of_a_video_as_there_are_faces(options, faces, expected):
    assert person_of_video(PeopleConfig(**options), lambda: faces) == expected


def test_by_position_from_left_to_right():
    people = motion()
    left, right = people_left_to_right(people, [0, 1])
    assert people.keypoints[0, left, 1, 0] < people.keypoints[0, right, 1, 0]
    assert paired(people, [face(60, 25), face(10)]) == {left: 10, right: 60}
    swapped = chosen_people(people, PeopleConfig(person=(1, 0)), Path("a.npz"))
    assert paired(swapped, [face(60, 25), face(10)]) == {left: 10, right: 60}
    for smaller in (left, right):  # sizes of people decide who is paired, not with whom
        of_sizes = motion()
        neck = of_sizes.keypoints[:, smaller, 1:2, :2]
        of_sizes.keypoints[:, smaller, :, :2] = neck + (of_sizes.keypoints[:, smaller, :, :2] - neck) / 2
        assert largest_people(of_sizes, 2)[1] == smaller
        assert paired(of_sizes, [face(60, 25), face(10)]) == {left: 10, right: 60}


def test_the_first_frame_that_shows_all_decides_what_left_is():
    people = motion(frames=4)
    left, right = people_left_to_right(people, [0, 1])
    people.keypoints[2:, :, :, 0] = 96 - people.keypoints[2:, :, :, 0]
    people.face_boxes[2:, :, [0, 2]] = 96 - people.face_boxes[2:, :, [2, 0]]
    assert people_left_to_right(people, [0, 1]) == [left, right]
    people.present[:2, left] = False
    assert people_left_to_right(people, [0, 1]) == [right, left]


def test_pairs_are_by_number_and_others_get_none():
    people = motion()
    assert paired(people, [face(60, 25), face(10)], pair=((0, 1), (1, 0))) == {0: 60, 1: 10}
    assert paired(people, [face(60, 25), face(10)], pair=((1, 1),)) == {1: 60}
    assert paired(people, [face(60), face(10)], pair=((0, 1), (1, 1))) == {0: 60, 1: 60}


def test_faces_of_other_images():
    people, faces = motion(), [face(60, 25), face(10)]
    left, right = people_left_to_right(people, [0, 1])
    assert paired(people, faces, (right,), face_of=(f"{right}=o.png",)) == {left: 10, right: 99}
    # one face for the one person who has no other
    assert paired(people, faces[:1], (right,), face_of=(f"{right}=o.png",)) == {left: 60, right: 99}
    assert paired(people, [], (0,), face_of=("0=o.png",)) == {0: 99}
    assert paired(motion(1), [face(10)], (0,), face_of=("0=o.png",)) == {0: 99}


def test_the_largest_of_both_sides():
    people = motion(3)
    people.keypoints[:, 1, :, :2] /= 2
    found = paired(people, [face(60, 25), face(10)])
    assert found.keys() == {0, 2}
    assert sorted(paired(motion(), [face(40, 30), face(70, 25), face(5, 8)]).values()) == [40, 70]


@pytest.mark.parametrize(
    ("people", "faces", "options"), [(1, 2, {}), (2, 1, {}), (2, 0, {}), (2, 2, {"pair": ()}), (1, 1, {})]
)
def test_one_face_is_for_everybody_as_before(people, faces, options):
    assert paired(motion(people), [face(60, 25), face(10)][:faces], **options) == {}


@pytest.mark.parametrize(
    ("people", "options", "words"),
    [
        (2, {"pair": ((0, 0), (2, 1))}, r"--pair: found '0:0,2:1', expected people 0 to 1 of dance.npz"),
        (1, {"pair": ((1, 0),)}, r"--pair: found '1:0', expected person 0, the only one of dance.npz"),
        (2, {"pair": ((0, 2),)}, r"--pair: found '0:2', expected faces 0 to 1 of ref.png"),
        (2, {"face_of": ("3=b.png",)}, r"--face-of: found '3=b.png', expected people 0 to 1 of dance.npz"),
    ],
)
def test_who_is_not_there_is_refused(people, options, words):
    with pytest.raises(ConfigError, match=words):
        paired(motion(people), [face(60), face(10)], **options)


def test_a_pair_without_any_face_in_the_reference():
    with pytest.raises(NoFace, match=r"ref.png: no face found, which --pair 0:0 needs"):
        paired(motion(), [], pair=((0, 0),))


def test_people_without_a_face_count_as_nobody():
    people = motion(3)
    faces = pair_people(config(pair=((2, 0), (0, 1))), people, [0, 1, 2], [face(60, 25), face(10)], IMAGE, {})
    weights = regions_of(people, faces)
    assert weights.shape == (4, 3, 12, 12)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    own = person_regions(people.keypoints, people.present, people.face_boxes, people.size)
    np.testing.assert_array_equal(weights[:, :2], own[:, [0, 2]])
    np.testing.assert_allclose(weights[:, 2], own[:, 1] + own[:, 3])


def driven(path: Path, *, reporter: Heard | None = None, **options):
    made = AnimateConfig(
        reference=Path("ref.png"), motion=path, output=Path("o.mp4"), size=(64, 64),
        people=PeopleConfig(**options.pop("people", {})), **options,
    )  # fmt: skip
    return open_driving(made, reporter or Heard())


def test_regions_follow_the_frames_of_the_output(tmp_path):
    path = save_motion(tmp_path / "a.npz", motion(frames=8))
    full = driven(path)
    assert full.people is not None
    assert full.people.size == (64, 64)
    cut = driven(path, frames=(2, 6), fps=full.fps * 2)
    assert cut.people is not None
    assert len(cut.people) == len(cut.skeletons) == len(cut.motion_frames)
    np.testing.assert_array_equal(cut.people.keypoints, full.people.keypoints[list(cut.motion_frames)])


def test_people_who_are_in_no_frame_of_the_range_are_left_out(tmp_path):
    people = motion(frames=6)
    people.present[:3, 1] = False
    path = save_motion(tmp_path / "a.npz", people)
    found = driven(path, frames=(0, 3)).people
    assert found is not None
    assert found.track.tolist() == [0]
    assert driven(path).people.track.tolist() == [0, 1]


def test_faces_are_those_of_the_range_the_largest_first(tmp_path):
    """Somebody who is in no frame of it has none, however large in others."""
    people = motion(frames=6)
    people.present[:3, 0] = False
    people.face_boxes[:] = (10, 10, 30, 40)
    people.face_boxes[:, 0] *= 2
    assert driven(save_motion(tmp_path / "a.npz", people)).faces.shape == (6, 2, 4)
    faces = driven(tmp_path / "a.npz", frames=(0, 3)).faces
    assert faces.shape == (3, 1, 4)
    assert np.isfinite(faces).all()


@pytest.mark.parametrize(("person", "own"), [(None, 1), ((1, 0), 0)])
def test_people_keep_their_place_in_a_range_that_lacks_somebody(tmp_path, person, own):
    """The only one who is left is not taken for the first of all."""
    people, faces = motion(frames=6), [face(60, 25), face(10)]
    people.present[:3, 0] = False
    path = save_motion(tmp_path / "a.npz", people)
    found = driven(path, people={"person": person}, frames=(0, 3))
    assert found.people is not None
    assert (found.people.track.tolist(), found.numbers) == ([1], (0, 1) if own else (1, 0))
    given = (found.people, found.numbers, faces, IMAGE)
    made = config(person=person, pair=((own, 1),))
    assert [(one.number, one.face_number) for one in pair_people(made, *given, {})] == [(1, 1)]
    planned = PlannedPeople.of(made, found.people, found.numbers)
    assert planned is not None
    assert planned.faces == {1: 1}
    (other_face,) = pair_people(config(person=person, face_of=(f"{own}=o.png",)), *given, {own: other(own)})
    assert (other_face.number, other_face.index, other_face.path) == (1, 0, Path("other.png"))
    words = r"--pair: found '.:1', expected people of the animated frames of dance.npz, where person 0 is absent"
    with pytest.raises(ConfigError, match=words):
        pair_people(config(person=person, pair=((1 - own, 1),)), *given, {})


def test_a_chosen_person_who_is_in_no_frame_is_reported(tmp_path):
    people, heard = motion(frames=6), Heard()
    people.present[:3, 0] = False
    path = save_motion(tmp_path / "a.npz", people)
    driven(path, people={"person": (1, 0)}, frames=(0, 3), reporter=heard)
    assert heard.warnings == ["a.npz: person 0 is in none of the animated frames"]


def test_only_chosen_people_are_drawn(tmp_path):
    path = save_motion(tmp_path / "a.npz", motion())
    both, one = (driven(path, people={"person": who}).skeletons.frame(0) for who in ((0, 1), (1,)))
    assert (both > 0).sum() > (one > 0).sum() + 10 > 20


def test_a_drawn_motion_knows_its_people_only_with_the_file_beside_it(tmp_path):
    path = skeleton_video(tmp_path / "poses.mp4", 4)
    assert driven(path).people is None
    for people in ({"pair": ((0, 0),)}, {"face_of": ("0=b.png",)}, {"person": (0,)}):
        with pytest.raises(ConfigError, match=r"expected a motion with keypoints, and .*poses.mp4 is drawn"):
            driven(path, people=people)
    shown = motion(frames=4)
    scaled = Motion(
        keypoints=shown.keypoints, present=shown.present, track=shown.track, face_boxes=shown.face_boxes,
        size=(128, 128), times=shown.times,
    )  # fmt: skip
    save_motion(tmp_path / "poses.npz", scaled)
    found = driven(path, people={"pair": ((0, 0),)}, frames=(1, 3)).people
    assert found is not None
    assert (len(found), found.track.tolist()) == (2, [0, 1])
    with pytest.raises(ConfigError, match=r"--person: found '0'"):
        driven(path, people={"person": (0,)})


@pytest.mark.parametrize(
    ("options", "people", "most"),
    [({}, 2, 2), ({}, 1, 0), ({"pair": ()}, 2, 0), ({"pair": ((0, 0),)}, 2, 1), ({}, None, 0),
     ({"pair": ((0, 0), (1, 1))}, None, 2), ({"face_of": ("1=b.png",)}, None, 1)],
)  # fmt: skip
def test_memory_is_planned_for_as_many_faces_as_there_may_be(options, people, most):
    assert most_faces(config(**options), None if people is None else motion(people)) == most


def test_a_plan_names_faces_that_are_known():
    people = motion()
    assert PlannedPeople.of(config(), motion(1), (0,)) is None
    assert PlannedPeople.of(config(), None, (0,)) is None
    planned = PlannedPeople.of(config(pair=((0, 1),), face_of=("1=dir/b.png",)), people, (0, 1))
    assert planned is not None
    assert planned.describe() == "person 0 gets face 1 of ref.png, person 1 gets the face of b.png"
    assert planned.to_json() == [
        {"person": 0, "image": "ref.png", "face": 1},
        {"person": 1, "image": "dir/b.png", "face": None},
    ]
    planned = PlannedPeople.of(config(face_of=("1=b.png",)), people, (0, 1))
    assert planned is not None
    assert planned.describe().endswith("person 0 by position from left to right, if ref.png shows a face for each")
    words = {
        (): "people 0, 1 by position from left to right, if ref.png shows several faces",
        (("pair", ()),): "people 0, 1 get the one face",
        (("pair", ((0, 0),)),): "person 0 gets face 0 of ref.png, person 1 gets no face",
    }
    for options, text in words.items():
        planned = PlannedPeople.of(config(**dict(options)), people, (0, 1))
        assert planned is not None
        assert planned.describe() == text


@pytest.mark.parametrize(
    ("people", "text"),
    [
        (
            {},
            "known only after detection: as many of the largest people as ref.png shows faces, numbered from left to "
            "right",
        ),
        (
            {"pair": ((1, 0),)},
            "person 1 of those chosen gets face 0 of ref.png; known only after detection: as many of the largest "
            "people as ref.png shows faces, at least 2, numbered from left to right",
        ),
        (
            {"person": (2, 0), "pair": ((0, 1),), "face_of": ("1=dir/b.png",)},
            "person 2 gets face 1 of ref.png; person 0 gets the face of b.png; known only after detection: people 2, 0 "
            "of the video, numbered from left to right",
        ),
        ({"person": "all"}, "known only after detection: everybody, numbered from left to right"),
    ],
)  # fmt: skip
def test_a_plan_for_a_video_says_what_is_known_before_detection(people, text):
    planned = UndetectedPeople.of(config(**people))
    assert planned is not None
    assert planned.describe() == text


def test_a_plan_for_a_video_of_one_person_has_nothing_to_say():
    assert UndetectedPeople.of(config(person="largest")) is None
    assert UndetectedPeople.of(config(pair=())) is None
    planned = UndetectedPeople.of(config(person=(2, 0), pair=((0, 1),), face_of=("1=b.png",)))
    assert planned is not None
    assert planned.to_json() == [
        {"person": 2, "image": "ref.png", "face": 1},
        {"person": 0, "image": "b.png", "face": None},
    ]


def test_who_is_not_chosen_is_refused_before_the_motion_is_read():
    with pytest.raises(ConfigError, match=r"--pair: found '2:0', expected people 0 to 1 of --person 1,0"):
        config(person=(1, 0), pair=((2, 0),))
    with pytest.raises(ConfigError, match=r"--face-of: found '1=b.png', expected person 0, the only one of --person 3"):
        config(person=(3,), face_of=("1=b.png",))
