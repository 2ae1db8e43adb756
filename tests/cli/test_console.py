from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from stableanimator_cli.cli import console

Captured = pytest.CaptureFixture[str]


def test_stdout_is_data_and_stderr_is_talk(capsys: Captured) -> None:
    out = console.configure()
    out.info("encoding")
    out.warning("no face in frame 3")
    out.result({"video": "out.mp4"}, "out.mp4")
    said = capsys.readouterr()
    assert said.out == "out.mp4\n"
    assert said.err == "encoding\nwarning: no face in frame 3\n"


def test_quiet_hides_talk_but_not_warnings(capsys: Captured) -> None:
    out = console.configure(quiet=True)
    out.info("encoding")
    out.warning("no face in frame 3")
    out.table("Talk", ["a"], [["b"]])
    with out.progress(3, "decode") as bar:
        bar.update(3)
    out.result({}, "out.mp4")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("out.mp4\n", "warning: no face in frame 3\n")


def test_json_is_one_object_that_any_reader_can_read(capsys: Captured) -> None:
    out = console.configure(json=True)
    out.table("Data", ["a"], [["b"]], data=True)
    data = {"video": Path("ö.mp4"), "fps": Fraction(30000, 1001), "identity": [0.5, float("nan")], "seams": (1, 2)}
    out.result(data, "text")
    (line,) = capsys.readouterr().out.splitlines()
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read == {"video": "ö.mp4", "fps": "30000/1001", "identity": [0.5, None], "seams": [1, 2]}


def test_a_table_of_data_goes_to_stdout_whole(capsys: Captured) -> None:
    console.configure().table("Models", ["name", "what"], [["x" * 150, "[b]:smile:"], ["y", 3]], data=True)
    said = capsys.readouterr()
    assert "x" * 150 in said.out
    assert "[b]:smile:" in said.out
    assert said.err == ""


def test_progress_as_json_says_how_far_how_fast_how_long(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.configure(progress="json").progress(100, "decode", "frame") as bar:
        for _ in range(50):
            now[0] += 0.1
            bar.update(loss=0.5)
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.err.splitlines()]
    assert said.out == ""
    assert 10 <= len(lines) <= 20  # five seconds, four a second at most
    assert lines[-1] == {
        "progress": "decode", "done": 50, "total": 100, "unit": "frame", "rate": 10.0, "seconds_left": 5.0, "loss": 0.5
    }  # fmt: skip


def test_steps_of_an_earlier_run_do_not_count_in_the_rate(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.configure(progress="json").progress(100, "train", "step", initial=50) as bar:
        now[0] += 100
        bar.update(10)
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["done"], line["rate"], line["seconds_left"]) == (60, 0.1, 400.0)


def test_progress_without_a_total_or_after_a_failure_still_ends_with_a_line(capsys: Captured) -> None:
    def fail() -> None:
        with console.configure(progress="json").progress(None, "read", "frame") as bar:
            bar.update(2)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["done"] == 2
    assert json.loads(line)["seconds_left"] is None


def test_progress_into_a_file_is_a_line_now_and_then(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.configure().progress(100, "decode", "frame") as bar:
        for _ in range(100):
            now[0] += 0.25
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "decode: 40/100 frame, 4 frame/s, 0:15 left"
    assert lines[-1] == "decode: 100/100 frame, 4 frame/s"
    assert len(lines) == 3


@pytest.mark.parametrize("width", [24, 32, 48])
def test_a_table_on_a_terminal_breaks_no_word(capsys: Captured, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [["clip-vit-base-patch32", "metric", "image embeddings of CLIP-I"], ["i3d", "metric", "two forms"]]
    console.configure().table("Models", ["name", "task", "what"], rows, data=True)
    said = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(len(line) <= width for line in said.splitlines())
    assert set(" ".join(word for row in rows for word in row).split()) <= set(said.split())
    assert ("task: metric" in said) == (width < 45)


@pytest.mark.parametrize("width", [76, 80, 90, 120])
def test_columns_of_a_table_share_a_terminal_without_breaking_words(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """A long text leaves other columns the width of their words, and is no pillar of single words."""
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    what = "Face detector SCRFD-10G and face recogniser ArcFace R50 (WebFace600K): the second opinion on identity"
    rows = [["wan-animate-2-distilled", "face", "no", ">= 191.31 MB", "research-only", what]]
    console.configure().table("", ["name", "task", "here", "size", "licence", "what"], rows, data=True)
    said = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(len(line) <= width for line in said.splitlines())
    assert set(" ".join(rows[0]).split()) <= set(said.split())
    assert ("licence: research-only" in said) == (width < 90)
    assert len(said.splitlines()) <= 7


def test_progress_on_a_terminal_without_a_size_is_a_bar_too() -> None:
    script = """
from stableanimator_cli.cli import console
with console.configure().progress(4, "decode", "frame") as bar:
    bar.update(4)
"""
    ours, theirs = pty.openpty()  # a new one has 0 columns
    try:
        subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, timeout=60)
        assert b"decode: 100%" in os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)


def test_progress_on_a_terminal_is_a_bar(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    with console.configure().progress(4, "decode", "frame") as bar:
        bar.update(3, loss=0.123456)
        console.get().info("a word")
        bar.update(1)
    said = capsys.readouterr().err
    assert "4/4" in said
    assert "frame/s" in said
    assert "loss=0.1235" in said
    assert "a word\n" in said
