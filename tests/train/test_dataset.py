"""Which clips are trained on, and what is said of those that are not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli import clip_folder
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import visible_files
from stableanimator_cli.motion.motion_file import load_motion, save_motion
from stableanimator_cli.train.dataset import open_dataset
from tests.train.clip_folders import write_clip, write_upstream


def _names(*paths: Path, min_frames: int = 8) -> list[str]:
    return [clip.name for clip in open_dataset(paths, min_frames=min_frames).clips]


def test_a_folder_of_clip_folders(tmp_path: Path) -> None:
    write_clip(tmp_path / "b", 9)
    write_clip(tmp_path / "a", 8, size=(96, 48))
    found = open_dataset([tmp_path], min_frames=8)
    assert [(clip.name, clip.frames, clip.size) for clip in found.clips] == [("a", 8, (96, 48)), ("b", 9, (64, 64))]
    assert found.summary() == "2 clips, 17 frames"
    assert pickle.loads(pickle.dumps(found)) == found


def test_one_clip_and_several_datasets_none_twice(tmp_path: Path) -> None:
    one, two = write_clip(tmp_path / "x/one", 8), write_clip(tmp_path / "y/two", 8)
    assert _names(one) == ["one"]
    assert _names(tmp_path / "y", one, tmp_path / "x") == ["two", "one"]
    assert _names(two, two) == ["two"]


def test_the_index_gives_order_and_failures(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_clip(tmp_path / name, 8)
    lines = [
        {"status": "ok", "clip": "c", "source": "/v/c.mp4"},
        {"status": "failed", "clip": None, "source": "/v/x.mp4", "error": {"message": "nobody in it"}},
        {"status": "pending", "clip": None, "source": "/v/y.mp4"},
        {"status": "ok", "clip": "gone", "source": "/v/gone.mp4"},
        {"status": "ok", "clip": "a", "source": "/v/a.mp4"},
    ]
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = open_dataset([tmp_path], min_frames=8)
    assert [clip.name for clip in found.clips] == ["c", "a"]
    assert [(one.clip, one.reason) for one in found.skipped] == [("x.mp4", "failed"), ("gone", "broken")]
    assert found.skipped[0].message == "nobody in it"
    (tmp_path / "index.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"index.jsonl: line 1: status is missing"):
        open_dataset([tmp_path], min_frames=8)


def test_what_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    write_clip(tmp_path / "good", 12)
    write_clip(tmp_path / "short", 7)
    damaged = write_clip(tmp_path / "damaged", 12)
    (damaged / clip_folder.MOTION).write_bytes((damaged / clip_folder.MOTION).read_bytes()[:200])
    nobody = write_clip(tmp_path / "nobody", 12)
    motion = load_motion(nobody / clip_folder.MOTION)
    motion.present[:] = False
    save_motion(nobody / clip_folder.MOTION, motion)
    lost = write_clip(tmp_path / "lost", 12)
    (lost / "source.mp4").unlink()
    write_clip(tmp_path / "faceless", 12, faces=[])
    found = open_dataset([tmp_path], min_frames=8)
    assert [clip.name for clip in found.clips] == ["faceless", "good"]
    assert found.faceless == ("faceless",)
    told = {one.clip: one for one in found.skipped}
    assert {name: one.reason for name, one in told.items()} == {
        "damaged": "broken",
        "lost": "broken",
        "nobody": "no-skeleton",
        "short": "too-short",
    }
    assert str(damaged / clip_folder.MOTION) in told["damaged"].message
    assert told["short"].message.endswith("short: 7 frames, expected 8 or more")
    assert "skipped: 2 broken (damaged, lost), 1 without a skeleton (nobody), 1 too short (short)" in found.summary()
    assert json.loads(json.dumps(found.to_json()))["faceless"] == ["faceless"]


def test_nothing_to_learn_from_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere: found no such path, expected a dataset"):
        open_dataset([tmp_path / "nowhere"], min_frames=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: found no clips, expected clip folders") as caught:
        open_dataset([tmp_path / "empty"], min_frames=8)
    assert "sa preprocess" in str(caught.value.hint)
    write_clip(tmp_path / "few/a", 5)
    with pytest.raises(BadInput, match=r"\w: 5 frames, expected clips of 8 frames or more$"):
        open_dataset([tmp_path / "few"], min_frames=8)
    write_clip(tmp_path / "few/b", 6)
    with pytest.raises(BadInput, match=r"found 2 clips, all shorter than 8 frames, expected clips of 8"):
        open_dataset([tmp_path / "few"], min_frames=8)
    (tmp_path / "few/b" / clip_folder.MOTION).unlink()
    with pytest.raises(BadInput, match=r"no clip that can be used: 1 too short \(a\), 1 broken \(b\)"):
        open_dataset([tmp_path / "few"], min_frames=8)


def test_vectors_of_the_other_order_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "a", 8, order="bgr")
    assert len(open_dataset([tmp_path], min_frames=8, face_channel_order="bgr").clips) == 1
    with pytest.raises(BadInput, match=r"faces.npz: found face embeddings of bgr images, expected rgb") as caught:
        open_dataset([tmp_path], min_frames=8, face_channel_order="rgb")
    assert "sa preprocess" in str(caught.value.hint)


def test_the_layout_of_the_reference_implementation(tmp_path: Path) -> None:
    write_upstream(tmp_path / "rec/00001", 9)
    write_upstream(tmp_path / "vec/00002", 10, size=(48, 80))
    assert _names(tmp_path) == ["rec/00001", "vec/00002"]
    listed = tmp_path / "lists"
    listed.mkdir()
    (listed / "video_rec_path.txt").write_text(f"{tmp_path}/rec/00001\n\n", encoding="utf-8")
    (listed / "video_vec_path.txt").write_text("../vec/00002\n", encoding="utf-8")
    assert _names(listed) == ["rec/00001", "vec/00002"]
    assert _names(listed / "video_vec_path.txt") == ["vec/00002"]
    found = open_dataset([tmp_path / "vec/00002"], min_frames=8)
    assert (found.clips[0].frames, found.clips[0].size) == (10, (48, 80))
    assert found.faceless == ("vec/00002",)


def test_a_frame_without_a_skeleton_breaks_a_clip_of_pictures(tmp_path: Path) -> None:
    good, bad = write_upstream(tmp_path / "rec/00001", 9), write_upstream(tmp_path / "rec/00002", 9)
    (bad / "poses/frame_4.png").unlink()
    (good / "faces/frame_4.png").unlink()  # a mask may be missing: no face
    found = open_dataset([tmp_path], min_frames=8)
    assert [clip.name for clip in found.clips] == ["rec/00001"]
    assert "no skeleton for 1 of 9 frames (first: 4)" in found.skipped[0].message


def test_names_of_pictures_may_be_numbers_alone(tmp_path: Path) -> None:
    clip = write_upstream(tmp_path / "rec/00001", 11)
    for file in visible_files(clip / "images"):
        file.rename(file.with_name(file.name.removeprefix("frame_")))
    (opened,) = open_dataset([tmp_path], min_frames=8).clips
    pictures = opened.images([2, 10])
    assert [int(np.median(pictures[number])) for number in (2, 10)] == [30, 70]
