"""Two drawn people animated by the small model: each with a face of one's own, and one face for everybody as before."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli.animate import fingerprint, prepare, reference_face
from stableanimator_cli.animate.identity_gate import FaceSimilarity, PeopleIdentityMeter
from stableanimator_cli.animate.replay import replay
from stableanimator_cli.animate.run import resolve_config, run
from stableanimator_cli.engine.conditioning import PeopleFaces
from stableanimator_cli.errors import BadInput, ConfigError, NoFace
from stableanimator_cli.media import VideoWriter, write_image
from stableanimator_cli.motion.left_to_right import people_left_to_right
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.puppets.scene import sample_scene
from tests.animate.clips import Heard, frames_of

SIZE, FRAMES = (64, 64), 3
FLAGS = {"model": "puppet", "size": "64x64", "steps": 1, "preset": "fast", "device": "cpu"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a couple, somebody else, and their motions."""
    folder = tmp_path_factory.mktemp("scene")
    two = sample_scene("test", 0, people=2, framing="portrait", size=SIZE, frames=FRAMES)
    write_image(folder / "two.png", two.reference((192, 192)).image)
    write_image(folder / "other.png", two.portrait((128, 128), 1).image)
    write_image(folder / "nobody.png", np.full((128, 128, 3), 200, np.uint8))
    save_motion(folder / "two.npz", two.motion())
    one = sample_scene("test", 1, framing="portrait", size=SIZE, frames=FRAMES)
    write_image(folder / "one.png", one.reference((128, 128)).image)
    save_motion(folder / "one.npz", one.motion())
    return folder


@pytest.fixture
def animate(scene: Path, tmp_path: Path):
    def go(reference="two.png", motion="two.npz", **flags):
        given = {"reference": scene / reference, "motion": scene / motion, "output": tmp_path / "o.mp4"}
        how = {"reporter": flags.pop("reporter")} if "reporter" in flags else {}
        report = run(flags=given | FLAGS | flags, restart=True, **how)
        return json.loads(report.record.read_text()), frames_of(report.video)

    return go


def test_each_person_gets_the_face_at_the_same_side(animate):
    heard = Heard()
    record, own = animate(reporter=heard, preview=True)
    assert [(row["person"], row["face"]) for row in record["people"]] == [(0, 0), (1, 1)]
    assert "person 0 gets face 0 of two.png, person 1 gets face 1 of two.png" in heard.notes
    assert [row["person"] for row in record["identity"]["people"]] == [0, 1]
    record, swapped = animate(pair="0:1,1:0")
    assert [(row["person"], row["face"]) for row in record["people"]] == [(0, 1), (1, 0)]
    assert (own != swapped).any()
    record, turned = animate(person="1,0", pair="0:1,1:0")  # the same pairs in another order
    assert [(row["person"], row["face"]) for row in record["people"]] == [(1, 1), (0, 0)]
    assert np.abs(turned.astype(int) - own).mean() < np.abs(swapped.astype(int) - own).mean()


def test_other_faces_than_those_of_the_reference_are_said_to_mix_with_them(animate, scene):
    """Not if each person has the face at the same side, and not if the faces of the reference are hidden."""

    def reported(reference: str = "two.png", motion: str = "two.npz", hide: object = "off", **flags: object) -> str:
        heard = Heard()
        animate(reference, motion, reporter=heard, hide_reference_face=hide, **flags)
        (note,) = [note for note in heard.notes if "mixes them" in note or "hidden" in note] or [""]
        return note

    other = str(scene / "other.png")
    hint = "--hide-reference-face hides them"
    assert hint in reported(pair="0:1,1:0")
    assert hint in reported(face_of=(f"1={other}",))
    assert hint in reported("one.png", "one.npz", face_of=(f"0={other}",))
    assert "mixes them" in reported("one.png", face_of=(f"1={other}",))
    assert "hide" not in reported("one.png", face_of=(f"1={other}",))  # it would hide the first person's own
    for hide in ("off", "exchanged"):
        assert not reported(hide=hide)
        assert not reported(pair="0:0,1:1", hide=hide)
        assert not reported(pair="0:0", hide=hide)
        assert not reported("one.png", "one.npz", pair="0:0", hide=hide)
    assert not reported(pair="0:1,1:0", hide=True)


