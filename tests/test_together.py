"""Several ``sa`` at once: at one output one succeeds and the data are those of a run alone; cores are shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

VERBS = ("preprocess", "animate", "train")


@pytest.fixture(scope="module")
def trials() -> subprocess.CompletedProcess[str]:
    """All verbs in one process, which imports the libraries once."""
    return subprocess.run(
        [sys.executable, "-m", "tests.kills", "together", "2", *VERBS],
        cwd=ROOT, capture_output=True, text=True, timeout=600 * len(VERBS), check=False,
    )  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_one_of_several_writes_and_the_others_are_refused(trials: subprocess.CompletedProcess[str], verb: str) -> None:
    assert trials.returncode == 0, trials.stdout + trials.stderr
    (found,) = (trial for trial in map(json.loads, trials.stdout.splitlines()) if trial["verb"] == verb)
    assert found["refused"] == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["by default", "given", "a policy is given"],
)
def test_threads_of_two_runs_leave_each_other_the_cores(given: dict[str, str], expected: str) -> None:
    """OpenMP's long waiting loop made two runs at once five times as slow as one after the other."""
    code = "import os, sys, stableanimator_cli.__main__ as main\nassert 'torch' not in sys.modules\n"
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    env = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=env | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
