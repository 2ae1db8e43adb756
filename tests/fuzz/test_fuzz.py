"""The fuzz in small: a fixed seed, as many cases as a minute or so of one core holds. ``make fuzz N=2000 SEED=7`` for
more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

CASES, SEED = 60, 1


def test_nothing_wrong_with_a_command_ends_in_anything_but_a_clear_error(tmp_path: Path) -> None:
    words = ["-m", "tests.fuzz.run", "--cases", str(CASES), "--seed", str(SEED), "--spread", "--work", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