def test_exchanged_faces_are_hidden_and_own_ones_are_not(animate, scene, monkeypatch):
    """As puppet's card says. Hidden boxes lie where the faces of the reference are."""
    hidden, request = [], prepare.RenderRequest
    monkeypatch.setattr(
        "stableanimator_cli.animate.prepare.RenderRequest",
        lambda **given: hidden.append(given["hidden_faces"]) or request(**given),
    )

    def found(reference: str = "two.png", motion: str = "two.npz", **flags: object) -> tuple[list[str], str]:
        """Sides of the picture where a face is hidden, and what is reported of it."""
        heard = Heard()
        record, _ = animate(reference, motion, reporter=heard, **flags)
        assert record["config"]["hide_reference_face"] == flags.get("hide_reference_face", "exchanged")
        boxes = hidden.pop()
        middles = [] if boxes is None else sorted((boxes[:, 0] + boxes[:, 2]) / 2)
        sides = ["left" if middle < SIZE[0] / 2 else "right" for middle in middles]
        notes = [note.removeprefix("two.png: ").partition(":")[0] for note in heard.notes if "hidden" in note]
        return sides, "".join(notes)

    other = str(scene / "other.png")
    assert found() == ([], "")
    assert found(pair="0:0,1:1") == ([], "")
    assert found("one.png", face_of=(f"1={other}",)) == ([], "")
    both, one = "faces 0, 1 are hidden", "face 1 is hidden"
    assert found(pair="0:1,1:0") == (["left", "right"], both)
    assert found(pair="0:1,1:0", hide_reference_face="off") == ([], "")
    assert found(face_of=(f"1={other}",)) == (["right"], one)
    assert found(face_of=(f"0={other}",)) == (["left"], one.replace("1", "0"))
    assert found(face_of=(f"0={other}",), hide_reference_face="all") == (["left", "right"], "")


def test_what_is_not_used_of_an_image_is_reported_once(animate, scene, tmp_path):
    two, heard = Image.open(scene / "two.png"), Heard()
    two.save(tmp_path / "two.gif", save_all=True, append_images=[two.rotate(180)])
    other = Image.open(scene / "other.png").convert("RGBA")
    other.putpixel((0, 0), (0, 0, 0, 0))
    other.save(tmp_path / "other.png")
    animate(tmp_path / "two.gif", face_of=(f"1={tmp_path / 'other.png'}",), reporter=heard)
    assert heard.notes.count("two.gif has 2 frames; the first is used") == 1
    assert heard.notes.count("other.png is transparent in part; the background becomes black") == 1


def test_three_people_each_have_their_face_and_their_record(animate, tmp_path):
    """From left to right, whatever their order in the motion; a swap of two changes the third less than them."""
    three = sample_scene("test", 0, people=3, framing="portrait", size=(256, 96), frames=FRAMES)
    motion = three.motion()
    order = [2, 0, 1]
    turned = dataclasses.replace(
        motion, keypoints=motion.keypoints[:, order], present=motion.present[:, order],
        face_boxes=motion.face_boxes[:, order], track=np.arange(3),
    )  # fmt: skip
    write_image(tmp_path / "three.png", three.reference((768, 288)).image)
    flags = {"motion": save_motion(tmp_path / "three.npz", turned), "size": "256x96", "preview": True}
    record, own = animate(tmp_path / "three.png", steps=4, min_csim=-1.0, **flags)
    left_to_right = people_left_to_right(turned, range(3))
    assert [(row["person"], row["face"]) for row in record["people"]] == [
        (person, left_to_right.index(person)) for person in range(3)
    ]
    curves = record["identity"]["people"]
    assert [row["person"] for row in curves] == [0, 1, 2]
    assert all(len(row["similarity"]) == FRAMES for row in curves)
    assert record["gate"]["result"] == "passed"
    first, second, third = left_to_right
    pairs = f"{first}:1,{second}:0,{third}:2"
    _, swapped = animate(tmp_path / "three.png", pair=pairs, steps=4, **flags)
    moved = np.abs(own.astype(int) - swapped).mean(axis=(0, 1, 3))  # by column
    heads = [slice(*np.clip(turned.face_boxes[0, person, ::2], 0, 256).astype(int)) for person in left_to_right]
    assert min(moved[heads[0]].mean(), moved[heads[1]].mean()) > 1.2 * moved[heads[2]].mean()


def test_a_person_without_a_curve_in_the_preview_is_reported(animate, monkeypatch):
    seen = FaceSimilarity.of_people(np.array([[0.5, np.nan]] * FRAMES), (0, 1))
    monkeypatch.setattr(PeopleIdentityMeter, "result", lambda meter: seen)
    heard = Heard()
    animate(reporter=heard, preview=True)
    assert "o.preview.mp4 has no similarity curve of person 1, who shows no face" in heard.warnings


