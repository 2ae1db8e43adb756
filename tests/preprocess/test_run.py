"""Videos to clip folders: what is in them, what is done again and what is not, who makes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli import clip_folder
from stableanimator_cli.catalogue import download
from stableanimator_cli.detect.pose import PoseEstimator
from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing, NoPerson, SaError
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.preprocess import clip as clip_module
from tests.animate.clips import Heard
from tests.conftest import largest_file
from tests.media_samples import make_video
from tests.preprocess import drawn


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Three videos, one of which breaks off, and one without anybody."""
    folder = tmp_path / "videos"
    drawn.write_video(folder / "a.mp4", drawn.walk(18, missing=(4,)), fps=Fraction(30000, 1001))
    drawn.write_video(folder / "deep" / "b.mp4", drawn.walk(20))
    drawn.write_video(folder / "empty.mp4", [None] * 3)
    (folder / "broken.mp4").write_bytes(b"this is no video" * 50)
    (folder / "notes.md").write_text("not a video")
    return folder


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]


def test_a_folder_of_videos_becomes_clips_an_index_and_a_report(preprocess, videos):
    report = preprocess(videos)
    out = videos.with_name("videos.clips")
    assert (report.output, report.clips, report.made, report.cached, report.exit_code) == (out, 2, 2, 0, 7)
    assert report.to_json()["error"] == "batch-failed"
    assert [(line["source"].split("/")[-1], line["status"], line["clip"]) for line in lines(out)] == [
        ("a.mp4", "ok", "a"), ("broken.mp4", "failed", None), ("b.mp4", "ok", "deep__b"), ("empty.mp4", "failed", None),
    ]  # fmt: skip
    assert [line["error"]["error"] for line in lines(out) if "error" in line] == ["bad-input", "no-person"]
    clip = clip_folder.open_folder(out / "a")
    assert (clip.frames, clip.size, clip.record["fps"]) == (18, drawn.SIZE, "30000/1001")
    assert clip.record["repairs"]["frames"] == 1
    assert clip.source.resolve() == (videos / "a.mp4").resolve()
    assert not os.path.isabs(os.readlink(out / "a" / "source.mp4"))
    motion, faces = clip.motion(), clip.faces()
    assert motion.times is not None
    assert motion.times[-1] == pytest.approx(17 * 1001 / 30000, abs=1e-3)
    assert len(faces) == 17  # one frame shows nobody
    np.testing.assert_array_equal(motion.face_boxes[0, 0], faces.boxes[0])
    assert clip.pictures().size == drawn.SIZE
    assert open_clip(out / "a" / "sheet.jpg").size[1] == 128


def test_clips_of_a_link_are_beside_the_link(preprocess, videos, tmp_path):
    link = tmp_path / "here" / "mine.mp4"
    link.parent.mkdir()
    link.symlink_to(videos / "a.mp4")
    assert preprocess(link).output == tmp_path / "here" / "mine.clips"
    assert not (videos / "a.clips").exists()


def test_what_is_done_is_not_done_again_and_what_changed_is(preprocess, videos):
    out = videos.with_name("videos.clips")
    preprocess(videos)
    before = drawn.clips_of(out)
    reporter = Heard()
    again = preprocess(videos, reporter=reporter)
    assert (again.made, again.cached) == (0, 2)
    assert "2 finished clips of an earlier run skipped" in reporter.notes
    assert drawn.clips_of(out) == before
    inode = (out / "a" / "motion.npz").stat().st_ino
    drawn.write_video(videos / "deep" / "b.mp4", drawn.walk(20, step=3))
    changed = preprocess(videos)
    assert (changed.made, changed.cached) == (1, 1)
    assert (out / "a" / "motion.npz").stat().st_ino == inode
    assert drawn.clips_of(out)["deep__b/motion.npz"] != before["deep__b/motion.npz"]
    assert preprocess(videos, smooth=2.0).made == 2
    drawn.write_video(videos / "empty.mp4", drawn.walk(3))
    mended = preprocess(videos, smooth=2.0)
    assert (mended.made, mended.cached, len(mended.failed)) == (1, 2, 1)
    assert not (out / "failed" / "empty.json").exists()


def test_clips_of_other_videos_in_the_folder_are_named(preprocess, tmp_path):
    """Two commands with one -o, one video each, leave a dataset of one video."""
    out, reporter = tmp_path / "out", Heard()
    for name in ("a", "b"):
        preprocess(drawn.write_video(tmp_path / f"{name}.mp4", drawn.walk(3)), output=out, reporter=reporter)
    assert reporter.warnings == [
        f"{out}: index.jsonl lists the videos of this command only, so `sa train` leaves out other clips there: a; "
        "to train on them too, name all videos in one command"
    ]


