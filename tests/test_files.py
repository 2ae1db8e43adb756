"""One process at a time, told from one that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from stableanimator_cli.files import alone
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from stableanimator_cli.files import alone
with alone(Path(sys.argv[1])) as free:
    print(free, flush=True)
    time.sleep(60)
"""


def test_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with alone(lock) as free:
        assert free
        with alone(lock) as second:
            assert not second
        assert lock.exists()  # who was turned away takes nothing with it
        with alone(tmp_path / ".other") as elsewhere:
            assert elsewhere
    assert not list(tmp_path.iterdir())
    with alone(lock) as free:
        assert free


def test_who_was_killed_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        with alone(lock) as free:
            assert not free
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert lock.exists()
    with alone(lock) as free:
        assert free
    assert not lock.exists()
