"""What ``sa preprocess`` may replace and remove, and who may write an output at the same time."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli import clip_folder
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import carries_mark, locked_output
from stableanimator_cli.media import write_image
from stableanimator_cli.motion.motion_file import load_motion
from stableanimator_cli.preprocess.clip_entries import check_clip_replaceable, remove_leftovers
from tests.preprocess import drawn


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return drawn.write_video(tmp_path / "videos" / "a.mp4", drawn.walk(6))


def test_an_output_is_never_an_input_nor_holds_one_nor_lies_in_one(preprocess, video, tmp_path):
    frames = tmp_path / "dancer"
    for index in range(3):
        write_image(frames / f"frame_{index}.png", drawn.frame((10, 30, 50, 94)))
    (tmp_path / "list.txt").write_text("videos/a.mp4\n", encoding="utf-8")
    before = drawn.contents(tmp_path)
    for given, output in (
        (frames, tmp_path),
        (frames, frames),
        (frames, frames / "clips"),
        (video.parent, video.parent),
        (video.parent, video.parent / "clips"),
        (video, video.parent),
        (tmp_path / "list.txt", video.parent),
    ):
        for layout in ("clips", "upstream"):
            with pytest.raises(BadInput, match=r"the output (is the same as|contains|lies in|is inside) the input"):
                preprocess(given, output=output, layout=layout)
    assert drawn.contents(tmp_path) == before


@pytest.mark.parametrize("name", ["a.npz", "poses.mp4", "a.JSON"])
def test_clips_are_not_written_into_a_new_folder_with_the_name_of_a_file(preprocess, video, tmp_path, name):
    """`sa preprocess a.mp4 -o a.npz` made a folder `a.npz`, not a motion."""
    before = drawn.contents(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder for the clips of videos") as caught:
        preprocess(video, output=tmp_path / name)
    stem = tmp_path / name.split(".")[0]
    assert caught.value.hint == f"`--poses {stem}.mp4` writes a skeleton video, and its keypoints to {stem}.npz"
    assert drawn.contents(tmp_path) == before
    (tmp_path / name).mkdir()  # of an earlier version
    assert preprocess(video, output=tmp_path / name).cached == 0


def test_a_foreign_entry_in_the_place_of_a_clip_is_named_and_stays(preprocess, video, tmp_path):
    for place in ("clips/a/notes.txt", "upstream/rec/00001/notes.txt", "upstream-2/vec/00001/mine/x.mp4"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("mine", encoding="utf-8")
    before = drawn.contents(tmp_path)
    for output, layout, named in (
        ("clips", "clips", "notes.txt"),
        ("upstream", "upstream", "notes.txt"),
        ("upstream-2", "upstream", "mine"),
    ):
        with pytest.raises(BadInput, match=f"{named}: it is in the way of the clip folder .* not written by sa"):
            preprocess(video, output=tmp_path / output, layout=layout)
    assert drawn.contents(tmp_path) == before


def test_a_clip_of_ours_with_a_note_in_it_is_used_but_not_replaced(preprocess, video, tmp_path):
    out = tmp_path / "out"
    preprocess(video, output=out)
    (out / "a" / "notes.txt").write_text("mine", encoding="utf-8")
    assert preprocess(video, output=out).cached == 1
    with pytest.raises(BadInput, match=r"notes\.txt: it is in the way"):
        preprocess(video, output=out, smooth=3.0)
    assert (out / "a" / "notes.txt").read_text(encoding="utf-8") == "mine"
    (out / "a" / "notes.txt").unlink()
    (out / "a" / "latents-64x64.safetensors").write_text("a cache of training", encoding="utf-8")
    assert preprocess(video, output=out, smooth=3.0).made == 1
    assert not (out / "a" / "latents-64x64.safetensors").exists()


def test_a_copied_folder_of_pictures_is_replaced_only_as_it_was(preprocess, tmp_path):
    for index in range(6):
        write_image(tmp_path / "p" / f"frame_{index}.png", drawn.frame((10 + index, 30, 50 + index, 94)))
    (tmp_path / "p" / ".hidden").touch()
    preprocess(tmp_path / "p", output=tmp_path / "out", source="copy")
    assert len(list((tmp_path / "out" / "p" / "source").iterdir())) == 6
    (tmp_path / "out" / "p" / "source" / "mine.png").touch()
    with pytest.raises(BadInput, match="it is in the way"):
        preprocess(tmp_path / "p", output=tmp_path / "out", source="copy", smooth=3.0)
    (tmp_path / "out" / "p" / "source" / "mine.png").unlink()
    assert preprocess(tmp_path / "p", output=tmp_path / "out", source="copy", smooth=3.0).made == 1


def test_a_copied_video_is_replaced_only_as_it_was(preprocess, video, tmp_path):
    preprocess(video, output=tmp_path / "out", source="copy")
    source = tmp_path / "out" / "a" / "source.mp4"
    whole = source.read_bytes()
    source.write_bytes(b"mine")
    with pytest.raises(BadInput, match="it is in the way"):
        preprocess(video, output=tmp_path / "out", source="copy", smooth=3.0)
    assert source.read_bytes() == b"mine"
    source.write_bytes(whole)
    assert preprocess(video, output=tmp_path / "out", source="copy", smooth=3.0).made == 1


def test_what_a_run_that_was_killed_at_the_end_left_goes_too(preprocess, video, tmp_path):
    out = tmp_path / "out"
    preprocess(video, output=out)
    whole = drawn.clips_of(out)
    shutil.copytree(out / "a", out / ".a.77.old", symlinks=True)
    assert preprocess(video, output=out).cached == 1
    assert drawn.clips_of(out) == whole


def test_links_and_files_are_in_the_way_too(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "named" / "images").mkdir(parents=True)
    (tmp_path / "named" / "images" / "frame_0.png").write_text("mine", encoding="utf-8")
    for name, kind in (("link", "a link"), ("file", "not a folder"), ("named", "has no clip.json")):
        with pytest.raises(BadInput, match=kind):
            check_clip_replaceable(tmp_path / name)
    check_clip_replaceable(tmp_path / "elsewhere")
    check_clip_replaceable(tmp_path / "missing")


def test_leftovers_are_removed_and_folders_of_others_are_not(tmp_path):
    for name, inside in (
        (".a.12.part", "motion.npz"), (".a.13.old", "clip.json"), (".a.14.part", "notes.txt"), (".a.part", "clip.json"),
        (".a.b.15.part", "clip.json"),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).touch()
    remove_leftovers([tmp_path / "a"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".a.14.part", ".a.b.15.part", ".a.part"]


@pytest.mark.parametrize("name", ["report.json", "report.html", "index.jsonl", "failed", "failed/a.json"])
def test_reports_of_others_are_not_replaced(preprocess, video, tmp_path, name):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(BadInput, match=r"not written by sa|in the way"):
        preprocess(video, output=tmp_path / "out")
    assert drawn.contents(tmp_path / "out") == {name: b'{"mine": 1}'}


def test_path_lists_of_others_are_not_replaced(preprocess, video, tmp_path):
    mine = tmp_path / "out" / "video_rec_path.txt"
    mine.parent.mkdir()
    mine.write_text("/data/rec/00001\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"video_rec_path\.txt: it exists and was not written by sa"):
        preprocess(video, output=tmp_path / "out", layout="upstream")
    mine.unlink()
    preprocess(video, output=tmp_path / "out", layout="upstream")
    before = drawn.clips_of(tmp_path / "out")
    preprocess(video, output=tmp_path / "out", layout="upstream")
    assert drawn.clips_of(tmp_path / "out") == before


def test_a_folder_of_a_version_before_the_mark_is_still_ours(preprocess, video, tmp_path):
    out = tmp_path / "out"
    preprocess(video, output=out)
    for name in ("index.jsonl", "report.html"):
        (out / name).write_text("without a mark", encoding="utf-8")
    assert preprocess(video, output=out).cached == 1
    assert carries_mark(out / "index.jsonl")
    assert carries_mark(out / "report.html")


def test_files_of_a_conversion_and_of_poses_are_not_taken_from_others(preprocess, video, tmp_path):
    for name in ("p.mp4", "q.npz", "r.preview.png"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    for stem in "pqr":
        with pytest.raises(BadInput, match="not written by sa"):
            preprocess(video, poses=tmp_path / f"{stem}.mp4", preview=True)
    with pytest.raises(BadInput, match="is the same as the input"):
        preprocess(video, poses=video)
    preprocess(video, poses=tmp_path / "s.mp4")
    preprocess(video, poses=tmp_path / "s.mp4")  # ours may be written again
    for output in ("p.mp4", "q.npz", "q.mp4"):
        with pytest.raises(BadInput, match="not written by sa"):
            preprocess(tmp_path / "s.npz", output=tmp_path / output)
    with pytest.raises(BadInput, match=r"s\.npz: the output is the same as the input"):
        preprocess(tmp_path / "s.npz", output=tmp_path / "s.mp4")
    for output in ("t.npy", "t.json", "t.npz", "t.mp4"):
        preprocess(tmp_path / "s.npz", output=tmp_path / output)
        preprocess(tmp_path / "s.npz", output=tmp_path / output)
        assert carries_mark(tmp_path / output)
    assert np.array_equal(np.load(tmp_path / "t.npy"), load_motion(tmp_path / "s.npz").keypoints)
    assert np.load(tmp_path / "t.npy", mmap_mode="r").flags["ALIGNED"]
    for name in ("p.mp4", "q.npz", "r.preview.png"):
        assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_one_run_at_an_output_and_several_shards_of_it(preprocess, video, tmp_path):
    out = tmp_path / "out"
    another = "it is being written by another `sa preprocess`"
    with locked_output(out, "sa preprocess", folder=True):
        for shard in (None, "0/2"):
            with pytest.raises(BadInput, match=another):
                preprocess(video, output=out, shard=shard)
    with ExitStack() as held:
        held.enter_context(locked_output(out, "sa preprocess", folder=True, shard=(1, 2)))
        for shard in (None, "1/2", "0/3"):
            with pytest.raises(BadInput, match=another):
                preprocess(video, output=out, shard=shard)
        assert preprocess(video, output=out, shard="0/2").made == 1
    with (
        locked_output(tmp_path / "p.mp4", "sa preprocess"),
        pytest.raises(BadInput, match=another),
    ):
        preprocess(video, poses=tmp_path / "p.mp4")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_a_missing_source_is_found_by_lint_and_repaired_by_the_next_run(preprocess, video, tmp_path):
    out = tmp_path / "out"
    for how in ("link", "copy"):
        preprocess(video, output=out, source=how)
        whole = drawn.clips_of(out)
        (out / "a" / "source.mp4").unlink()
        found = [finding.code for _, finding in preprocess(out, lint=True).found]
        assert "source-missing" in found
        assert preprocess(video, output=out, source=how).cached == 1
        assert drawn.clips_of(out) == whole
        assert "source-missing" not in [finding.code for _, finding in preprocess(out, lint=True).found]
    preprocess(video, output=out, source="link")
    moved = tmp_path / "moved" / "a.mp4"
    moved.parent.mkdir()
    shutil.move(video, moved)
    assert clip_folder.source_inside(out / "a") is None
    assert preprocess(moved, output=out, source="link").cached == 1
    assert clip_folder.open_folder(out / "a").source.resolve() == moved