def test_numbers_of_a_video_that_starts_late_are_those_of_the_full_video(animate, tmp_path):
    """The one on the left leaves: whoever stays is person 1, not 0, of the later frames too."""
    scene = sample_scene("test", 156116, clip=189, people=2, framing="portrait", size=(256, 256), frames=1)
    both = np.ascontiguousarray(next(iter(scene.clip())).image)
    one = both.copy()
    one[:, :128] = both[2, 2]
    with VideoWriter(tmp_path / "v.mp4", (256, 256), Fraction(8), lossless=True) as video:
        for frame in range(24):
            video.write(both if frame < 12 else one)
    flags, late = {"motion": tmp_path / "v.mp4", "motion_kind": "video"}, Heard()
    record, shown = animate(frames="14:16", person="1", reporter=late, **flags)
    assert record["motion"] == {"frames": [14, 15], "times": ["7/4", "15/8"]}
    words = "v.mp4: people are detected from frame 0, not 14, so that they have the numbers of the full video"
    assert words in late.notes
    _, largest = animate(frames="14:16", person="largest", **flags)
    np.testing.assert_array_equal(shown, largest)  # the only one there
    with pytest.raises(BadInput, match="no person in any frame"):
        animate(frames="14:16", person="0", **flags)
    early = Heard()
    record, _ = animate(frames="0:2", pair="0:1", reporter=early, **flags)
    assert [(row["person"], row["face"]) for row in record["people"]] == [(0, 1)]
    assert not any("numbers of the full video" in text for text in early.notes)
    unnamed = Heard()
    animate(frames="6:8", reporter=unnamed, **flags)
    assert any(text.startswith("v.mp4: people are numbered as they appear from frame 6 on") for text in unnamed.notes)


def test_one_face_for_everybody_is_the_run_of_before(animate, scene, tmp_path):
    heard = Heard()
    record, none = animate(pair="none", reporter=heard)
    assert record["people"] is None
    assert "two.png: 2 faces, the largest is used" in heard.notes
    old = json.loads((tmp_path / "o.json").read_text())
    del old["people"], old["config"]["people"]  # a record of a version that knew nothing of it
    (tmp_path / "o.json").write_text(json.dumps(old))
    repeated = replay(tmp_path / "o.mp4")
    assert repeated.differences == ()
    np.testing.assert_array_equal(none, frames_of(repeated.replay))


def test_a_face_of_another_image_for_the_only_person(animate, scene, tmp_path):
    record, other = animate("one.png", "one.npz", face_of=(f"0={scene / 'other.png'}",))
    assert record["people"][0]["image"].endswith("other.png")
    assert record["inputs"]["face_of_0"]["path"].endswith("other.png")
    _, plain = animate("one.png", "one.npz")
    assert (other != plain).any()
    repeated = replay(tmp_path / "o.mp4")
    assert repeated.differences == ()


def test_face_optimisation_is_towards_each_ones_own_face(animate, scene):
    record, _ = animate(preset="standard", face_of=(f"1={scene / 'other.png'}",), refine_iters=1, size="96x96")
    assert record["face_optimization"] == "crop"
    assert record["refined"][0]["faces"] == 2 * FRAMES
    assert record["faces_refined"]["frames"] == FRAMES


def test_one_face_for_everybody_is_optimised_as_the_one_of_a_picture_of_one(animate, monkeypatch):
    """The second face of the picture is nobody's then: no person is moved towards it."""
    seen = []
    build = reference_face.face_optimization

    def remembered(*given, **more):
        seen.append((more["references"], more["boxes"]))
        return build(*given, **more)

    monkeypatch.setattr(reference_face, "face_optimization", remembered)
    heard = Heard()
    record, _ = animate(preset="standard", pair="none", refine_iters=1, size="96x96", reporter=heard)
    ((references, boxes),) = seen
    assert len(references) == boxes.shape[1] == 1
    assert record["refined"][0]["faces"] == FRAMES
    assert "two.npz: faces of 1 of 2 people are optimised, the largest" in heard.notes


def test_the_face_of_one_of_two_is_not_sought_at_the_other(animate, tmp_path):
    """Without points of faces the largest one of a frame may be anybody's."""
    motion = sample_scene("test", 0, people=2, framing="portrait", size=SIZE, frames=FRAMES).motion()
    motion.face_boxes[:] = np.nan
    motion.keypoints[:, :, 24:92, 2] = 0
    heard = Heard()
    flags = {"preset": "standard", "refine_iters": 1, "pair": "1:0", "reporter": heard}
    record, _ = animate(motion=save_motion(tmp_path / "faceless.npz", motion), **flags)
    assert record["face_optimization"] == "off"
    assert "faceless.npz: no frame has points of a face, so no face is optimised" in heard.warnings


def test_the_anchor_has_regions_of_its_own(animate, monkeypatch):
    seen = []

    def kept(*given):
        seen.append(faces(*given))
        return seen[-1]

    faces = prepare.faces_for_unet
    monkeypatch.setattr(prepare, "faces_for_unet", kept)
    animate(anchor="reference", window=3, overlap=1)
    assert isinstance(seen[0], PeopleFaces)
    assert seen[0].regions.shape == (1 + FRAMES, 3, 8, 8)
    assert seen[0].regions[0, 0, :, :4].mean() > 0.3 > seen[0].regions[0, 0, :, 4:].mean()
    animate(frames="1:3", fps=30)
    assert seen[1].regions.shape[1:] == (3, 8, 8)
    np.testing.assert_array_equal(seen[1].regions[0], seen[0].regions[2])  # frame 1, behind the anchor and frame 0
    np.testing.assert_array_equal(seen[1].regions[-1], seen[0].regions[3])


