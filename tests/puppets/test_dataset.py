"""Folders of puppets are whole, true, and go on where they stopped."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.media import open_clip, read_image
from stableanimator_cli.motion.motion_file import load_motion
from stableanimator_cli.puppets import dataset
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets


def small(folder: Path, **changes) -> PuppetPlan:
    return PuppetPlan(**({"folder": folder, "videos": 2, "frames": 3, "size": (64, 48)} | changes))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> PuppetPlan:
    plan = small(tmp_path_factory.mktemp("puppets") / "figures", people=2, fps=Fraction(12))
    report = write_puppets(plan)
    assert (report.written, report.existing, report.frames) == (2, 0, 6)
    return plan


def test_videos_show_the_scenes(written):
    for n in range(2):
        clip = open_clip(written.folder / "videos" / f"{n:05d}.mp4")
        assert clip.size == (64, 48)
        assert clip.fps == 12
        pictures = [picture for _, picture in clip.frames()]
        assert len(pictures) == 3
        scene = written.scene(n)
        for t, picture in enumerate(pictures):
            # H.264 halves the colour's resolution, so a small picture comes back only nearly equal.
            assert np.abs(picture.astype(int) - scene.frame(t).image).mean() < 12


def test_truth_is_the_scenes_truth(written):
    scene = written.scene(1)
    motion = load_motion(written.folder / "truth" / "00001.npz")
    np.testing.assert_array_equal(motion.keypoints, scene.motion().keypoints)
    assert motion.times == (0, Fraction(1, 12), Fraction(2, 12))
    with np.load(written.folder / "truth" / "00001.faces.npz") as faces:
        np.testing.assert_array_equal(faces["boxes"], motion.face_boxes)
        assert faces["landmarks"].shape == (3, 2, 5, 2)
        assert list(faces["identities"]) == [person.identity.number for person in scene.people]
    np.testing.assert_array_equal(read_image(written.folder / "references" / "00001.png"), scene.reference().image)
    record = json.loads((written.folder / "truth" / "00001.json").read_text())
    assert record["people"][0]["identity"]["number"] == scene.people[0].identity.number
    assert len(record["people"][1]["behaviour"]) == 3
    for name in record["files"].values():
        assert (written.folder / name).exists()


def test_a_video_can_open_with_its_reference(tmp_path):
    plan = small(tmp_path / "f", videos=1, reference_first=True)
    report = write_puppets(plan)
    assert report.frames == 4
    pictures = [picture for _, picture in open_clip(plan.folder / "videos" / "00000.mp4").frames()]
    reference = read_image(plan.folder / "references" / "00000.png")
    assert len(pictures) == 4
    apart = [np.abs(picture.astype(float) - reference).mean() for picture in pictures]
    assert apart[0] < 0.5 * min(apart[1:])
    motion = load_motion(plan.folder / "truth" / "00000.npz")
    assert np.array_equal(motion.keypoints[0], plan.scene(0).reference().keypoints)
    assert np.array_equal(motion.keypoints[1], plan.scene(0).frame(0).keypoints)
    with pytest.raises(BadInput, match="reference_first"):
        write_puppets(small(tmp_path / "f", videos=1))


def test_nothing_half_written_lies_about(written):
    assert not [file for file in written.folder.rglob("*") if file.name.startswith(".")]


def test_a_cut_run_goes_on(tmp_path, monkeypatch):
    plan = small(tmp_path / "figures")
    real, calls = dataset.save_motion, []

    def fails(path, motion):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path, motion)

    monkeypatch.setattr(dataset, "save_motion", fails)
    with pytest.raises(KeyboardInterrupt):
        write_puppets(plan)
    monkeypatch.setattr(dataset, "save_motion", real)
    before = (plan.folder / "videos" / "00000.mp4").stat().st_mtime_ns
    report = write_puppets(plan)
    assert (report.written, report.existing) == (1, 1)
    assert (plan.folder / "videos" / "00000.mp4").stat().st_mtime_ns == before
    assert load_motion(plan.folder / "truth" / "00001.npz").size == (64, 48)


@pytest.mark.parametrize("name", ["videos/00000.mp4", "references/00000.png", "truth/00000.npz"])
def test_a_file_that_went_missing_is_written_again(tmp_path, name):
    plan = small(tmp_path / "figures")
    write_puppets(plan)
    content = (plan.folder / name).read_bytes()
    (plan.folder / name).unlink()
    report = write_puppets(plan)
    assert (report.written, report.existing) == (1, 1)
    assert (plan.folder / name).read_bytes() == content


def test_a_folder_can_grow_but_not_change(tmp_path):
    write_puppets(small(tmp_path / "figures", videos=1))
    assert write_puppets(small(tmp_path / "figures", videos=2)).written == 1
    with pytest.raises(BadInput, match=r"puppets.json: found seed 0, expected seed 1"):
        write_puppets(small(tmp_path / "figures", seed=1))


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="other things"):
        write_puppets(small(tmp_path))
    with pytest.raises(BadInput, match="found a file"):
        write_puppets(small(tmp_path / "mine.txt"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "puppets.json").write_text("[]")
    with pytest.raises(BadInput, match="it is an empty list, expected the settings of a puppets folder, an object"):
        write_puppets(small(tmp_path / "bad"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "mine.txt"]


def test_seeds_share_no_person():
    people = [
        {
            person.identity.number
            for n in (0, dataset.MAX_VIDEOS - 1)
            for person in small(Path("x"), seed=seed).scene(n).people
        }
        for seed in (0, 1, 2)
    ]
    assert len(set.union(*people)) == sum(map(len, people))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": (65, 64)}, "--size: found '65x64'"),
        ({"size": (16, 16)}, "--size"),
        ({"videos": 0}, "--videos"),
        ({"fps": Fraction(0)}, "--fps"),
        ({"people": 4}, "--people"),
        ({"split": "all"}, "--split"),
        ({"framing": "tight"}, "--framing"),
        ({"seed": -1}, "--seed"),
        ({"frames": 0}, "--frames"),
    ],
)
def test_wrong_plans_name_their_option(wrong, message):
    with pytest.raises(ConfigError, match=message):
        small(Path("x"), **wrong)