@pytest.mark.parametrize("name", ["a.mp4", "a.m4v"])
def test_a_clip_of_a_moved_video_does_not_link_to_another_one_in_its_old_place(preprocess, tmp_path, name):
    out, old, new = tmp_path / "out", tmp_path / "old" / "a.mp4", tmp_path / "new" / name
    preprocess(drawn.write_video(old, drawn.walk(18)), output=out)
    new.parent.mkdir()
    old.rename(new)
    drawn.write_video(old, drawn.walk(18, step=3))
    assert preprocess(new, output=out).cached == 1
    assert clip_folder.open_folder(out / "a").source.resolve() == new
    assert preprocess(out, lint=True).errors == 0


def test_temporary_files_of_killed_runs_are_removed(preprocess, tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    out, video = tmp_path / "out", drawn.write_video(tmp_path / "v.mp4", drawn.walk(3))
    out.mkdir()
    for name in ("report.json", "report.html", "index.jsonl", "poses.mp4", "poses.npz"):
        (out / f".{name}.{int(ended.stdout)}.part").write_text("half")
    preprocess(video, output=out, poses=out / "poses.mp4")
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_networks_that_did_not_change_are_hashed_once(preprocess, tmp_path, monkeypatch):
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    hashed, real = [], download._sha256
    monkeypatch.setattr(download, "_sha256", lambda path, *rest: hashed.append(path) or real(path, *rest))
    video = drawn.write_video(tmp_path / "v.mp4", drawn.walk(3))
    preprocess(video, plan_only=True)
    assert hashed
    hashed.clear()
    preprocess(video, plan_only=True)
    assert hashed == []


def test_a_damaged_clip_folder_is_made_again(preprocess, videos):
    out = videos.with_name("videos.clips")
    preprocess(videos)
    whole = drawn.clips_of(out)
    (out / "a" / "clip.json").write_text("{", encoding="utf-8")
    shutil.rmtree(out / "deep__b")
    (out / ".a.999.part").mkdir()
    (out / ".a.999.part" / "motion.npz").write_text("left by a run that was killed")
    assert preprocess(videos).made == 2
    assert drawn.clips_of(out) == whole


@pytest.mark.parametrize("name", ["motion.npz", "faces.npz"])
@pytest.mark.parametrize("left", [None, 40], ids=["missing", "cut off"])
def test_a_clip_with_a_damaged_file_is_made_again(preprocess, tmp_path, name, left):
    video, out = drawn.write_video(tmp_path / "v.mp4", drawn.walk(3)), tmp_path / "out"
    preprocess(video, output=out)
    whole, file = drawn.clips_of(out), out / "v" / name
    content = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(content[:left])
    assert preprocess(video, output=out).made == 1
    assert drawn.clips_of(out) == whole


def test_workers_shards_and_one_process_make_the_same_bytes(preprocess, videos, tmp_path):
    preprocess(videos, output=tmp_path / "one")
    preprocess(videos, output=tmp_path / "two", workers=2)
    first = preprocess(videos, output=tmp_path / "parts", shard="0/2")
    assert first.pending == 2
    assert preprocess(videos, output=tmp_path / "parts", shard="1/2").pending == 0
    expected = drawn.clips_of(tmp_path / "one")
    assert len(expected) > 10
    assert drawn.clips_of(tmp_path / "two") == expected
    assert drawn.clips_of(tmp_path / "parts") == expected


def test_a_shard_hashes_only_its_own_videos(preprocess, videos, tmp_path, monkeypatch):
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(clip_module, "sha256_of", counting)
    out = tmp_path / "parts"
    preprocess(videos, output=out, shard="0/2")
    assert sorted(hashed) == ["a.mp4", "b.mp4"]
    hashed.clear()
    report = preprocess(videos, output=out, shard="1/2")
    assert (report.clips, report.cached, report.pending) == (2, 2, 0)
    assert sorted(hashed) == ["broken.mp4", "empty.mp4"]


@pytest.mark.parametrize("same_time", [False, True])
def test_a_shard_does_not_report_the_clip_of_a_video_that_changed_since(preprocess, videos, tmp_path, same_time):
    video, out = videos / "a.mp4", tmp_path / "parts"
    preprocess(videos, output=out, shard="0/2")
    stat, content = video.stat(), bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)  # of the same size
    if same_time:
        os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert preprocess(videos, output=out, shard="1/2").pending == 1
    content[-1] ^= 1
    video.write_bytes(content)  # a later time and the same bytes
    assert preprocess(videos, output=out, shard="1/2").pending == 0


