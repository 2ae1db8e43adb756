from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from stableanimator_cli import __main__ as entry
from stableanimator_cli import __version__
from stableanimator_cli.cli import console
from stableanimator_cli.cli.verbs import VERBS, app, load_verb
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.errors import BadInput, BadUsage, Interrupted, NoFace
from tests.conftest import ROOT, Run

GROUP: Any = typer.main.get_command(app)
ANIMATE: Any = load_verb("animate")


def leave(monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]) -> int:
    """Run ``main`` with an app that raises, and give the exit code."""

    def broken(**_: object) -> None:
        raise error

    return leave_from(monkeypatch, broken)


def leave_from(monkeypatch: pytest.MonkeyPatch, app: Callable[..., object]) -> int:
    """Run ``main`` with another app, and give the exit code."""
    monkeypatch.setattr("stableanimator_cli.cli.verbs.app", app)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as left:
            entry.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert isinstance(left.value.code, int)
    return left.value.code


def test_an_expected_failure_is_a_line_a_hint_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = BadInput("dance.mp4", "480x0 pixels", "a picture", frame=7, hint="cut the frame out: --frames 8:")
    assert leave(monkeypatch, error) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "sa: dance.mp4, frame 7: found 480x0 pixels, expected a picture",
        "hint: cut the frame out: --frames 8:",
    ]


@pytest.mark.parametrize(("rank", "lines"), [("0", 2), ("1", 0)])
def test_of_torchruns_processes_the_first_says_what_was_typed_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, lines: int
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert leave(monkeypatch, BadUsage("no such option: --stepz", hint="`sa animate --help`")) == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_rank_without_torchrun_is_nobody_elses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")  # schedulers of clusters set it for jobs of one process as well
    assert leave(monkeypatch, BadUsage("no such option: --stepz")) == 2
    assert capsys.readouterr().err == "sa: no such option: --stepz\n"


def test_a_failure_under_json_is_an_object_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.configure(json=True)
    assert leave(monkeypatch, NoFace("person.png: no face")) == 4
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "error": "no-face", "message": "person.png: no face", "hint": None, "exit_code": 4
    }  # fmt: skip
    assert said.err == ""


def test_a_bug_is_a_line_and_the_traceback_comes_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SA_DEBUG", raising=False)
    assert leave(monkeypatch, ZeroDivisionError("division\nby zero")) == 70
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("sa: a bug of ours: ZeroDivisionError: division by zero (test_verbs.py, line ")
    assert "SA_DEBUG=1" in said[1]
    monkeypatch.setenv("SA_DEBUG", "1")
    assert leave(monkeypatch, ZeroDivisionError("division")) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_too_little_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SA_DEBUG", raising=False)
    assert leave(monkeypatch, MemoryError()) == 6
    assert "a bug of ours" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted("interrupted")])
def test_an_interrupt_leaves_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    assert leave(monkeypatch, error) == 130
    assert capsys.readouterr().err == "sa: interrupted\n"


def test_an_interrupt_that_typer_swallowed_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave_from(monkeypatch, lambda **_: 130) == 130
    assert capsys.readouterr().err == "sa: interrupted\n"


def test_a_crash_in_native_code_names_the_lines_that_led_to_it() -> None:
    script = """
import faulthandler, sys, types
fake = types.ModuleType("stableanimator_cli.animate.run")
def run(**_):
    faulthandler._sigsegv()
fake.run = run
import stableanimator_cli.animate
sys.modules[fake.__name__] = stableanimator_cli.animate.run = fake
sys.argv = ["sa", "animate", "a.png", "b.mp4", "-o", "c.mp4"]
from stableanimator_cli.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr
    assert "in run\n" in done.stderr
    assert "__main__.py" in done.stderr


@pytest.mark.parametrize(
    ("by", "hangup"),
    [(signal.SIGTERM, "SIG_DFL"), (signal.SIGHUP, "SIG_DFL"), (signal.SIGTERM, "SIG_IGN")],  # SIG_IGN: under nohup
)
def test_a_polite_kill_unwinds_as_an_interrupt(by: signal.Signals, hangup: str) -> None:
    script = f"""
