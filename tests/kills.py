"""``sa`` killed with SIGKILL at random moments, and several at one output at once.

``python -m tests.kills kill 15 preprocess animate train`` kills runs of each verb 15 times and lets each end; what they
leave must equal what an undisturbed run writes. ``python -m tests.kills together 3 preprocess animate train demo``
starts three processes at one output: one succeeds, the others are refused in one line, and the data are equal again.
``make kills`` does both. One line of JSON per verb on stdout; exits with 1 if one of them is not as it must be.

Every run is forked from this process, which has imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import stableanimator_cli.animate.pipeline
import stableanimator_cli.evaluate.evaluator
import stableanimator_cli.preprocess.run
import stableanimator_cli.train.pipeline  # noqa: F401  what runs import, once for all
from stableanimator_cli.__main__ import main as sa
from stableanimator_cli.media import write_image
from stableanimator_cli.motion.motion_file import save_motion
from tests.evaluate import samples as figures
from tests.evaluate.samples import write
from tests.preprocess import drawn
from tests.train.clip_folders import write_clip
from tests.waving import waving

REFUSALS = ("it is being written by another `sa ", "an existing run")


class Verb(ABC):
    """One command that is run again and again, at outputs of different names below ``place``."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        _in_child(self.prepare)

    @abstractmethod
    def prepare(self) -> None:
        """Write the inputs."""

    @abstractmethod
    def line(self, output: Path) -> list[str]:
        """The command, or the one that resumes what is at ``output``."""

    @abstractmethod
    def outcome(self, output: Path) -> Any:
        """What must be equal, however the output was made."""


class Preprocess(Verb):
    def prepare(self) -> None:
        drawn.write_model(self.place / "model")
        for index in range(4):
            drawn.write_video(self.place / "videos" / f"v{index}.mp4", drawn.walk(16 + index))

    def line(self, output: Path) -> list[str]:
        model = ["--model", str(self.place / "model"), "--device", "cpu"]
        return ["preprocess", str(self.place / "videos"), "-o", str(output), *model]

    def outcome(self, output: Path) -> Any:
        return drawn.clips_of(output)


class Animate(Verb):
    def prepare(self) -> None:
        _tiny_model(self.place / "model")
        write_image(self.place / "face.png", np.random.default_rng(4).integers(0, 255, (96, 96, 3), np.uint8))
        save_motion(self.place / "poses.npz", waving(6, (64, 64)))

    def line(self, output: Path) -> list[str]:
        return [
            "animate", str(self.place / "face.png"), str(self.place / "poses.npz"), "-o", str(output / "out.mp4"),
            "--model", str(self.place / "model"), "--steps", "6", "--window", "4", "--allow-no-face", "--preview",
            "--device", "cpu",
        ]  # fmt: skip

    def outcome(self, output: Path) -> Any:
        files = drawn.contents(output)
        record = json.loads(files.pop("out.json"))
        return files, {key: record[key] for key in ("seed", "face", "refined", "windows")}


class Train(Verb):
    def prepare(self) -> None:
        _tiny_model(self.place / "model")
        for index in range(2):
            write_clip(self.place / "clips" / f"clip{index}", 4 + index)

    def line(self, output: Path) -> list[str]:
        if (output / "config.toml").exists():
            return ["train", "--resume", str(output)]
        return [
            "train", str(self.place / "clips"), "-o", str(output), "--model", str(self.place / "model"), "--steps", "6",
            "--frames", "1", "--batch", "2", "--warmup", "2", "--rate", "1e-3", "--train", "adapters", "--save-every",
            "1", "--keep", "2", "--workers", "0", "--checkpointing", "off", "--cache", "latents,embeddings",
            "--device", "cpu",
        ]  # fmt: skip

    def outcome(self, output: Path) -> Any:
        weights = {name: data for name, data in drawn.contents(output).items() if name.endswith(".safetensors")}
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        hidden = [path.name for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]
        return weights, [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines], hidden


class Demo(Verb):
    def prepare(self) -> None:
        pass

    def line(self, output: Path) -> list[str]:
        return ["demo", str(output), "--frames", "2"]

    def outcome(self, output: Path) -> Any:
        return {name: data for name, data in drawn.contents(output).items() if name != "demo.json"}


