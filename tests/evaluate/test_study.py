"""A study of preference: what the page knows, and what is counted of its answers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.study import QUESTIONS
from stableanimator_cli.media import open_clip, write_picture
from stableanimator_cli.motion.interchange import save_motion
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
    return run(flags={"inputs": inputs, "study": True, "output": folders / "study", **flags}, animate=_never)


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


def test_answers_that_are_none_are_refused_by_their_file(folders: Path) -> None:
    _study(folders)
    good = _answers(folders, "ann", [(0, 0, 1, 0)])
    with pytest.raises(BadInput, match=r"copy\.json: found the same answers as in answers-ann\.json"):
        _tally(good, shutil.copy(good, folders / "study" / "copy.json"))
    for changes, what in (
        ({"study": "other"}, "answers of study 'other'"),
        ({"answers": 3}, "no list of answers"),
        ({"answers": [{"left": 0}]}, "answer 0 without preferences"),
    ):
        with pytest.raises(BadInput, match=what):
            _tally(_answers(folders, "bad", [], **changes))
    with pytest.raises(BadInput, match="answer 0 between 1 and 2"):
        _tally(_answers(folders, "bad", [(0, 1, 2, 1)]))
    with pytest.raises(BadInput, match=r"no answers\*\.json"):
        _tally(folders / "pictures")
