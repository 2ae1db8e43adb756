"""``sa train`` as people type it: what is refused, before anything is written, with a hint and the right exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stableanimator_cli.cli.verbs import app
from stableanimator_cli.errors import SaError


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("{empty} -o {run} --steps 1 --model {tiny} --device cpu", 3, "no clips"),
        ("{empty} -o {run} --model {tiny} --device cpu", 2, "--steps: found nothing"),
        ("{empty} -o {run} --steps 1 --model nobody", 5, "nobody"),
        ("{empty} --steps 1 --model {tiny}", 2, "--output: found nothing"),
        ("--resume {empty}", 3, "no config.toml"),
        ("--export model -o {run}", 2, "--resume RUN"),
        ("--resume {empty} --export upstream", 2, "--output: found nothing"),
        ("--resume {empty} --export upstream -o {run}", 3, "no checkpoint"),
        ("--resume {empty}/none --export model -o {run}", 3, "none: found no such folder"),
    ],
)
def test_a_mistake_is_refused(words: str, code: int, said: str, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "run": tmp_path / "run", "tiny": tiny_model}
    with pytest.raises(SaError) as caught:
        app(["train", *words.format(**places).split(), "--quiet"], standalone_mode=False)
    assert caught.value.exit_code == code
    assert said in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "run" / "config.toml").exists()
    assert not any((tmp_path / "empty").iterdir())


def test_the_seed_of_a_training_is_one_of_weights() -> None:
    text = " ".join(CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "400"}).output.split())
    assert "the same seed gives the same weights" in text