def test_who_leaves_the_frame_is_nobody_there(animate, scene, tmp_path):
    motion = sample_scene("test", 0, people=2, framing="portrait", size=SIZE, frames=FRAMES).motion()
    motion.keypoints[1:, 1, :, 0] += 4 * SIZE[0]
    motion.face_boxes[1:, 1] = np.nan
    motion.present[2, 1] = False
    motion.keypoints[2, 1] = np.nan
    save_motion(tmp_path / "leaves.npz", motion)
    record, video = animate(motion=tmp_path / "leaves.npz")
    assert len(record["people"]) == 2
    assert video.std() > 5


def test_what_cannot_be_is_refused_before_anything_is_drawn(animate, scene, tmp_path):
    with pytest.raises(NoFace, match=r"nobody.png: no face found, which --face-of 1=.*nobody.png needs"):
        animate(face_of=(f"1={scene / 'nobody.png'}",))
    with pytest.raises(NoFace, match=r"nobody.png: no face found"):
        animate("nobody.png", force=True)
    record, _ = animate("nobody.png", face_of=(f"1={scene / 'other.png'}",), force=True)
    assert [row["person"] for row in record["people"]] == [1]
    with pytest.raises(ConfigError, match=r"--face-of: found '2=.*', expected people 0 to 1"):
        animate(face_of=(f"2={scene / 'other.png'}",))


def test_the_full_frame_is_moved_towards_one_face_only(animate):
    words = r"--refine-region: found 'frame', expected box with the faces of 2 people"
    flags = {"preset": "standard", "refine_iters": 1, "refine_region": "frame"}
    with pytest.raises(ConfigError, match=words):
        animate("one.png", "one.npz", pair="0:0,1:1", **flags)  # before anything is read
    with pytest.raises(ConfigError, match=words):
        animate(**flags)  # people who were detected
    record, _ = animate(person="0", pair="0:1", **flags)
    assert record["refined"][0]["faces"] == FRAMES
    animate(pair="0:0,1:1", **flags | {"refine_face": "off"})


def test_a_plan_for_a_video_names_its_people(scene, tmp_path):
    with VideoWriter(tmp_path / "v.mp4", SIZE, Fraction(8)) as video:
        video.write(np.full((*SIZE, 3), 90, np.uint8))
    given = FLAGS | {"reference": scene / "two.png", "motion": tmp_path / "v.mp4", "output": tmp_path / "o.mp4"}
    planned = run(flags=given | {"motion_kind": "video", "person": "1,0", "pair": "0:1"}, plan_only=True)
    assert "people     person 1 gets face 1 of two.png; known only after detection: people 1, 0" in planned.summary()
    assert planned.to_json()["people"] == [{"person": 1, "image": str(scene / "two.png"), "face": 1}]


def test_a_plan_knows_the_people_of_keypoints(scene, tmp_path):
    given = FLAGS | {"reference": scene / "two.png", "motion": scene / "two.npz", "output": tmp_path / "o.mp4"}
    planned = run(flags=given | {"pair": "0:1,1:0"}, plan_only=True)
    assert "people     person 0 gets face 1 of two.png, person 1 gets face 0 of two.png" in planned.summary()
    assert [row["face"] for row in planned.to_json()["people"]] == [1, 0]
    with pytest.raises(ConfigError, match=r"--pair: found '2:0', expected people 0 to 1"):
        run(flags=given | {"pair": "2:0"}, plan_only=True)
    alone = run(flags=given | {"motion": scene / "one.npz"}, plan_only=True)
    assert "people" not in alone.summary()


def test_a_run_without_exchanged_faces_resumes_one_that_could_hide_none(scene: Path) -> None:
    """Checkpoints of older versions hold a switch, or nothing."""
    paths = {"reference": scene / "two.png", "motion": scene / "two.npz", "output": Path("o.mp4")}

    def facts(**flags: object) -> dict[str, str]:
        return fingerprint.settings(resolve_config(FLAGS | paths | flags, None)[0])

    now, exchanged = facts(), facts(pair="0:1,1:0")
    assert (now["hide_reference_face"], exchanged["hide_reference_face"]) == ("off", "exchanged")
    for older, expected in (("False", "off"), ("True", "all"), (None, "off")):
        stored = {name: value for name, value in now.items() if name != "hide_reference_face"}
        if older is not None:
            stored["hide_reference_face"] = older
        assert fingerprint.current_settings(stored, now) == now | {"hide_reference_face": expected}
