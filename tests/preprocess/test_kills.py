"""Killed without warning and started again, as often as it takes: the clips are those of an unbroken run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.preprocess import drawn


def start(videos: Path, model: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stableanimator_cli", "preprocess", str(videos), "--model", str(model), "-o", str(out),
         "--device", "cpu", "--quiet", *more],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def killed_at_random(videos: Path, model: Path, out: Path, kills: int, seed: int) -> int:
    """Start, kill with SIGKILL at a random moment while there is work, ``kills`` times; then let it finish. Returns how
    many runs were really killed at work."""
    rng, hit = random.Random(seed), 0
    for _ in range(kills):
        child = start(videos, model, out)
        limit = time.monotonic() + 60
        while not out.exists() and child.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)  # nothing to break yet
        time.sleep(rng.uniform(0.0, 2.0))
        hit += child.poll() is None
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    last = start(videos, model, out)
    _, words = last.communicate(timeout=300)
    assert last.returncode in (0, 7), words.decode()
    return hit


def test_killed_and_resumed_is_the_same_as_never_killed(tmp_path, rectangles):
    for index in range(5):
        drawn.write_video(tmp_path / "videos" / f"v{index}.mp4", drawn.walk(24 + index))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video" * 99)
    whole = start(tmp_path / "videos", rectangles, tmp_path / "whole")
    _, words = whole.communicate(timeout=300)
    assert whole.returncode == 7, words.decode()
    assert killed_at_random(tmp_path / "videos", rectangles, tmp_path / "broken", kills=3, seed=4) >= 1
    expected = drawn.clips_of(tmp_path / "whole")
    assert len([name for name in expected if name.endswith("clip.json")]) == 5
    assert drawn.clips_of(tmp_path / "broken") == expected
