"""Borders of windows and chunks, from run records as `sa animate` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.evaluate.run_record import animated_people, piece_borders, read_record, resize_mode
from stableanimator_cli.puppets.scene import sample_scene


def _record(frames: int, *, anchor: str = "first", **decode: int) -> dict[str, Any]:
    plan = plan_windows(frames + (anchor == "reference"), length=16, overlap=4)
    return {
        "stableanimator-cli": "0",
        "config": {"windows": {"anchor": anchor}, "decode": decode, "resize": "pad", "frames": "5:33"},
        "output": {"frames": frames},
        "windows": [list(window.frames) for window in plan],
    }


def test_windows_and_chunks_of_a_record() -> None:
    older = _record(28, chunk=28) | {"windows": plan_windows(28, length=16, overlap=4).describe().splitlines()}
    assert piece_borders(older) == (7, 13, 16, 22)
    assert piece_borders(_record(28, chunk=28)) == (7, 13, 16, 22)
    assert piece_borders(_record(28, chunk=8, overlap=2)) == (6, 7, 12, 13, 16, 18, 22, 24)


def test_an_anchor_in_front_shifts_windows_but_not_chunks() -> None:
    assert piece_borders(_record(27, anchor="reference", chunk=10)) == (6, 10, 12, 15, 20, 21)


def test_windows_that_moved_have_no_border() -> None:
    record = _record(28, chunk=8)
    record["config"]["windows"]["blend"] = "shifted"
    plan = plan_windows(28, length=16, overlap=4, blend="shifted")
    record["windows"] = [list(window.frames) for window in plan]
    assert piece_borders(record) == (8, 16, 24)


def test_a_clip_of_one_piece_has_none() -> None:
    assert piece_borders(_record(12, chunk=16)) == ()


def test_a_record_that_does_not_tell() -> None:
    record = _record(28, chunk=4)
    assert piece_borders(record | {"windows": ["something else"]}) is None
    assert piece_borders(record | {"windows": []}) is None


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("", True), ('{"stableanimator-cli": "1", "outp', True), ('{"stableanimator-cli": "1"}', True),
        ("[]", False), ('{"output": 3}', False), ('{"people": []}', False),
    ],
)  # fmt: skip
def test_what_is_no_record_is_none_and_a_damaged_one_is_named(tmp_path: Path, text: str, warned: bool) -> None:
    (tmp_path / "out.json").write_text(text)
    said: list[str] = []
    assert read_record(tmp_path / "out.mp4", said.append) is None
    assert ["out.json" in line and "is damaged and not used" in line for line in said] == [True] * warned
    assert read_record(tmp_path / "other.mp4", said.append) is None
    assert len(said) == warned


def test_a_record_beside_a_video_is_found_and_tells_the_fitting(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text(json.dumps(_record(28, chunk=28)))
    record = read_record(tmp_path / "out.mp4")
    assert record is not None
    assert resize_mode(record) == "pad"
    assert resize_mode(None) == "crop"


@pytest.mark.parametrize(
    "change",
    [
        {"config": "x"}, {"config": {"decode": 3, "windows": []}}, {"output": {"frames": 2**62}}, {"windows": {"a": 1}},
        {"windows": ["window 1: 0-99999999999"]}, {"windows": ["window 1: -5"]}, {"windows": 7},
        {"windows": [[-5]]}, {"windows": [[True, "0"]]}, {"windows": [[2**40]]}, {"windows": [5]},
        {"config": {"resize": ["pad"]}},
    ],
)  # fmt: skip
def test_a_record_of_other_types_is_read_without_an_error(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "out.json").write_text(json.dumps(_record(28, chunk=8) | change))
    record = read_record(tmp_path / "out.mp4")
    assert record is not None
    assert piece_borders(record) in (None, (7, 13, 16, 22), (7, 8, 13, 16, 22, 24))
    assert resize_mode(record) in ("pad", "crop")


def test_the_people_whom_a_run_drew():
    motion = sample_scene("test", 0, people=2, framing="half", size=(64, 64), frames=2).motion()

    def drawn(config) -> list[int]:
        return animated_people(None if config is None else {"config": config}, motion).track.tolist()

    assert drawn({"people": {"person": "1"}}) == [1]
    assert drawn({"people": {"person": "1,0"}}) == [1, 0]
    assert len(drawn({"people": {"person": "largest"}})) == 1
    for nothing in (None, {}, {"people": {}}, {"people": {"person": "all"}}):
        assert drawn(nothing) == [0, 1]
    for damaged in (
        {"people": 3},
        {"people": {"person": {"number": 1}}},
        {"people": {"person": "x"}},
        {"people": {"person": "7"}},
    ):
        assert drawn(damaged) == [0, 1]
