"""Several ``sa`` at one output: one succeeds, the others are refused, and the data are those of a run alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("verb", ["preprocess", "animate", "train"])
def test_one_of_several_writes_and_the_others_are_refused(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "together", "2", verb],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["refused"] == 1
