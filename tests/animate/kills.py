"""``sa animate`` killed with SIGKILL at random moments of its work. ``python -m tests.animate.kills KILLS SEED`` does
it in bulk, compares every run with the unbroken one, and counts where the kills hit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.conftest import ROOT

# `sa animate` with a state after every step, that says when its work begins
_PROGRAM = """
import sys
from stableanimator_cli.animate import state
state.INTERVAL = 0.0
state._SHARE = 0
begin = state.Keeper.__init__
def told(self, *given, **more):
    begin(self, *given, **more)
    print("begun", flush=True)
state.Keeper.__init__ = told
from stableanimator_cli.__main__ import main
main()
"""


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A command with everything that keeps something between steps: Heun with churn, face optimisation, the gate."""

    place: Path
    model: Path
    output: Path

    @property
    def state(self) -> Path:
        return self.output.with_name(f".{self.output.name}.state")

    @property
    def line(self) -> list[str]:
        return [
            "animate", str(self.place / "face.png"), str(self.place / "poses.npz"), "-o", str(self.output),
            "--model", str(self.model), "--steps", "4", "--window", "4", "--sampler", "heun", "--churn", "10",
            "--refine-face", "crop", "--refine-iters", "1", "--min-csim", "-1", "--device", "cpu", "--preview",
        ]  # fmt: skip


def started(run: Broken) -> subprocess.Popen[str]:
    """Returns once the work begins: the imports before it have nothing to lose."""
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *run.line],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout is not None
    if child.stdout.readline() != "begun\n":
        raise AssertionError(child.communicate()[1])
    return child


def until(child: subprocess.Popen[str]) -> float:
    """Wait for a run to end well; the seconds it took."""
    begun = time.monotonic()
    _, words = child.communicate(timeout=300)
    assert child.returncode == 0, words
    return time.monotonic() - begun


def killed_at_random(run: Broken, seconds: float, kills: int, seed: int, moments: Counter[str] | None = None) -> int:
    """Start and kill at a random moment of the ``seconds`` that an unbroken run works, ``kills`` times; then let it
    finish. Returns how many were killed at work; one that is done before its kill is begun anew by the next."""
    rng, hit = random.Random(seed), 0
    for _ in range(kills):
        child = started(run)
        try:
            child.wait(rng.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            hit += 1
            if moments is not None:
                moments[_moment(run)] += 1
        child.communicate()
    until(started(run))
    return hit


def _moment(run: Broken) -> str:
    if run.output.exists():
        return "video there, record not"
    if next(run.output.parent.glob(f".{run.output.name}.*.part"), None) is not None:
        return "decoding and writing"
    return "sampling and measuring" if run.state.exists() else "before the first step"


def main(kills: int, seed: int) -> None:
    import shutil

    import torch

    from stableanimator_cli.media import write_picture
    from stableanimator_cli.motion.interchange import save_motion
    from tests import onnx_samples
    from tests.random_model import TINY, write_model
    from tests.waving import waving

    place = Path(tempfile.mkdtemp())
    try:
        model = place / "seeing"
        write_model(model, TINY, dtype=torch.float32)
        onnx_samples.faces(model / "faces")
        card = model / "model.toml"
        card.write_text(card.read_text() + '\n[components.face]\nfile = "faces"\n')
        picture = np.full((96, 96, 3), 60, np.uint8)
        picture[20:70, 30:60], picture[35:45, 40:50] = (255, 0, 0), (255, 120, 0)
        write_picture(place / "face.png", picture)
        save_motion(place / "poses.npz", waving(5, (64, 64)))
        whole = Broken(place=place, model=model, output=place / "whole.mp4")
        seconds = until(started(whole))
        expected, rng, moments, done = whole.output.read_bytes(), random.Random(seed), Counter[str](), 0
        same = rounds = 0
        while done < kills:
            run = Broken(place=place, model=model, output=place / f"run{rounds}.mp4")
            done += killed_at_random(run, seconds, min(rng.randint(1, 4), kills - done), rng.randrange(2**31), moments)
            same += run.output.read_bytes() == expected
            rounds += 1
            left = [file.name for file in place.iterdir() if file.name.startswith(".")]
            print(f"{done} kills, {same} of {rounds} runs equal to the unbroken one; left behind: {left}", flush=True)
        print(dict(moments))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
