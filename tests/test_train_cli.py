"""``sa train`` as people type it: what is refused, with one line, a hint and the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Run


def test_mistakes_are_refused_before_anything_is_written(sa: Run, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    out, model = str(tmp_path / "run"), ("--model", str(tiny_model), "--device", "cpu")
    cases = [
        (("train", str(tmp_path / "empty"), "-o", out, "--steps", "1", *model), 3, "no clips"),
        (("train", str(tmp_path / "empty"), "-o", out, *model), 2, "--steps: found nothing"),
        (("train", "--resume", str(tmp_path / "empty")), 3, "no config.toml"),
    ]
    for words, code, said in cases:
        done = sa(*words, "--json")
        assert done.returncode == code, done.stderr
        error = json.loads(done.stdout)
        assert said in error["message"]
        assert error["hint"]
    assert not (tmp_path / "run" / "config.toml").exists()
