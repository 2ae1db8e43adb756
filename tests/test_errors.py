"""Messages: one line that any terminal shows, and no longer than a person reads."""

from __future__ import annotations

import json
import pickle
import tomllib
from pathlib import Path

import pytest

from stableanimator_cli.errors import (
    QUOTED,
    BadInput,
    ConfigError,
    Interrupted,
    ModelDamaged,
    ModelMissing,
    NoFace,
    OutOfMemory,
    SaError,
    command,
    cut,
    plain,
    value_text,
)


def test_values_are_shown_as_toml_spells_them() -> None:
    text = "a = [true, {b = 1979-05-27, c = 07:32:00}]\nd = 1979-05-27T07:32:00\ne = 0.5\nf = 'x'\ng = inf"
    table = tomllib.loads(text)
    assert "\n".join(f"{key} = {value_text(value)}" for key, value in table.items()) == text
    assert ConfigError("run.toml: steps", True, "a whole number").message == (
        "run.toml: steps: found true, expected a whole number"
    )
    assert ConfigError("--output", Path("a.mp4"), "a folder").message == "--output: found 'a.mp4', expected a folder"
    assert value_text(None) == "null"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dance.mp4: found nothing", "dance.mp4: found nothing"),
        ("a\nb\tc\x1b[31m\x00", "a\\nb\\tc\\x1b[31m\\x00"),
        ("d\udcffnce.mp4", "d\\xffnce.mp4"),
        ("\ud83d", "\\ud83d"),
        ("right\u202eto left\u2028line", "right\\u202eto left\\u2028line"),
        ("no\ufeffthing\u200b", "no\\ufeffthing\\u200b"),
        ("grüße 日本 ×", "grüße 日本 ×"),
    ],
)
def test_a_message_is_one_line_of_text(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(plain(text)) == plain(text)
    plain(text).encode()


def test_a_command_of_a_hint_can_be_pasted_into_a_shell() -> None:
    assert command("rm", "-r", Path("/data/my models/it's")) == """rm -r '/data/my models/it'"'"'s'"""
    assert command("ls", Path("videos/über")) == "ls 'videos/über'"


def test_what_is_quoted_is_cut_in_its_middle() -> None:
    long = "/".join(["folder" * 20] * 50) + "/dance.mp4"
    for error in (
        BadInput(long, "x" * 200_000, "a video", hint=f"rm {long}"),
        BadInput.because(long, "it is " + "y" * 200_000),
        ConfigError("--size", "9" * 200_000, "a size"),
        ConfigError(f"{long}: steps", 3, "a size"),
        ModelDamaged(f"{long}: not valid TOML: " + "word " * 40_000, hint=long),
        SaError("x" * 200_000),
    ):
        assert len(error.message) <= 1500
        assert len(error.hint or "") <= 1500
        assert max(map(len, error.message.split())) <= QUOTED
        assert json.loads(error.to_json())["message"] == error.message == str(error)
        assert pickle.loads(pickle.dumps(error)).message == error.message
    assert "dance.mp4: found x" in BadInput(long, "x", "y").message
    assert cut("a" * 300).endswith("aaa")
    assert len(cut("a" * 300)) == QUOTED


class Lost(Interrupted):
    """A class of a module, with the code of its base."""


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("--size", 3, "a size", hint="say so"),
        BadInput("a.png", "nothing", "a picture", frame=3),
        NoFace("nobody"),
        ModelMissing("unet"),
        OutOfMemory("out of memory while denoising", hint="less"),
        SaError("a bug of ours"),
    ],
)
def test_an_error_is_itself_again_from_its_json(error: SaError) -> None:
    again = SaError.from_json(error.to_json().encode())
    assert type(again) is type(error)
    assert (again.message, str(again), again.hint, again.exit_code) == (
        error.message, str(error), error.hint, error.exit_code
    )  # fmt: skip
    assert type(SaError.from_json(Lost("rank 1").to_json())) is Interrupted


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\x80\x04\x95", b"{", b"[]", b"3", b'{"error": []}', b'{"error": "no-such", "message": "", "hint": ""}',
        b'{"error": "internal"}', b"[" * 100_000, pickle.dumps(SaError("x")),
    ],
)  # fmt: skip
def test_what_is_no_error_becomes_one_that_says_so(text: bytes) -> None:
    assert SaError.from_json(text).message == "an error that cannot be read"


def test_the_json_of_an_error_decides_neither_exit_code_nor_what_a_terminal_does() -> None:
    told = {"error": "no-face", "message": "a\x1b[2Jb", "hint": ["\n"], "exit_code": 0}
    error = SaError.from_json(json.dumps(told))
    assert (error.exit_code, error.message, error.hint) == (4, "a\\x1b[2Jb", "['\\n']")
