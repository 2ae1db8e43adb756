"""Tables as cells, JSON and parts of a page; what is outside of the markers stays."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

from stableanimator_cli.bench.harness import Interval
from stableanimator_cli.bench.results import BenchReport, Table, environment, format_cell
from stableanimator_cli.errors import BadInput

STAMP = {"date": "2026-01-02", "device": "a machine", "torch": "2.0"}


def report(*rows: dict[str, object], name: str = "unet") -> BenchReport:
    table = Table(title="Ways", rows=rows, note="By turns.")
    return BenchReport(command="sa bench unet", environment=STAMP, tables={name: [table]})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (1234567, "1,234,567"),
        (0.00012345, "0.0001234"),
        (float("inf"), "equal"),
        (float("nan"), ""),
        (True, "yes"),
        (Interval(2.0, 1.5, 2.5), "2 (1.5 to 2.5)"),
        ("plain", "plain"),
    ],
)
def test_cells(value: object, text: str):
    assert format_cell(value) == text


def test_columns_are_those_of_all_rows():
    table = Table(title="t", rows=[{"a": 1}, {"a": 2, "b": 3.0}])
    assert table.columns == ("a", "b")
    assert table.markdown().splitlines()[2:] == ["| a | b |", "|---|---|", "| 1 |  |", "| 2 | 3 |"]


def test_json_has_numbers_that_json_knows(tmp_path: Path):
    report({"a": Interval(1.0, 0.5, float("nan")), "b": float("inf")}).write(tmp_path / "out.json")
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["benches"]["unet"][0]["rows"] == [{"a": {"value": 1.0, "low": 0.5, "high": None}, "b": None}]
    assert data["command"] == "sa bench unet"


def test_a_page_keeps_what_people_wrote(tmp_path: Path):
    page = tmp_path / "performance.md"
    page.write_text("# Measured\n\nBy hand.\n", encoding="utf-8")
    report({"ms": 1.0}).write_page(page)
    report({"s": 5.0}, name="vae").write_page(page)
    page.write_text(page.read_text(encoding="utf-8") + "\nBelow.\n", encoding="utf-8")
    report({"ms": 2.0}).write_page(page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Measured\n\nBy hand.\n")
    assert text.endswith("\nBelow.\n")
    assert "| 2 |" in text
    assert "| 1 |" not in text
    assert text.count("### `sa bench unet`") == text.count("### `sa bench vae`") == 1
    assert "Made by `sa bench unet` on 2026-01-02: a machine, torch 2.0." in text


def test_a_page_whose_marker_lost_its_end_is_refused(tmp_path: Path):
    page = tmp_path / "performance.md"
    report({"ms": 1.0}).write_page(page)
    page.write_text(page.read_text().replace("<!-- bench unet: end -->", ""))
    before = page.read_bytes()
    with pytest.raises(BadInput, match="without its end"):
        report({"ms": 2.0}).write_page(page)
    assert page.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["performance.md"]


def test_the_stamp_names_no_computer_and_no_path():
    stamp = environment(torch.device("cpu"))
    text = json.dumps(stamp)
    assert stamp["threads"] == torch.get_num_threads()
    assert str(Path.home()) not in text
    assert "/" not in text
    assert not platform.node() or f'"{platform.node()}"' not in text