import signal, sys, time, types
signal.signal(signal.SIGHUP, signal.{hangup})
fake = types.ModuleType("stableanimator_cli.animate.run")
def run(**_):
    try:
        print("started", flush=True)
        for _ in range(600):  # a signal that comes just before a sleep does not end it
            time.sleep(0.1)
    finally:
        print("cleaned", flush=True)
fake.run = run
import stableanimator_cli.animate
sys.modules[fake.__name__] = stableanimator_cli.animate.run = fake
sys.argv = ["sa", "animate", "a.png", "b.mp4", "-o", "c.mp4"]
from stableanimator_cli.__main__ import main
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        if hangup == "SIG_IGN":
            child.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5)
        child.send_signal(by)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "cleaned\n", "sa: interrupted\n")


LISTS, HELPS, FAILS = ("models", "list"), ("animate", "--help"), ("models", "show", "nowhere")


@pytest.mark.parametrize(
    ("args", "redirected", "code"),
    [
        (LISTS, "| true", 141),
        (HELPS, "| true", 141),
        (LISTS, "> /dev/full", 3),
        (HELPS, "> /dev/full", 3),
        (("--version",), "> /dev/full", 3),
        ((*LISTS, "--json"), "> /dev/full", 3),
        (LISTS, ">&-", 0),
        (LISTS, "2>&-", 0),
        (LISTS, "2> /dev/full", 0),
        (FAILS, ">&-", 5),
        (FAILS, "2>&-", 5),
        (FAILS, "2> /dev/full", 5),
        ((*FAILS, "--json"), "> /dev/full", 5),
        ((*FAILS, "--json"), ">&-", 5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_streams_that_take_nothing(args: tuple[str, ...], redirected: str, code: int) -> None:
    # `true` has ended long before sa has started
    command = f"set -o pipefail; {sys.executable} -m stableanimator_cli {' '.join(args)} {redirected}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    for word in ("Traceback", "Exception ignored", "a bug of ours"):
        assert word not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    if code == 3 and "--json" not in args:
        assert done.stderr.startswith("sa: standard output: found no room left to write")


def test_names_that_an_encoding_lacks_are_printed_all_the_same() -> None:
    for name, printed in (("d\udcffnce", b"d\xffnce\n"), ("×", b"\\xd7\n"), ("\ud83d", b"\\ud83d\n")):
        script = f"from stableanimator_cli.cli import streams; streams.prepare(); streams.write({name + chr(10)!r})"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60, check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == printed


def test_version_and_bare_call(sa: Run) -> None:
    assert sa("--version").stdout == f"sa {__version__}\n"
    assert "animate" in sa().stdout


@pytest.mark.parametrize(
    "args",
    [
        ("dance",),
        ("animate", "--stepz", "3"),
        ("animate", "--steps", "0"),
        ("animate", "--sampler", "oiler"),
        ("animate", "a.png", "b.mp4", "-o", "c.mp4", "--config", "/nowhere/run.toml"),
    ],
    ids=" ".join,
)
def test_bad_usage_leaves_with_2(sa: Run, args: tuple[str, ...]) -> None:
    done = sa(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert len(said) <= 2, done.stderr
    assert said[0].startswith("sa: ")


def verbs() -> list[tuple[str, Any]]:
    found = []
    for name in GROUP.commands:
        command = load_verb(name)
        inner = getattr(command, "commands", None)
        found += [(f"{name} {sub}", leaf) for sub, leaf in inner.items()] if inner else [(name, command)]
    return found


@pytest.mark.parametrize(("name", "command"), verbs(), ids=[name for name, _ in verbs()])
def test_help_opens_with_two_lines_that_parse(name: str, command: Any) -> None:
    lines = [line.strip() for line in command.help.removeprefix("\b").strip().splitlines()][:2]
    for line in lines:
        assert line.startswith(f"sa {name}"), f"{name}: {line!r}"
        command.make_context(name, line.split()[1 + len(name.split()) :])  # raises for what it does not know


@pytest.mark.parametrize("option", ANIMATE.params, ids=lambda option: option.opts[-1])
def test_an_option_of_animate_says_what_it_takes_and_its_default(option: Any) -> None:
    assert option.help
    takes_a_value = not getattr(option, "is_flag", False)
    if takes_a_value:
        assert option.metavar or getattr(option.type, "choices", None)
    required = {"reference", "motion", "output", "config"}
    if option.name not in required | {"help"}:
        assert "Default: " in option.help


def test_every_flag_of_the_config_is_an_option_of_animate() -> None:
    def flags(config: Any) -> set[str]:
        hints = typing.get_type_hints(config)
        found: set[str] = set()
        for item in dataclasses.fields(config):
            inner = hints[item.name]
            found |= flags(inner) if dataclasses.is_dataclass(inner) else {item.metadata["flag"]}
        return {flag for flag in found if not re.match(r"[a-z]", flag)}

    offered = {name for option in ANIMATE.params for name in option.opts}
    expected = {flag if flag.startswith("-") else flag.lower() for flag in flags(AnimateConfig)}
    assert expected <= offered


def test_animate_passes_on_what_was_given_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import types

    import stableanimator_cli.animate

    asked: dict[str, Any] = {}

    class Report:
        def to_json(self) -> dict[str, Any]:
            return {"video": "o.mp4"}

        def summary(self) -> str:
            return "o.mp4"

    def run(**given: Any) -> Report:
        asked.update(given)
        return Report()

    fake = types.SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "stableanimator_cli.animate.run", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(stableanimator_cli.animate, "run", fake, raising=False)
    line = "a.png b.mp4 -o o.mp4 --steps 5 --guidance 1:3 --preview --frames -5: --config r.toml --plan --json"
    ANIMATE.main(line.split(), standalone_mode=False)
    given = {name: value for name, value in asked["flags"].items() if value is not None}
    assert given == {
        "reference": Path("a.png"),
        "motion": Path("b.mp4"),
        "output": "o.mp4",
        "steps": 5,
        "guidance": "1:3",
        "preview": "video",
        "frames": "-5:",
    }
    assert asked["config_file"] == Path("r.toml")
    assert asked["plan_only"] is True
    assert json.loads(capsys.readouterr().out) == {"video": "o.mp4"}
    for words, preview in (
        ("--preview live -o o.mp4 a.png b.mp4", "live"),
        ("-o o.mp4 --preview a.png b.mp4", "video"),
    ):
        ANIMATE.main(words.split(), standalone_mode=False)
        assert (asked["flags"]["preview"], asked["flags"]["reference"]) == (preview, Path("a.png"))


@pytest.mark.parametrize("name", VERBS)
def test_paragraphs_of_the_help_are_filled_to_the_width_of_the_terminal(name: str) -> None:
    verb = load_verb(name)
    for command in (verb, *getattr(verb, "commands", {}).values()):
        examples = [part for part in command.help.split("\n\n") if part.startswith("\b")]
        prose = [part for part in command.help.split("\n\n") if not part.startswith("\b")]
        assert prose
        assert not any("\n" in part for part in prose), command.name
        assert all(len(part.split("\n")) > 1 for part in examples), command.name


@pytest.mark.parametrize("line", ["evaluate -dash.mp4 b.mp4 -o s", "preprocess --dash.mp4 -o s"])
def test_a_file_whose_name_starts_with_a_dash_is_named_with_its_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = line.split()[1]
    monkeypatch.setattr(sys, "argv", ["sa", *line.split()])
    for hint in (f"`sa {line.split()[0]} --help` shows what it takes", f"a file of that name is given as ./{name}"):
        with pytest.raises(SystemExit) as left:
            entry.main()
        assert left.value.code == 2
        message, shown = capsys.readouterr().err.splitlines()
        assert message.startswith("sa: no such option: -")
        assert shown == f"hint: {hint}"
        Path(name).touch()
