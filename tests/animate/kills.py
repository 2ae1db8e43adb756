"""``sa animate`` killed with SIGKILL at random moments: ``python -m tests.animate.kills KILLS SEED [MODEL]``.

Every run is a process of its own, forked from this one, which has imported everything and computed nothing: imports
take seconds and have nothing to lose. Prints one line of JSON: how many kills hit a run at work and where, and how many
of the runs that were gone on with are equal to the unbroken one in their bytes and in what their records say.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import stableanimator_cli.animate.pipeline  # noqa: F401  what every run imports, once for all
from stableanimator_cli.__main__ import main as sa
from stableanimator_cli.animate import checkpoint
from stableanimator_cli.media import write_image
from stableanimator_cli.motion.motion_file import save_motion
from tests.waving import waving


@dataclass(frozen=True, kw_only=True)
class Killed:
    """One command with everything that keeps something between steps: Heun with churn, face optimisation, the gate."""

    place: Path
    model: Path
    name: str

    @property
    def output(self) -> Path:
        return self.place / f"{self.name}.mp4"

    @property
    def line(self) -> list[str]:
        return [
            "sa", "animate", str(self.place / "face.png"), str(self.place / "poses.npz"), "-o", str(self.output),
            "--model", str(self.model), "--steps", "4", "--window", "4", "--sampler", "heun", "--churn", "10",
            "--refine-face", "crop", "--refine-iters", "1", "--min-csim", "-1", "--device", "cpu", "--preview",
        ]  # fmt: skip

    def start(self) -> int:
        """The process, once its work begins."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _work(self.line, self.place / "said.txt", writing)
        os.close(writing)
        begun = os.read(reading, 1)
        os.close(reading)
        if not begun:
            raise AssertionError((self.place / "said.txt").read_text())
        return pid

    def finish(self) -> float:
        """Start and let it end well; the seconds of its work."""
        pid, begun = self.start(), time.monotonic()
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise AssertionError((self.place / "said.txt").read_text())
        return time.monotonic() - begun

    def kill_after(self, stage: int, seconds: float) -> bool:
        """Start, and kill so many seconds after a stage has begun: 0 the work, 1 a state is there, 2 all steps are
        done, 3 the video is written, 4 it is there. Returns whether the run was still at work."""
        pid, limit = self.start(), time.monotonic() + seconds
        while time.monotonic() < limit:
            if not self.reached(stage):
                limit = time.monotonic() + seconds
            if os.waitpid(pid, os.WNOHANG)[0]:
                return False
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def reached(self, stage: int) -> bool:
        kept = self.output.with_name(f".{self.output.name}.state")
        if stage == 2:
            with contextlib.suppress(OSError):
                return b'\\"step\\": 4' in kept.read_bytes()[:4000]
            return False
        written = any(self.place.glob(f".{self.output.name}.*.part"))
        return (True, kept.exists(), False, written, self.output.exists())[stage]

    def moment(self) -> str:
        """How far it was, by what it has left."""
        if self.output.exists():
            return "video there, record or end not"
        if any(self.place.glob(f".{self.output.name}.*.part")):
            return "decoding and writing"
        return (
            "sampling and measuring"
            if self.output.with_name(f".{self.output.name}.state").exists()
            else "before the first step"
        )

    def outcome(self) -> tuple[Any, ...]:
        record = json.loads(self.output.with_suffix(".json").read_text())
        preview = self.output.with_suffix(".preview.mp4")
        kept = ("refined", "identity", "redrawn_windows")
        return self.output.read_bytes(), preview.read_bytes(), *(record[key] for key in kept)


def _work(line: Sequence[str], said: Path, writing: int) -> NoReturn:
    """What `sa` does, with a state after every step; tells when it begins, and never returns."""
    begin = checkpoint.CheckpointManager.__init__

    def told(self: checkpoint.CheckpointManager, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        os.write(writing, b"!")

    code = 70
    try:
        with said.open("w") as file:
            sys.stdout = sys.stderr = file
            checkpoint.CheckpointManager.__init__, checkpoint.INTERVAL, checkpoint._WRITE_RATIO = told, 0.0, 0
            sys.argv = list(line)
            sa()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    finally:
        os._exit(code)


def kill(place: Path, model: Path, kills: int, seed: int) -> dict[str, Any]:
    """Break runs off until ``kills`` hit one at work, one to four times each, and let each end."""
    picture = np.full((96, 96, 3), 60, np.uint8)
    picture[20:70, 30:60], picture[35:45, 40:50] = (255, 0, 0), (255, 120, 0)
    write_image(place / "face.png", picture)
    save_motion(place / "poses.npz", waving(5, (64, 64)))
    whole = Killed(place=place, model=model, name="whole")
    seconds, rng, moments = whole.finish(), random.Random(seed), Counter[str]()
    equal = runs = 0
    while moments.total() < kills:
        broken = Killed(place=place, model=model, name=f"run{runs}")
        for _ in range(min(rng.randint(1, 4), kills - moments.total())):
            if broken.kill_after(rng.randrange(5), rng.uniform(0.0, seconds / 4)):
                moments[broken.moment()] += 1
        broken.finish()
        runs += 1
        equal += broken.outcome() == whole.outcome()
        print(f"{moments.total()} kills, {equal} of {runs} runs equal", file=sys.stderr, flush=True)
    left = sorted(file.name for file in place.iterdir() if file.name.startswith("."))
    return {"kills": moments.total(), "moments": dict(moments), "runs": runs, "equal": equal, "left": left}


def random_model(folder: Path) -> Path:
    """The smallest networks, and a detector to which a red rectangle is a face; made in a process of its own."""
    pid = os.fork()
    if pid == 0:
        import torch

        from tests import onnx_samples
        from tests.random_model import TINY, write_model

        write_model(folder, TINY, dtype=torch.float32)
        onnx_samples.faces(folder / "faces")
        card = folder / "model.toml"
        card.write_text(card.read_text() + '\n[components.face]\nfile = "faces"\n')
        os._exit(0)
    os.waitpid(pid, 0)
    return folder


def main(kills: int, seed: int, model: Path | None = None) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        print(json.dumps(kill(place, model or random_model(place / "seeing"), kills, seed)))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
