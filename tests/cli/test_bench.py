"""``sa bench`` as it is typed: tables, JSON, pages, verdicts of the gate, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main

from stableanimator_cli.bench import gate, run
from stableanimator_cli.bench.results import Table
from stableanimator_cli.cli.verbs import app, load_verb
from stableanimator_cli.config.bench import NAMES, BenchConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.errors import BadInput, CheckFailed, ConfigError, SaError

GROUP: Any = typer.main.get_command(app)
BENCH: Any = load_verb("bench")


def go(*words: str) -> None:
    BENCH.main(list(words), standalone_mode=False)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[run.BenchRun]:
    """Benches that measure nothing and keep what they were asked."""
    asked: list[run.BenchRun] = []

    def nothing(bench: run.BenchRun) -> list[Table]:
        asked.append(bench)
        return [Table(title="Nothing", rows=[{"what": "it", "ms": 1.5}], note="Not measured.")]

    monkeypatch.setattr(run, "BENCHES", dict.fromkeys(run.BENCHES, nothing))
    return asked


def test_the_command_line_knows_every_bench():
    assert (*run.BENCHES, "card") == NAMES  # card runs alone


def test_tables_are_data_and_notes_are_talk(seen: list[run.BenchRun], capsys: pytest.CaptureFixture[str]):
    go("unet", "cost", "--size", "64x128", "--frames", "3", "--pairs", "2", "--device", "cpu", "--progress", "none")
    said = capsys.readouterr()
    assert said.out.count("Nothing") == 2
    assert "1.5" in said.out
    assert "Not measured." in said.err
    config = seen[0].config
    assert (config.size, config.frames, config.pairs, config.value("networks")) == ((64, 128), 3, 2, "puppet")


def test_json_and_a_page_name_the_command_without_places(
    seen: list[run.BenchRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    words = (
        "unet",
        "preprocess",
        "--video",
        str(tmp_path / "a b.mp4"),
        "--variant",
        "prepared",
        "--variant",
        "chunks of 4",
    )
    go(*words, "--device", "cpu", "--json", "-q", "--page", str(page), "-o", str(out))
    said = capsys.readouterr()
    data = json.loads(said.out)
    expected = "sa bench unet preprocess --variant prepared --variant 'chunks of 4' --video 'a b.mp4' --device cpu"
    assert data["command"] == expected
    assert data == json.loads(out.read_text())
    assert data["benches"]["preprocess"][0]["rows"] == [{"what": "it", "ms": 1.5}]
    text = page.read_text()
    assert f"Made by `{expected}` on " in text
    assert str(tmp_path) not in text
    assert seen[0].config.variants == ("prepared", "chunks of 4")


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("dance",), "NAME"),
        (("unet", "--size", "100x100"), "--size"),
        (("unet", "--size", "32x32"), "--size"),
        (("unet", "--size", "large"), "--size"),
        (("unet", "--variant", "magic"), "--variant"),
        (("unet", "--accept"), "--accept"),
        (("unet", "--video", "a.mp4"), "--video"),
        (("unet", "--device", "gpu"), "--device"),
        (("unet", "--against", "clone"), "--against"),
        (("compare",), "--against: found nothing, expected a clone"),
        (("--pairs", "3"), "NAME: found nothing"),
        (("unet", "--python", "python3"), "--python"),
        (("unet", "--work", "frontier"), "--work"),
        (("gate", "--clips", "8"), "--clips"),
        (("unet", "--steps", "4"), "--steps"),
        (("frontier", "--frames", "4"), "--frames"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(seen: list[run.BenchRun], words: tuple[str, ...], flag: str):
    with pytest.raises(ConfigError, match=flag):
        go(*words)
    assert not seen


@pytest.mark.parametrize(
    ("flag", "name", "problem"),
    [
        ("-o", "none/found.json", "--output: .* a file in a folder that exists"),
        ("--page", "none/page.md", "--page: .* a file in a folder that exists"),
        ("--page", ".", "found a folder, expected a name for a file"),
        ("-o", "theirs.json", "theirs.json: it exists and was not written by sa"),
    ],
)
def test_outputs_are_checked_before_anything_is_measured(
    seen: list[run.BenchRun], flag: str, name: str, problem: str, tmp_path: Path
):
    (tmp_path / "theirs.json").write_text('{"important": 1}')
    with pytest.raises(SaError, match=problem):
        go("unet", "--device", "cpu", flag, str(tmp_path / name))
    assert not seen
    assert (tmp_path / "theirs.json").read_text() == '{"important": 1}'


def test_a_report_is_replaced_by_the_next(seen: list[run.BenchRun], tmp_path: Path):
    for bench in ("unet", "preprocess"):
        go(bench, "--device", "cpu", "-o", str(tmp_path / "found.json"))
    assert list(json.loads((tmp_path / "found.json").read_text())["benches"]) == ["preprocess"]


@pytest.mark.parametrize("option", ["-o", "--page"])
@pytest.mark.parametrize("content", [b"\xff\xd8 a picture", b"{}"])
def test_a_file_that_sa_did_not_write_stays(seen: list[run.BenchRun], tmp_path: Path, option: str, content: bytes):
    """And nothing is measured for it. A page of text gets a part of its own."""
    path = tmp_path / "person.jpg"
    path.write_bytes(content)
    if (option, content) == ("--page", b"{}"):
        go("unet", "--device", "cpu", option, str(path))
        assert path.read_bytes().startswith(content)
        return
    with pytest.raises(BadInput, match=r"person\.jpg"):
        go("unet", "--device", "cpu", option, str(path))
    assert not seen
    assert path.read_bytes() == content


def test_an_output_of_its_own_is_replaced_and_an_input_is_not(seen: list[run.BenchRun], tmp_path: Path):
    out = tmp_path / "out.json"
    for _ in range(2):
        go("unet", "--device", "cpu", "-o", str(out))
    assert len(seen) == 2
    for words in (("--page", str(out)), ("--video", str(out))):
        with pytest.raises((BadInput, ConfigError), match=r"out\.json"):
            go("unet", "preprocess", "--device", "cpu", "-o", str(out), *words)
    assert len(seen) == 2


def test_counters_are_read_before_they_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(gate, "collect_counters", lambda tick: pytest.fail("counted"))
    with pytest.raises(BadInput, match="no such file"):
        go("gate", "--baseline", str(tmp_path / "none.json"), "--device", "cpu")


def test_the_gate_leaves_with_its_differences(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    baseline = tmp_path / "mine.json"
    monkeypatch.setattr(gate, "collect_counters", lambda tick: {"calls": 5})
    go("gate", "--accept", "--baseline", str(baseline), "--device", "cpu")
    assert gate.read_baseline(baseline) == {"calls": 5}
    go("gate", "--baseline", str(baseline), "--device", "cpu")
    assert "1 counters, 0 changed" in capsys.readouterr().err
    monkeypatch.setattr(gate, "collect_counters", lambda tick: {"calls": 6})
    with pytest.raises(CheckFailed, match=r"mine.json: 1 counter\(s\) changed: calls 5 -> 6") as failed:
        go("gate", "--baseline", str(baseline), "--device", "cpu")
    assert failed.value.exit_code == 8
    assert "+20 %" in capsys.readouterr().out


@pytest.mark.parametrize("text", ['{"holes": 18, "players": 4}', "{}"])
def test_integers_by_other_names_are_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str):
    scores = tmp_path / "golf.json"
    scores.write_text(text)
    monkeypatch.setattr(gate, "collect_counters", lambda tick: {"calls": 5})
    with pytest.raises(BadInput, match=r"golf\.json: found integers by other names"):
        go("gate", "--accept", "--baseline", str(scores), "--device", "cpu")
    assert scores.read_text() == text


def test_the_roof_is_measured_once_and_before_what_is_read_against_it(monkeypatch: pytest.MonkeyPatch):
    import torch

    from stableanimator_cli.bench.roofline import Roof
    from tests.tiny import CPU

    asked = []

    def table(plan: Any, dtypes: Any) -> Any:
        asked.append(dtypes)
        return Table(title="Roofline", rows=[]), {torch.float32: Roof(torch.float32, 1.0, 1.0)}

    monkeypatch.setattr(run.roofline, "roofline_table", table)
    config = resolve(BenchConfig, {"name": ["unet"], "device": "cpu"})
    bench = run.BenchRun(config=config, plan=CPU)
    assert bench.roof() is bench.roof()
    assert asked == [(torch.float32,)]
    assert list(bench.tables) == ["roofline"]
