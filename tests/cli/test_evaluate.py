"""``sa evaluate`` as it is typed: what is on stdout, exit codes, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Run
from tests.evaluate.samples import drawn, noisy, write


def test_a_score_from_the_command_line(sa: Run, tmp_path: Path) -> None:
    frames = drawn(0, frames=3)
    change = noisy(5)
    true = write(tmp_path / "true.mp4", frames)
    made = write(tmp_path / "made.mp4", [change(0, frame) for frame in frames])
    home = {"SA_HOME": str(tmp_path / "home")}
    out = tmp_path / "scores"
    done = sa("evaluate", str(made), str(true), "-o", str(out), "--json", "--model", "puppet", "--quiet", **home)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    saved = json.loads((out / "scores.json").read_text())
    assert printed["metrics"]["psnr"]["value"] == saved["metrics"]["psnr"]["value"]
    assert 20 < saved["metrics"]["psnr"]["value"] < 45


def test_mistakes_have_their_exit_codes(sa: Run, tmp_path: Path) -> None:
    none = sa("evaluate", str(tmp_path / "a.mp4"), "-o", str(tmp_path / "s"))
    assert none.returncode == 2
    assert "PREDICTED REFERENCE" in none.stderr
    lost = sa("evaluate", str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "-o", str(tmp_path / "s"))
    assert lost.returncode == 3
    assert "a.mp4: found no such file" in lost.stderr
    bench = sa("evaluate", "--bench", "unseen100", "-o", str(tmp_path / "s"), SA_DATA="", SA_HOME=str(tmp_path))
    assert bench.returncode == 3
    assert "\n      DIR/unseen100/videos/NAME.mp4 (or NAME/ with its frames as images)\n" in bench.stderr
    assert "--bench puppet" in bench.stderr.splitlines()[-1]
