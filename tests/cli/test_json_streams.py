"""``--json`` and ``--progress json`` of each verb: one object on stdout, and nothing but objects on stderr."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli import __main__ as entry
from stableanimator_cli.cli import console
from stableanimator_cli.cli.verbs import VERBS, load_verb

Captured = pytest.CaptureFixture[str]

# verb: a command line that fails after it was parsed, and one that does not parse
MISTAKES = {
    "preprocess": ("nowhere -o x", "nowhere --nonsense"),
    "animate": ("nowhere.png nowhere.mp4 -o x.mp4 --model puppet", "a.png b.mp4 -o c.mp4 --steps x"),
    "train": ("nowhere -o x --steps 2 --model puppet", "nowhere -o x --steps x"),
    "evaluate": ("a.mp4 b.mp4", "a.mp4 --nonsense"),
    "demo": (". --frames 0", "--nonsense"),
    "models": ("pull nonsense", "pull --nonsense"),
    "puppets": ("occupied", "--nonsense"),
    "app": ("-o occupied", "--nonsense"),
    "replay": ("nowhere.mp4", "--nonsense"),
    "doctor": ("", "--nonsense"),
    "bench": ("nonsense", "--nonsense"),
}
CASES = [(verb, line) for verb, lines in MISTAKES.items() for line in lines if line]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    (tmp_path / "occupied").write_text("a file")
    yield
    console.configure()


def run(line: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["sa", *line.split()])
    with pytest.raises(SystemExit) as left:
        entry.main()
    read = capsys.readouterr()
    return left.value.code, read.out, read.err


def options_of(verb: str, line: str) -> set[str]:
    command = load_verb(verb)
    inner = getattr(command, "commands", {}).get(line.split()[0] if line else "", command)
    return {name for option in inner.params for name in option.opts}


def test_every_verb_is_tried() -> None:
    assert MISTAKES.keys() == VERBS.keys()


@pytest.mark.parametrize(("verb", "line"), CASES)
def test_an_error_with_json_is_one_object_on_stdout(
    verb: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    code, out, err = run(f"{verb} {line} --json", monkeypatch, capsys)
    error = json.loads(out)
    assert code == error["exit_code"] in (2, 3, 5)
    assert error.keys() == {"error", "message", "hint", "exit_code"}
    assert out.count("\n") == 1
    assert err == ""


@pytest.mark.parametrize("quiet", ["", " -q"])
@pytest.mark.parametrize("flag", ["--progress json", "--progress=json"])
@pytest.mark.parametrize(("verb", "line"), [case for case in CASES if "--progress" in options_of(*case)])
def test_an_error_in_a_json_stream_is_its_last_object(
    verb: str, line: str, flag: str, quiet: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    code, out, err = run(f"{verb} {line} {flag}{quiet}", monkeypatch, capsys)
    objects = [json.loads(text) for text in err.splitlines()]
    assert objects[-1]["exit_code"] == code
    assert all(next(iter(one)) in ("progress", "info", "warning", "table", "error") for one in objects)
    assert out == ""


def test_messages_tables_and_warnings_are_objects(capsys: Captured) -> None:
    out = console.configure(progress="json")
    out.info("reading\na.mp4")
    out.warning("short")
    out.table("scores", ("name", "value"), [("psnr", 30)])
    with out.progress(2, "decode") as bar:
        bar.update(2)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = console._show_warning
        warnings.warn("old library", stacklevel=1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[:3] == [
        {"info": "reading\na.mp4"},
        {"warning": "short"},
        {"table": "scores", "columns": ["name", "value"], "rows": [["psnr", "30"]]},
    ]
    assert (lines[3]["progress"], lines[3]["done"]) == ("decode", 2)
    assert lines[4] == {"warning": "old library"}


def test_quiet_leaves_the_stream_and_drops_messages(capsys: Captured) -> None:
    out = console.configure(progress="json", quiet=True)
    out.info("hello")
    with out.progress(1, "decode") as bar:
        bar.update()
    assert [json.loads(line)["progress"] for line in capsys.readouterr().err.splitlines()] == ["decode"]
    out = console.configure(quiet=True)
    with out.progress(1, "decode") as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_python_s_warnings_become_objects_only_with_the_stream() -> None:
    before = warnings.showwarning
    console.configure(progress="json")
    assert warnings.showwarning is console._show_warning
    console.configure()
    assert warnings.showwarning is before or warnings.showwarning is console._SHOW_WARNING
