"""``sa train`` killed with SIGKILL at random moments, and started several times at once on one folder:
``python -m tests.train.kills KILLS SEED``.

Every run is a process of its own, forked from this one, which has imported everything and computed nothing. Each has a
data set of its own, whose faces and caches it makes. Prints one line of JSON: kills that hit a run at work and where,
how many of the resumed runs equal the unbroken one in every file (seconds and paths aside), temporary files that were
left, and how starting two or three at once ended.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import stableanimator_cli.train.pipeline  # noqa: F401  what every run imports, once for all
from stableanimator_cli.__main__ import main as sa
from stableanimator_cli.media import read_image, write_image
from tests.animate.kills import random_model
from tests.train.clip_folders import write_clip, write_upstream

STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Killed:
    """One training on folders of the reference implementation, with caches, an average and validation."""

    place: Path
    model: Path

    @property
    def run(self) -> Path:
        return self.place / "run"

    def line(self) -> list[str]:
        if (self.run / "config.toml").is_file():
            return ["sa", "train", "--resume", str(self.run)]
        return [
            "sa", "train", str(self.place / "data"), "-o", str(self.run), "--model", str(self.model), "--steps",
            str(STEPS), "--frames", "2", "--batch", "2", "--warmup", "0", "--rate", "1e-3", "--train", "adapters",
            "--save-every", "1", "--keep", "2", "--ema", "0.9", "--workers", "1", "--stride", "1", "--device", "cpu",
            "--checkpointing", "off", "--cache", "latents,embeddings", "--validate", str(self.place / "held"),
            "--validate-every", "3", "--config", str(self.model.parent / "recipe.toml"),
        ]  # fmt: skip

    def start(self, said: str = "said.txt") -> int:
        line, pid = self.line(), os.fork()
        if pid == 0:
            _work(line, self.place / said)
        return pid

    def finish(self) -> float:
        pid, begun = self.start(), time.monotonic()
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
            raise AssertionError((self.place / "said.txt").read_text())
        return time.monotonic() - begun

    def kill_after(self, seconds: float) -> bool:
        """Whether the run was still at work then."""
        pid, limit = self.start(), time.monotonic() + seconds
        while time.monotonic() < limit:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return False
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def moment(self) -> str:
        """How far it was, by what it has left."""
        steps = len(list((self.run / "checkpoints").glob("step-*")))
        if any((self.run / "checkpoints").glob(".step-*")):
            return "writing a checkpoint"
        if steps:
            return "training or validating"
        made = list((self.place / "data").rglob("*.safetensors"))
        return "caching, or before the first checkpoint" if made else "before caching"

    def outcome(self) -> dict[str, bytes]:
        """Every file of run and data set, paths and seconds taken out."""
        found = {}
        for path in sorted(p for root in (self.run, self.place / "data") for p in root.rglob("*") if p.is_file()):
            content = path.read_bytes().replace(str(self.place).encode(), b"PLACE")
            if path.name == "metrics.jsonl":
                content = re.sub(rb'"seconds": [0-9.e-]+', b"", content)
            found[path.relative_to(self.place).as_posix()] = content
        found["model"] = os.readlink(self.run / "model").encode()
        return found


def _work(line: list[str], said: Path) -> NoReturn:
    code = 70
    try:
        with said.open("w") as file:
            sys.stdout = sys.stderr = file
            sys.argv = line
            sa()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    finally:
        os._exit(code)


def prepare(place: Path) -> None:
    """Two clips with a face for the tests' detector, and a held-out one."""
    for number in range(2):
        for file in (write_upstream(place / f"data/rec/0000{number}", 4) / "images").iterdir():
            picture = np.array(read_image(file))
            picture[8:40, 16:48] = (255, 0, 0)
            write_image(file, picture)
    write_clip(place / "held/clip", 4)
    (place / "recipe.toml").write_text("[validation]\nframes = 2\nsteps = 1\n")


def fresh(place: Path, name: str) -> Killed:
    (place / name).mkdir()
    shutil.copytree(place / "data", place / name / "data")
    shutil.copytree(place / "held", place / name / "held")
    return Killed(place=place / name, model=place / "seeing")


def kill(place: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs until ``kills`` have hit one at work, one to four times each, and let each end."""
    whole = fresh(place, "whole")
    seconds, rng, moments = whole.finish(), random.Random(seed), Counter[str]()
    wanted = whole.outcome()
    equal = runs = 0
    left: list[str] = []
    while moments.total() < kills:
        broken = fresh(place, f"run{runs}")
        for _ in range(min(rng.randint(1, 4), kills - moments.total())):
            if broken.kill_after(rng.uniform(0.0, seconds)):
                moments[broken.moment()] += 1
        broken.finish()
        runs += 1
        found = broken.outcome()
        equal += found == wanted
        different = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
        left += [name for name in found if ".part" in name]
        print(f"{moments.total()} kills, {equal} of {runs} runs equal {different[:4]}", file=sys.stderr, flush=True)
    return {"kills": moments.total(), "moments": dict(moments), "runs": runs, "equal": equal, "left": left}


def at_once(place: Path, processes: int) -> list[str]:
    """Start so many on one folder: how each ended, and whether the result is that of one alone."""
    one = fresh(place, f"at-once-{processes}")
    pids = [one.start(f"said{number}.txt") for number in range(processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    says = [(one.place / f"said{number}.txt").read_text().strip().splitlines()[0] for number in range(processes)]
    ends = sorted(
        f"{code} {'being written by another' in said or 'already' in said}"
        for code, said in zip(codes, says, strict=True)
    )
    return [*ends, f"equal {one.outcome() == Killed(place=place / 'whole', model=one.model).outcome()}"]


def main(kills: int, seed: int) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        random_model(place / "seeing")
        prepare(place)
        found = kill(place, kills, seed)
        print(json.dumps(found | {"at once": [at_once(place, count) for count in (2, 3)]}))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