def test_frames_and_rate_are_cut_before_detection(preprocess, videos, tmp_path):
    preprocess(videos / "a.mp4", output=tmp_path / "cut", frames="4:12", fps="15")
    clip = clip_folder.open_folder(tmp_path / "cut" / "a")
    pictures = list(clip.pictures().frames())
    assert len(pictures) == clip.frames == len(clip.motion()) == 4
    assert [time for time, _ in pictures] == list(clip.motion().times or ())


def test_a_copy_of_the_source_stands_alone(preprocess, videos, tmp_path):
    preprocess(videos / "a.mp4", output=tmp_path / "out", source="copy")
    data = (videos / "a.mp4").read_bytes()
    (videos / "a.mp4").unlink()
    clip = clip_folder.open_folder(tmp_path / "out" / "a")
    assert clip.source.read_bytes() == data
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert clip_folder.open_folder(tmp_path / "moved" / "a").pictures().count == 18


def test_a_picture_and_a_sequence_of_pictures_are_clips(preprocess, tmp_path):
    folder = tmp_path / "pictures"
    for index, box in enumerate(drawn.walk(3)):
        write_image(folder / "walk" / f"frame_{index}.png", drawn.frame(box))
    write_image(folder / "person.png", drawn.frame((40, 20, 80, 84)))
    write_image(folder / "other.png", drawn.frame((30, 20, 70, 84)))
    preprocess(folder, output=tmp_path / "out")
    assert [(line["clip"], line["frames"]) for line in lines(tmp_path / "out")] == [
        ("other", 1), ("person", 1), ("walk", 3),
    ]  # fmt: skip
    assert clip_folder.open_folder(tmp_path / "out" / "walk").motion().times is None


def test_a_missing_image_of_a_sequence_is_named(preprocess, tmp_path):
    for index, box in zip((0, 2, 3), drawn.walk(3), strict=True):
        write_image(tmp_path / "walk" / f"frame_{index}.png", drawn.frame(box))
    for output in ({"output": tmp_path / "out"}, {"poses": tmp_path / "poses.mp4"}):
        heard = Heard()
        preprocess(tmp_path / "walk", reporter=heard, **output)
        assert "walk: after the file of number 0 comes that of 2; frames are taken as consecutive" in heard.warnings
    heard = Heard()
    preprocess(tmp_path / "walk", reporter=heard, output=tmp_path / "out")  # finished before
    assert not heard.warnings


def test_one_video_that_fails_leaves_with_its_own_reason(preprocess, videos):
    with pytest.raises(SaError, match="no person found in any of 3 frames") as caught:
        preprocess(videos / "empty.mp4")
    assert caught.value.exit_code == NoPerson.exit_code
    with pytest.raises(SaError, match="data that is no video") as caught:
        preprocess(videos / "broken.mp4")
    assert caught.value.exit_code == BadInput.exit_code


def test_a_reference_without_a_person_ends_the_run_before_any_work(preprocess, videos, tmp_path):
    out, reference = tmp_path / "out", drawn.write_reference(tmp_path / "ref.png", (0, 0, 0, 0))
    with pytest.raises(NoPerson, match=r"ref\.png: no person found") as caught:
        preprocess(videos, output=out, reference=reference)
    assert "leave --reference" in str(caught.value.hint)
    assert not (out / "a").exists()


def test_a_clip_in_which_nobody_is_visible_has_no_misalignment(preprocess, videos, tmp_path, monkeypatch):
    real = PoseEstimator.estimate

    def unsure(self, frames, boxes, *rest):
        people = real(self, frames, boxes, *rest)
        return people if frames[0].shape[0] == 60 else [points * np.float32([1, 1, 0.1]) for points in people]

    monkeypatch.setattr(PoseEstimator, "estimate", unsure)
    reference = drawn.write_reference(tmp_path / "ref.png", (10, 5, 40, 55), (80, 60))
    assert preprocess(videos / "deep", output=tmp_path / "out", reference=reference).clips == 1
    (clip,) = json.loads((tmp_path / "out" / "report.json").read_text())["clips"]
    assert clip["misalignment"] is None
    assert "nobody" in [finding["code"] for finding in clip["findings"]]


