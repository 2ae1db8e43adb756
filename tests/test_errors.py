"""Messages: one line that any terminal shows, and no longer than a person reads."""

from __future__ import annotations

import json
import pickle

import pytest

from stableanimator_cli.errors import QUOTED, BadInput, ConfigError, ModelDamaged, SaError, cut, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dance.mp4: found nothing", "dance.mp4: found nothing"),
        ("a\nb\tc\x1b[31m\x00", "a\\nb\\tc\\x1b[31m\\x00"),
        ("d\udcffnce.mp4", "d\\xffnce.mp4"),
        ("\ud83d", "\\ud83d"),
        ("right\u202eto left\u2028line", "right\\u202eto left\\u2028line"),
        ("grüße 日本 ×", "grüße 日本 ×"),
    ],
)
def test_a_message_is_one_line_of_text(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(plain(text)) == plain(text)
    plain(text).encode()


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