class Evaluate(Verb):
    def __init__(self, place: Path) -> None:
        os.environ["SA_HOME"] = str(place.parent / "home")  # what was seen of a video is remembered there
        super().__init__(place)

    def prepare(self) -> None:
        for figure in range(3):
            truth = write(self.place / "truth" / f"v{figure}.mp4", figures.drawn(figure, frames=24))
            figures.changed(truth, self.place / "made" / f"v{figure}.mp4", figures.noisy(6))

    def line(self, output: Path) -> list[str]:
        sides = [str(self.place / side) for side in ("made", "truth")]
        return ["evaluate", *sides, "-o", str(output), "--model", "puppet", "--device", "cpu"]

    def outcome(self, output: Path) -> Any:
        files = drawn.contents(output)
        scores = json.loads(files.pop("scores.json"))
        return files, {key: value for key, value in scores.items() if key not in ("output", "config")}


VERBS: dict[str, type[Verb]] = {
    "preprocess": Preprocess, "animate": Animate, "train": Train, "demo": Demo, "evaluate": Evaluate,
}  # fmt: skip


def kill(verb: Verb, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs at work ``kills`` times, one to four times each, and let each end."""
    whole, seconds = _whole(verb)
    rng, hits, runs, equal = random.Random(seed), 0, 0, 0
    while hits < kills:
        output = _output(verb, f"run{runs}")
        for _ in range(min(rng.randint(1, 4), kills - hits)):
            pid = _start(verb.line(output), output)
            time.sleep(rng.uniform(0.0, 0.6 * seconds))  # the first run is slower than the others
            os.kill(pid, signal.SIGKILL)
            hits += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        code = _wait(_start(verb.line(output), output))
        runs += 1
        equal += code == 0 and verb.outcome(output) == whole
        print(f"{hits} kills, {equal} of {runs} runs equal", file=sys.stderr, flush=True)
    return {"kills": hits, "runs": runs, "equal": equal, "good": equal == runs}


def together(verb: Verb, processes: int, seed: int) -> dict[str, Any]:
    """Start ``processes`` runs at one output at nearly the same moment."""
    whole, _ = _whole(verb)
    output, rng = _output(verb, "one"), random.Random(seed)
    line, pids = verb.line(output), []
    for number in range(processes):
        pids.append(_start(line, output.with_name(f"{output.name}.{number}")))
        time.sleep(rng.uniform(0.0, 0.1))
    codes = [_wait(pid) for pid in pids]
    said = [_said(output.with_name(f"{output.name}.{number}")).read_text().splitlines() for number in range(processes)]
    refused = [
        code == 3 and any(any(words in line for words in REFUSALS) for line in lines)
        for code, lines in zip(codes, said, strict=True)
    ]
    equal = verb.outcome(output) == whole
    good = codes.count(0) == 1 and sum(refused) == processes - 1 and equal
    return {"codes": dict(Counter(codes)), "refused": sum(refused), "equal": equal, "good": good}


def _whole(verb: Verb) -> tuple[Any, float]:
    """What an undisturbed run writes, and the seconds that it takes."""
    output, begun = _output(verb, "whole"), time.monotonic()
    if _wait(_start(verb.line(output), output)) != 0:
        raise AssertionError(_said(output).read_text())
    return verb.outcome(output), time.monotonic() - begun


def _output(verb: Verb, name: str) -> Path:
    """A folder whose name is as long as any other's: checkpoints hold it."""
    output = verb.place / "outputs" / name / "out"
    output.parent.mkdir(parents=True)
    if isinstance(verb, Animate):
        output.mkdir()
    return output


def _said(output: Path) -> Path:
    return output.with_name(f"{output.name}.said")


def _start(line: Sequence[str], output: Path) -> int:
    pid = os.fork()
    if pid == 0:
        _work(line, _said(output))
    return pid


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _work(line: Sequence[str], said: Path) -> NoReturn:
    """What ``sa`` does, with its words in the file ``said``; never returns."""
    code = 70
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            sys.argv = ["sa", *line, "--progress", "none"]
            sa()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    finally:
        os._exit(code)


def _in_child(work: Callable[[], None]) -> None:
    """Do it in a process of its own, so that this one starts no thread."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if _wait(pid) != 0:
        raise AssertionError("the inputs cannot be written")


def _tiny_model(folder: Path) -> None:
    import torch

    from tests.random_model import TINY, write_model

    write_model(folder, TINY, dtype=torch.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trial", choices=["kill", "together"])
    parser.add_argument("count", type=int, help="kills of each verb, or processes at one output")
    parser.add_argument("verbs", nargs="+", choices=list(VERBS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    trial, good = {"kill": kill, "together": together}[options.trial], True
    for name in options.verbs:
        place = Path(tempfile.mkdtemp())
        try:
            told = trial(VERBS[name](place / name), options.count, options.seed)
        finally:
            shutil.rmtree(place)
        print(json.dumps({"verb": name, options.trial: options.count} | told), flush=True)
        good = good and told["good"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
