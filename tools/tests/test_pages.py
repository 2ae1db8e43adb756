"""Interrupted measurements resume; rows of other settings are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.bench.rows import ResumableRows, read_rows
from stableanimator_cli.catalogue import open_model
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.records import ModelFolder
from tools.bench.approximations import ApproximationRun
from tools.bench.blending import BlendingRun
from tools.bench.pages import command_line
from tools.bench.refinement_figures import Plan
from tools.command import report_error

HEADER = {"frames": 2, "seed": 0}
HEADERS = [
    ApproximationRun().header, BlendingRun().header, Plan(model="puppet", size=(64, 64), frames=2, steps=2).header,
]  # fmt: skip


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines))
    return path


def test_rows_come_back_without_the_header(tmp_path: Path):
    assert read_rows(tmp_path / "none.jsonl", HEADER) == []
    file = written(tmp_path / "a.jsonl", json.dumps(HEADER) + "\n", '{"a": 1}\n', '{"a": 2}\n')
    assert read_rows(file, HEADER) == [{"a": 1}, {"a": 2}]


def test_an_incomplete_line_is_removed_from_the_file(tmp_path: Path):
    file = written(tmp_path / "a.jsonl", json.dumps(HEADER) + "\n", '{"a": 1}\n', '{"a": ')
    assert read_rows(file, HEADER) == [{"a": 1}]
    assert file.read_text() == json.dumps(HEADER) + '\n{"a": 1}\n'


def test_a_header_with_tuples_is_that_of_its_file(tmp_path: Path):
    header = {"modes": ("off", "crop")}
    ResumableRows(tmp_path / "a.jsonl", header).append({"a": 1})
    assert ResumableRows(tmp_path / "a.jsonl", header).rows == [{"a": 1}]


def test_a_header_with_an_earlier_name_of_a_key_is_that_of_its_file(tmp_path: Path):
    file = written(tmp_path / "a.jsonl", '{"files": {"unet": "00ff"}, "seed": 1}\n', '{"a": 1}\n')
    assert read_rows(file, {"weights": {"unet": "00ff"}, "seed": 1}) == [{"a": 1}]
    with pytest.raises(BadInput, match=r"rows of other settings \(weights\)"):
        read_rows(file, {"weights": {"unet": "ff00"}, "seed": 1})


def test_all_measurements_name_the_networks_alike():
    """Approximations and the frontier called them ``files``."""
    model = open_model("puppet")
    for header in HEADERS:
        assert header(model)["weights"]["unet"]
        assert "files" not in header(model)


@pytest.mark.parametrize("lines", [("[1]\n",), ('{"frames": 4, "seed": 0}\n', '{"a": 1}\n')])
def test_other_settings_are_refused_by_name(tmp_path: Path, lines: tuple[str, ...]):
    with pytest.raises(BadInput, match=r"rows of other settings \(frames"):
        read_rows(written(tmp_path / "a.jsonl", *lines), HEADER)


@pytest.mark.parametrize("header", HEADERS)
def test_rows_of_another_card_are_refused(tmp_path: Path, header: Callable[[ModelFolder], dict[str, Any]]):
    """Their renderings have the card's guidance, windows and noise."""
    model = open_model("puppet")
    ResumableRows(tmp_path / "a.jsonl", header(model)).append({"a": 1})
    edited = replace(model, defaults={**model.defaults, "guidance": 3.0})
    with pytest.raises(BadInput, match=r"rows of other settings \(card\)"):
        read_rows(tmp_path / "a.jsonl", header(edited))


def test_a_line_that_is_not_json_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match="line 2: it is not rows as this measurement writes them"):
        read_rows(written(tmp_path / "a.jsonl", json.dumps(HEADER) + "\n", "{a}\n", '{"a": 1}\n'), HEADER)


def test_a_command_is_shown_without_folders():
    words = ["/some/where/work", "--page", "/docs/page.md", "--model", "here/puppet", "--minutes", "5", "--seed", "3"]
    assert command_line("a.b", words) == "python -m a.b work --model puppet --seed 3"


def test_an_error_is_printed_with_its_hint(capsys: pytest.CaptureFixture[str]):
    assert report_error(ConfigError("--seed", -1, "0 or more", hint="try 0")) == 2
    assert capsys.readouterr().err.splitlines()[1] == "hint: try 0"


def test_rows_are_measured_once_and_nan_is_null(tmp_path: Path):
    file = tmp_path / "work" / "a.jsonl"
    first = list(ResumableRows(file, HEADER).extend_to(2, lambda number: {"plain": {"n": number, "x": float("nan")}}))
    assert [row["plain"]["n"] for row in first] == [0, 1]
    again = ResumableRows(file, HEADER).extend_to(3, lambda number: {"plain": {"n": 10 * number}})
    assert list(again) == [{"plain": {"n": 0, "x": None}}, {"plain": {"n": 1, "x": None}}, {"plain": {"n": 20}}]
    assert len(file.read_text().splitlines()) == 1 + 3
