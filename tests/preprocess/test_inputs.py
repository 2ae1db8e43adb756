"""What the user names, as a list: order, names, shards, what is left aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from stableanimator_cli.errors import BadInput
from stableanimator_cli.media import write_image
from stableanimator_cli.preprocess import report
from stableanimator_cli.preprocess.clip import FAILED
from stableanimator_cli.preprocess.inputs import RESERVED, find_sources, is_sequence, shard_of
from tests.preprocess import drawn


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def named(*inputs: Path) -> list[str]:
    return [source.name for source in find_sources(inputs)]


def test_a_folder_is_searched_in_natural_order_and_numbered(tmp_path):
    touch(tmp_path, "v10.mp4", "v9.mp4", "deep/er/a.MOV", ".hidden.mp4", ".git/b.mp4", "notes.txt", "c.avi")
    found = find_sources([tmp_path])
    assert [(source.name, source.number) for source in found] == [("c", 1), ("deep__er__a", 2), ("v9", 3), ("v10", 4)]
    assert [one.name for one in shard_of(found, (1, 3))] == ["deep__er__a"]
    assert shard_of(found, None) == found
    parts = [one.name for part in range(3) for one in shard_of(found, (part, 3))]
    assert sorted(parts) == sorted(one.name for one in found)


def test_names_stay_apart_whatever_the_files_are_called(tmp_path):
    touch(tmp_path, "a.mp4", "a.mov", "A.webm", "b/c.mp4", "b__c.mkv", "d:e?.mp4")
    names = named(tmp_path)
    assert len({name.casefold() for name in names}) == len(names) == 6
    assert {"a.mp4", "a.mov", "A.webm", "b__c.mkv", "b__c.mp4", "d_e_"} <= set(names)
    assert not any(name.startswith(".") or "/" in name for name in names)


def test_a_list_is_told_from_its_own_folder(tmp_path):
    touch(tmp_path, "videos/a.mp4", "videos/b.mp4")
    list_file = tmp_path / "videos" / "list.txt"
    list_file.write_text(f"# the good ones\na.mp4\n\n{tmp_path / 'videos' / 'b.mp4'}  # far\nmissing.mp4\n")
    found = find_sources([list_file])
    assert [(source.name, source.path.name) for source in found] == [
        ("a", "a.mp4"), ("b", "b.mp4"), ("missing", "missing.mp4"),
    ]  # fmt: skip
    assert found[0].path == tmp_path / "videos" / "a.mp4"
    list_file.write_text("# nothing\n")
    with pytest.raises(BadInput, match="without paths"):
        find_sources([list_file])


def test_the_same_video_named_twice_is_one(tmp_path):
    touch(tmp_path, "a.mp4")
    assert named(tmp_path / "a.mp4", tmp_path / "a.mp4") == ["a"]


def test_numbered_pictures_are_one_clip_and_others_are_not(tmp_path):
    for name in ("walk/frame_0.png", "walk/frame_1.png", "people/anna.png", "people/bert.png", "one/frame_0.png"):
        write_image(tmp_path / name, drawn.frame(None))
    assert [is_sequence(tmp_path / name) for name in ("walk", "people", "one")] == [True, False, False]
    assert named(tmp_path) == ["one__frame_0", "people__anna", "people__bert", "walk"]
    assert named(tmp_path / "walk") == ["walk"]


def test_numbered_pictures_hide_neither_videos_nor_folders(tmp_path):
    """Posters beside videos are numbered too."""
    videos = touch(
        tmp_path / "set", "v1.mp4", "v1.jpg", "v2.mp4", "v2.jpg", "deep/x.mp4", "walk/f_0.png", "walk/f_1.png"
    )
    touch(videos, "walk/later/f_0.png", "walk/later/f_1.png")
    assert named(videos) == ["set", "deep__x", "v1", "v2", "walk", "walk__later"]
    assert named(tmp_path) == ["set", "set__deep__x", "set__v1", "set__v2", "set__walk", "set__walk__later"]
    assert named(videos / "walk") == ["walk", "later"]


def test_a_folder_is_searched_once_however_many_links_lead_to_it(tmp_path):
    (tmp_path / "v" / "more").mkdir(parents=True)
    (tmp_path / "v" / "a.mp4").write_bytes(b"x")
    (tmp_path / "v" / "more" / "b.mp4").write_bytes(b"x")
    for index in range(3):
        (tmp_path / "v" / f"l{index}").symlink_to(".")
        (tmp_path / "v" / "more" / f"l{index}").symlink_to("..")
        (tmp_path / "v" / f"m{index}").symlink_to("more")
    (tmp_path / "v" / "itself").symlink_to("itself")
    found = find_sources([tmp_path / "v"])
    assert [source.path.resolve().name for source in found] == ["a.mp4", "b.mp4"]


def test_clips_of_an_earlier_run_are_no_videos(tmp_path):
    """`sa preprocess videos/a.mp4` writes videos/a.clips: its link and its contact sheet are not to be learned."""
    clip = touch(tmp_path / "videos/a.clips/a", "clip.json", "motion.npz", "sheet.jpg")
    (tmp_path / "videos/a.mp4").write_bytes(b"x")
    (clip / "source.mp4").symlink_to("../../a.mp4")
    touch(tmp_path / "videos", "of_others/clip.json", "of_others/b.mp4")
    assert named(tmp_path / "videos") == ["a", "of_others__b"]
    for dataset in (clip, clip.parent):
        with pytest.raises(BadInput, match="found clips, which are finished, expected videos or images") as caught:
            find_sources([dataset])
        assert "--lint" in str(caught.value.hint)


def test_no_clip_has_the_name_of_what_lies_beside_the_clips(tmp_path):
    assert {FAILED, report.REPORT, report.PAGE, report.INDEX} == RESERVED
    touch(tmp_path, "Failed.mp4", "failed_.mp4", *(f"{name}.mp4" for name in RESERVED))
    names = [name.casefold() for name in named(tmp_path)]
    assert len(set(names)) == len(names) == 6
    assert not RESERVED & set(names)


def test_names_leave_room_for_temporary_names_in_255_bytes(tmp_path):
    touch(tmp_path, "\u6f22" * 83 + ".mp4", "a" * 250 + ".mp4")
    assert sorted(len(name.encode()) for name in named(tmp_path)) == [150, 213]


def test_a_home_of_a_user_who_does_not_exist_is_a_name_like_any_other(tmp_path):
    (tmp_path / "list.txt").write_text("~nobody-of-that-name/a.mp4\n", encoding="utf-8")
    assert named(tmp_path / "list.txt") == ["~nobody-of-that-name__a"]


def test_folders_in_folders_are_searched_deeper_than_the_stack_goes(tmp_path):
    deep = tmp_path
    for _ in range(800):
        deep = deep / "d"
    deep.mkdir(parents=True)
    touch(deep, "a.mp4")
    assert [source.path for source in find_sources([tmp_path])] == [deep / "a.mp4"]


def test_a_listed_name_that_is_too_long_is_an_error_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4\n\n" + "[" * 256 + "\n")
    with pytest.raises(BadInput, match=r"list\.txt: line 3 names a file of more than 255 bytes"):
        find_sources([tmp_path / "list.txt"])