@pytest.mark.parametrize("layout", ["clips", "upstream"])
def test_a_clip_that_cannot_be_written_names_its_video(preprocess, videos, tmp_path, layout):
    out = tmp_path / "clips"
    with largest_file(1000), pytest.raises(SaError, match="no room left to write") as caught:
        preprocess(videos / "a.mp4", output=out, layout=layout)
    assert re.match(rf"{videos}/a\.mp4: its clip's \S+ cannot be written: ", caught.value.message)
    assert ".part" not in caught.value.message
    assert "free some space" in str(caught.value.hint)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_range_that_one_video_cannot_have_does_not_end_the_run(preprocess, tmp_path, workers):
    folder, out = tmp_path / "v", tmp_path / "out"
    drawn.write_video(folder / "z.mp4", drawn.walk(18))
    make_video(folder / "m.mkv", [drawn.frame(box) for box in drawn.walk(4)])  # it does not record its length
    report = preprocess(folder, output=out, frames="-5:", workers=workers)
    assert [one["name"] for one in report.failed] == ["m"]
    assert [(line["status"], line.get("frames")) for line in lines(out)] == [("failed", None), ("ok", 5)]
    with pytest.raises(ConfigError, match=r"frames: found '-5:'.*m\.mkv does not record its length"):
        preprocess(folder / "m.mkv", output=tmp_path / "one", frames="-5:")


def test_a_plan_counts_and_writes_nothing(preprocess, videos):
    plan = preprocess(videos, plan_only=True).to_json()
    assert {key: plan[key] for key in ("videos", "done", "unreadable", "frames")} == {
        "videos": 4, "done": 0, "unreadable": 1, "frames": 41,
    }  # fmt: skip
    assert preprocess(videos, frames="0:2", plan_only=True).to_json()["frames"] == 6
    assert not videos.with_name("videos.clips").exists()
    preprocess(videos)
    assert preprocess(videos, plan_only=True).to_json()["done"] == 2


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
@pytest.mark.parametrize("fps", [None, Fraction(10), Fraction(30000, 1001), Fraction(50)])
def test_a_plan_counts_the_frames_that_the_run_has(preprocess, tmp_path, name, fps):
    """Matroska does not record how many there are, and another rate has others."""
    video = make_video(tmp_path / name, [drawn.frame(box) for box in drawn.walk(7)], fps=30)
    plan = preprocess(video, fps=fps, plan_only=True).to_json()
    assert plan["frames"] == preprocess(video, fps=fps).frames > 0


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"poses": Path("x.mp4")}, ConfigError, "--poses: found '4 videos', expected one video"),
        ({"align": "affine"}, ConfigError, "--align: found 'affine', expected a --reference"),
        ({"align": "affine", "reference": Path("r.png")}, ConfigError, "expected --poses OUT.mp4 with it"),
        ({"person": "tallest"}, ConfigError, "--person: found 'tallest'"),
        ({"person": "1,2,3,x"}, ConfigError, "--person: found '1,2,3,x'"),
        ({"shard": "2/2"}, ConfigError, "--shard: found '2/2'"),
        ({"preview": True}, ConfigError, "--preview"),
        ({"ray": "local", "workers": 2}, ConfigError, "--workers"),
        ({"model": "stableanimator"}, ModelMissing, "lacks person_detector"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(preprocess, videos, flags, error, words):
    with pytest.raises(error, match=re.escape(words)):
        preprocess(videos, **flags)
    assert not videos.with_name("videos.clips").exists()


def test_skeletons_of_a_video_in_another_shard_are_refused(preprocess, videos, tmp_path):
    flags = {"poses": tmp_path / "poses.mp4", "output": tmp_path / "out"}
    with pytest.raises(ConfigError, match="--shard: found '1/2', expected the part with the video of --poses"):
        preprocess(videos / "a.mp4", shard="1/2", **flags)
    assert not list(tmp_path.glob("out*"))
    assert preprocess(videos / "a.mp4", shard="0/2", **flags).poses["frames"] == 18


def test_several_inputs_need_an_output(preprocess, videos):
    with pytest.raises(ConfigError, match="--output"):
        preprocess(videos / "a.mp4", videos / "deep")
    with pytest.raises(BadInput, match="no such file"):
        preprocess(videos / "c.mp4")
    (videos.parent / "none").mkdir()
    with pytest.raises(BadInput, match="without videos or images"):
        preprocess(videos.parent / "none")
