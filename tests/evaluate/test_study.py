"""A study of preference: what the page knows, and what is counted of its answers."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.evaluate.report import TOOL
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.study import QUESTIONS
from stableanimator_cli.evaluate.study_blocks import balanced_blocks
from stableanimator_cli.files import carries_mark
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from tests.evaluate.samples import drawn, noisy, write
from tests.evaluate.test_latex import check_structure
from tests.waving import waving


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two videos of three systems, a reference picture and a motion each."""
    for system, amount in (("stableanimator", 2), ("rival_one", 8), ("rival_two", 20)):
        for name in ("a", "b"):
            change = noisy(amount)
            write(tmp_path / system / f"{name}.mp4", [change(0, frame) for frame in drawn(0, frames=3)])
    for name in ("a", "b"):
        _picture(tmp_path / "pictures" / f"{name}.png")
        save_motion(tmp_path / "poses" / f"{name}.npz", waving(3, (64, 64)))
    return tmp_path


def _picture(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    write_image(path, drawn(0, frames=1)[0])


def _study(folders: Path, *systems: str, **flags: Any) -> Any:
    inputs = [folders / name for name in systems or ("stableanimator", "rival_one", "rival_two")]
    flags = {"reference_picture": folders / "pictures", "poses": folders / "poses", **flags}
    return run(flags={"inputs": inputs, "study": True, **({"output": folders / "study"} | flags)}, animate=_never)


def _never(flags: Any, settings: Any) -> None:
    raise AssertionError("nothing is animated for a study")


def test_the_page_is_blind_and_needs_nothing_from_outside(folders: Path) -> None:
    study = _study(folders)
    assert study.comparisons == 4
    page = (folders / "study" / "study.html").read_text()
    assert "http" not in page
    for word in ("stableanimator", "rival"):
        assert word not in page.lower()
    assert all(text in page for text in QUESTIONS.values())
    data = json.loads(re.search(r"const STUDY=(\{.*?\});const ASKED", page, re.S)[1])  # type: ignore[index]
    assert len(data["trials"]) == 4
    for case in data["cases"]:
        for path in (case["reference"], case["poses"], *case["videos"]):
            assert (folders / "study" / path).is_file()
            assert "rival" not in path
    clip = open_clip(folders / "study" / data["cases"][0]["videos"][0])
    assert clip.size == (64, 64)
    assert "sa.kind" not in clip.tag


def test_the_pose_video_shows_skeletons(folders: Path) -> None:
    _study(folders)
    key = json.loads((folders / "study" / "study.json").read_text())
    _, frame = next(iter(open_clip(folders / "study" / key["cases"][0]["poses"]).frames()))
    assert np.median(frame) < 8
    assert frame.max() > 120


def test_names_that_read_alike_have_media_of_their_own(folders: Path) -> None:
    """A system named ``poses``, and systems and videos whose names joined by a space are the same."""
    shutil.copytree(folders / "rival_one", folders / "systems" / "poses")
    for system in ("ours", "ours b", "poses"):
        source = folders / "systems" / system
        source.mkdir(parents=True, exist_ok=True)
        for name in ("a", "b a"):
            shutil.copy(folders / "stableanimator" / "a.mp4", source / f"{name}.mp4")
        (source / "b.mp4").unlink(missing_ok=True)
    for folder, suffix in (("pictures", "png"), ("poses", "npz")):
        shutil.copy(folders / folder / f"a.{suffix}", folders / folder / f"b a.{suffix}")
    _study(folders, "systems/ours", "systems/ours b", "systems/poses")
    cases = json.loads((folders / "study" / "study.json").read_text())["cases"]
    media = [path for case in cases for path in (case["reference"], case["poses"], *case["videos"])]
    assert len(set(media)) == len(media) == 10


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"reference_picture": None}, "no --reference-picture"),
        ({"poses": Path("nowhere")}, "nowhere: found no such file"),
    ],
)
def test_a_study_needs_its_pictures(folders: Path, flags: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        _study(folders, **flags)


def test_a_study_needs_two_systems_with_the_same_videos(folders: Path) -> None:
    with pytest.raises(ConfigError, match="two folders or more"):
        _study(folders, "stableanimator")
    (folders / "rival_one" / "b.mp4").unlink()
    with pytest.raises(BadInput, match="rival_one: found no video named b"):
        _study(folders, "stableanimator", "rival_one")


def _answers(folders: Path, name: str, given: list[tuple[int, int, int, int]], **changes: Any) -> Path:
    """(case, left, right, who is preferred in every question) by one person."""
    key = json.loads((folders / "study" / "study.json").read_text())
    answers = [
        {"case": case, "left": left, "right": right, "preferred": dict.fromkeys(QUESTIONS, best)}
        for case, left, right, best in given
    ]
    told = {"format": 1, "study": key["study"], "person": name, "answers": answers} | changes
    path = folders / "study" / f"answers-{name}.json"
    path.write_text(json.dumps(told))
    return path


def test_one_comparison_more_than_there_are_is_refused(folders: Path) -> None:
    assert _study(folders, comparisons=3).to_json()["comparisons_per_person"] == 3
    with pytest.raises(ConfigError, match="at most 4"):
        _study(folders, comparisons=5)
    with pytest.raises(ConfigError, match="--study"):
        run(flags={"inputs": [folders], "tally": True, "comparisons": 3}, animate=_never)


@pytest.mark.parametrize(
    ("videos", "baselines", "size"),
    [(30, 7, 30), (30, 7, 29), (2, 2, 3), (5, 1, 2), (10, 3, 12), (4, 7, 10), (3, 2, 6)],
)
def test_blocks_are_balanced(videos: int, baselines: int, size: int) -> None:
    blocks = balanced_blocks(videos, baselines, size, seed=3)
    every = Counter(trial for block in blocks for trial in block)
    assert set(every) == set(range(videos * baselines))
    assert len(set(every.values())) == 1
    for block in blocks:
        assert len(set(block)) == len(block) == size
        against = [sum(trial % baselines == one for trial in block) for one in range(baselines)]
        assert max(against) - min(against) <= 1
    assert blocks == balanced_blocks(videos, baselines, size, seed=3)
    if size < videos * baselines:
        assert blocks != balanced_blocks(videos, baselines, size, seed=4)


def test_videos_of_a_block_differ_as_far_as_they_can() -> None:
    for block in balanced_blocks(30, 7, 30, seed=0):
        assert max(Counter(trial // 7 for trial in block).values()) <= 2


def _tally(*paths: Path) -> Any:
    return run(flags={"inputs": list(paths), "tally": True}, animate=_never)


def test_answers_are_counted_whichever_side_ours_was_on(folders: Path) -> None:
    _study(folders)
    _answers(folders, "ann", [(0, 0, 1, 0), (1, 1, 0, 0), (0, 2, 0, 2), (1, 0, 2, 0)])
    _answers(folders, "ben", [(0, 1, 0, 1), (1, 0, 1, 0), (0, 0, 2, 0), (1, 2, 0, 0)])
    told = _tally(folders / "study").to_json()
    assert (told["ours"], told["people"]) == ("stableanimator", 2)
    one = told["preferred"]["rival_one"]["identity"]
    assert (one["times"], one["of"], one["share"]) == (3, 4, 0.75)
    assert one["interval"][0] < 0.75 < one["interval"][1]
    assert told["preferred"]["rival_two"]["motion"]["times"] == 3
    (table,) = _tally(folders / "study").shown()
    assert table[2][0][0] == "stableanimator over rival_one"
    assert table[2][0][1].startswith("75.0% [")
    assert "† published" in table[0]


def test_both_sides_play_by_one_clock(folders: Path) -> None:
    """A rival's folder of pictures has no clock: it was played at 30 fps beside ours at 8."""
    (folders / "rival_one" / "a.mp4").unlink()
    for index, frame in enumerate(drawn(0, frames=3)):
        (folders / "rival_one" / "a").mkdir(exist_ok=True)
        write_image(folders / "rival_one" / "a" / f"{index}.png", frame)
    frames = [frame for _, frame in open_clip(folders / "rival_two" / "a.mp4").frames()]
    write(folders / "rival_two" / "a.mp4", frames, fps=25)
    _study(folders)
    key = json.loads((folders / "study" / "study.json").read_text())
    clips = [open_clip(folders / "study" / path) for case in key["cases"] for path in [*case["videos"], case["poses"]]]
    assert {clip.fps for clip in clips} == {8}
    assert {sum(1 for _ in clip.frames()) for clip in clips} == {3}


def test_videos_of_different_lengths_are_refused_before_anything_is_written(folders: Path) -> None:
    write(folders / "rival_two" / "b.mp4", drawn(0, frames=5))
    with pytest.raises(BadInput, match=r"rival_two/b\.mp4: it lasts 0\.625 s \(5 frames\), .*b\.mp4 0\.375 s"):
        _study(folders)
    assert not (folders / "study").exists()


def test_a_longer_motion_without_a_record_is_refused(folders: Path) -> None:
    save_motion(folders / "poses" / "a.npz", waving(2, (64, 64)))
    with pytest.raises(BadInput, match="cannot be shown beside"):
        _study(folders)


def test_a_study_is_written_again_and_replaces_only_its_own_page(folders: Path) -> None:
    _study(folders)
    _study(folders, seed=4)
    page = folders / "study" / "study.html"
    page.write_text(page.read_text() + "<!-- mine -->")
    with pytest.raises(BadInput, match="was not written by sa"):
        _study(folders)
    page.unlink()
    (folders / "study" / "study.json").write_text('{"pages": []}')
    with pytest.raises(BadInput, match="was not written by sa"):
        _study(folders)


def test_a_study_does_not_go_into_the_folders_that_it_shows(folders: Path) -> None:
    for output in ("stableanimator", "pictures", "poses/study", "."):
        with pytest.raises(BadInput, match=r"the output .* the input"):
            _study(folders, output=folders / output)


def test_answers_about_other_videos_of_the_same_names_are_of_another_study(folders: Path) -> None:
    _study(folders)
    _answers(folders, "ann", [(0, 0, 1, 0)])
    _study(folders)  # the same videos
    assert _tally(folders / "study").people == 1
    write(folders / "rival_one" / "a.mp4", [noisy(30)(0, frame) for frame in drawn(0, frames=3)])
    _study(folders)
    with pytest.raises(BadInput, match=r"found answers of study .*, expected of study"):
        _tally(folders / "study")


def test_videos_may_have_names_that_are_no_utf8(folders: Path) -> None:
    for path in (*folders.glob("*/b.*"),):
        path.rename(path.with_name(f"b\udcff '\"<i>{path.suffix}"))
    _study(folders)
    _answers(folders, "ann", [(1, 0, 1, 0)])
    assert _tally(folders / "study").people == 1


def test_of_one_session_the_longest_file_counts(folders: Path) -> None:
    _study(folders)
    four = [(0, 0, 1, 0), (1, 1, 0, 0), (0, 2, 0, 2), (1, 0, 2, 0)]
    _answers(folders, "early", four[:2], session="s1")
    _answers(folders, "late", four, session="s1")
    _answers(folders, "other", four, session="s2")
    told = _tally(folders / "study").to_json()
    assert told["people"] == 2
    assert told["preferred"]["rival_one"]["motion"]["of"] == 4
    _answers(folders, "forged", [(0, 0, 1, 1)], session="s1")
    with pytest.raises(BadInput, match="other answers of the same person"):
        _tally(folders / "study")


def test_a_tally_goes_into_files_too(folders: Path) -> None:
    _study(folders)
    _answers(folders, "ann", [(0, 0, 1, 0)])
    out = folders / "tallied"
    counted = run(flags={"inputs": [folders / "study"], "tally": True, "output": out}, animate=_never)
    told = json.loads((out / "tally.json").read_text())
    assert told["preferred"] == counted.to_json()["preferred"]
    assert told["published_per_cent"]["DisCo"]["identity"] == 98.7
    lines = (out / "tally.csv").read_text().splitlines()
    assert lines[-1] == f'StableAnimator,ControlNeXt,identity,,,0.962,,,{TOOL},"Table 6, published"'
    text = (out / "tally.txt").read_text()
    assert "stableanimator over rival_one" in text
    assert "StableAnimator over Champ †" in text
    latex = (out / "tally.tex").read_text()
    check_structure(latex)
    assert r"ControlNeXt $^\dagger$ & 93.6 & 92.4 & 90.3 & 96.2" in latex
    assert r"rival\_one & 100.0" in latex
    assert lines[1].startswith("stableanimator,rival_one,motion,1,1,1.0,")
    assert all(carries_mark(file) for file in out.iterdir())
    with pytest.raises(BadInput, match="the output is the same as the input"):
        run(flags={"inputs": [folders / "study"], "tally": True, "output": folders / "study"}, animate=_never)


def test_rows_have_the_order_of_table_6_whoever_answered_first(tmp_path: Path) -> None:
    place = _small(tmp_path, [])
    systems = ["ours", "mine", "champ", "DisCo", "another"]
    key = {"format": 1, "study": "s", "ours": "ours", "systems": systems, "cases": [{}]}
    (place / "study.json").write_text(json.dumps(key))
    answers = [
        {"case": 0, "left": 0, "right": system, "preferred": dict.fromkeys(QUESTIONS, 0)} for system in (4, 1, 3, 2)
    ]
    (place / "answers-x.json").write_text(json.dumps({"format": 1, "study": "s", "answers": answers}))
    assert _tally(place).baselines == ["DisCo", "champ", "mine", "another"]


def test_intervals_are_clustered_by_person_from_five_on(tmp_path: Path) -> None:
    place = _small(tmp_path, [])
    key = {"format": 1, "study": "s", "ours": "a", "systems": ["a", "b"], "cases": [{}] * 10}
    (place / "study.json").write_text(json.dumps(key))
    (place / "answers-x.json").unlink()
    for person in range(5):  # each always prefers the same one
        answers = [
            {"case": case, "left": 0, "right": 1, "preferred": dict.fromkeys(QUESTIONS, int(person < 2))}
            for case in range(10)
        ]
        told = {"format": 1, "study": "s", "session": str(person), "answers": answers}
        (place / f"answers-{person}.json").write_text(json.dumps(told))
        result = _tally(place)
        assert (result.rows[0].interval is None) == (person < 4)
        assert ("clustered" in result.title) == (person == 4)
    row = result.to_json()["preferred"]["b"]["motion"]
    assert (row["times"], row["of"], row["people"]) == (30, 50, 5)
    narrow, wide = row["interval"], row["interval_by_person"]
    assert wide[0] < narrow[0] < 0.6 < narrow[1] < wide[1]  # five people are not fifty


def _small(folders: Path, answers: bytes | list[Any]) -> Path:
    """A key of two cases and one file of answers, without any video."""
    place = folders / "answers"
    place.mkdir()
    key = {"format": 1, "study": "s", "ours": "a", "systems": ["a", "b"], "cases": [{}, {}]}
    (place / "study.json").write_text(json.dumps(key))
    told = {"format": 1, "study": "s", "person": "x", "answers": answers}
    (place / "answers-x.json").write_bytes(answers if isinstance(answers, bytes) else json.dumps(told).encode())
    return place


@pytest.mark.parametrize(
    "junk",
    [
        b"", b"[]", b"\xff\xfe{", b'{"answers": []', b"[" * 100_000, b'{"answers": ' + b"9" * 6000 + b"}",
        b'{"format": 1, "study": "s", "answers": [{"case": 0, "left": true, "right": 0, "preferred": {}}]}',
        b'{"format": 1, "study": "s", "answers": [{"case": NaN, "left": 0, "right": 1, "preferred": {}}]}',
        b'{"format": 1, "study": ["s"], "answers": []}', b'{"format": 1, "study": "s", "answers": [], "session": 3}',
    ],
)  # fmt: skip
def test_junk_in_place_of_answers_is_bad_input(tmp_path: Path, junk: bytes) -> None:
    with pytest.raises(BadInput):
        _tally(_small(tmp_path, junk))


@pytest.mark.parametrize(
    "changes",
    [
        {"case": 1.0}, {"case": "0"}, {"case": 99}, {"case": -1}, {"case": None}, {"left": 0.0}, {"left": [0]},
        {"right": {}}, {"right": 2**63}, {"preferred": {"motion": 0}}, {"preferred": {key: [0] for key in QUESTIONS}},
        {"preferred": dict.fromkeys(QUESTIONS, True)}, {"preferred": []},
    ],
)  # fmt: skip
def test_answers_of_other_types_are_bad_input(tmp_path: Path, changes: dict[str, Any]) -> None:
    answer = {"case": 0, "left": 0, "right": 1, "preferred": dict.fromkeys(QUESTIONS, 0)}
    assert _tally(_small(tmp_path, [answer])).people == 1
    (tmp_path / "answers").rename(tmp_path / "good")
    with pytest.raises(BadInput, match="answer 0"):
        _tally(_small(tmp_path, [answer | changes]))


def test_a_file_without_an_answer_is_nobody_who_answered(tmp_path: Path) -> None:
    place = _small(tmp_path, [{"case": 0, "left": 0, "right": 1, "preferred": dict.fromkeys(QUESTIONS, 0)}])
    (place / "answers-y.json").write_text(json.dumps({"format": 1, "study": "s", "person": "y", "answers": []}))
    assert _tally(place).people == 1


def test_answers_of_another_format_are_named_as_such(tmp_path: Path) -> None:
    place = _small(tmp_path, b'{"format": 2, "study": "s", "answers": []}')
    with pytest.raises(BadInput, match=r"answers-x\.json: found answers of format 2, expected format 1"):
        _tally(place)


def test_a_comparison_counts_once_per_person(tmp_path: Path) -> None:
    answer = {"case": 0, "left": 0, "right": 1, "preferred": dict.fromkeys(QUESTIONS, 0)}
    with pytest.raises(BadInput, match="answer 1 repeats a comparison"):
        _tally(_small(tmp_path, [answer, answer | {"left": 1, "right": 0}]))


@pytest.mark.parametrize(
    "key", ["{}", '{"study": 1}', "[]", '{"study": "a", "ours": "b", "systems": [1, 2], "cases": []}']
)
def test_a_damaged_key_is_bad_input(tmp_path: Path, key: str) -> None:
    place = _small(tmp_path, [])
    (place / "study.json").write_text(key)
    with pytest.raises(BadInput, match=r"study\.json"):
        _tally(place)


def test_answers_that_are_none_are_refused_by_their_file(folders: Path) -> None:
    _study(folders)
    good = _answers(folders, "ann", [(0, 0, 1, 0)])
    with pytest.raises(BadInput, match=r"copy\.json: found the same answers as in answers-ann\.json"):
        _tally(good, shutil.copy(good, folders / "study" / "copy.json"))
    for changes, what in (
        ({"study": "other"}, "answers of study other"),
        ({"answers": 3}, "no list of answers"),
        ({"answers": [{"left": 0}]}, "answer 0 without preferences"),
    ):
        with pytest.raises(BadInput, match=what):
            _tally(_answers(folders, "bad", [], **changes))
    with pytest.raises(BadInput, match="answer 0 between 1 and 2"):
        _tally(_answers(folders, "bad", [(0, 1, 2, 1)]))
    with pytest.raises(BadInput, match=r"no answers\*\.json"):
        _tally(folders / "pictures")
