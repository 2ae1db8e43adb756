"""Kill ``sa models pull`` and ``import`` at many moments, and run several at once: ``python -m tests.kills_models``.

After each kill the same command must end with the files of an undisturbed run and leave nothing temporary behind. Of
several at once each must succeed or say that another one is at work. A server on the loopback sends slowly.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.model_server import Server

ROOT = Path(__file__).resolve().parent.parent
REFUSED = "it is being written by another `sa models pull` or `sa models import`"
TEMPORARY = (".part", ".tmp", ".lock", ".etag")


@dataclass(frozen=True)
class Trial:
    """One command to kill. ``prepare`` makes its ``SA_HOME``."""

    name: str
    words: tuple[str, ...]
    prepare: Callable[[Path], None]


@dataclass
class Outcome:
    """What came of a trial: how many kills hit a process at work, how many left something, and all that is wrong."""

    kills: int = 0
    hits: int = 0
    left: int = 0
    together: dict[int, tuple[int, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def tree(home: Path) -> dict[str, str]:
    """Relative path and sha256 of everything in the home; links by where they lead."""
    found = {}
    for path in sorted(home.rglob("*")):
        if path.is_symlink() or path.is_file():
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            found[path.relative_to(home).as_posix()] = hashlib.sha256(content).hexdigest()
    found.pop("digests.json", None)  # remembers times
    return found


def start(trial: Trial, home: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "SA_HOME": str(home), "OMP_NUM_THREADS": "1", "no_proxy": "*"}
    return subprocess.Popen(
        [sys.executable, "-m", "stableanimator_cli", *trial.words],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, words = process.communicate(timeout=300)
    return process.returncode, words


def run(trial: Trial, folder: Path, kills: int, crowds: Iterable[int] = (2, 3)) -> Outcome:
    """``kills`` kills at moments spread over the time of an undisturbed run, then several processes at once."""
    outcome = Outcome(kills=kills)
    trial.prepare(folder / "whole")
    begin = time.monotonic()
    code, words = finish(start(trial, folder / "whole"))
    duration = time.monotonic() - begin
    expected = tree(folder / "whole")
    if code != 0:
        outcome.faults.append(f"the undisturbed run left with {code}: {words}")
        return outcome
    for index in range(kills):
        home = folder / f"kill-{index}"
        trial.prepare(home)
        before = set(tree(home))
        process = start(trial, home)
        time.sleep(duration * (0.25 + 0.75 * (index + 0.5) / kills))
        hit = process.poll() is None
        process.send_signal(signal.SIGKILL)
        finish(process)
        outcome.hits += hit
        outcome.left += set(tree(home)) not in (before, set(expected))
        outcome.faults += _faults(f"kill {index + 1}", [finish(start(trial, home))], home, expected)
    for crowd in crowds:
        home = folder / f"crowd-{crowd}"
        trial.prepare(home)
        processes = []
        for _ in range(crowd):
            processes.append(start(trial, home))
            time.sleep(random.Random(crowd).uniform(0, 0.1))
        ends = [finish(process) for process in processes]
        outcome.together[crowd] = (sum(end[0] == 0 for end in ends), sum(REFUSED in end[1] for end in ends))
        outcome.faults += _faults(f"{crowd} at once", ends, home, expected)
        outcome.faults += _faults(f"after {crowd} at once", [finish(start(trial, home))], home, expected)
    return outcome


def _faults(when: str, ends: list[tuple[int, str]], home: Path, expected: dict[str, str]) -> list[str]:
    faults = [f"{when}: left with {code}: {words}" for code, words in ends if code != 0 and REFUSED not in words]
    if not any(code == 0 for code, _ in ends):
        faults.append(f"{when}: none succeeded")
    found = tree(home)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            state = "missing" if name not in found else "left over" if name not in expected else "other bytes"
            faults.append(f"{when}: {name}: {state}")
    faults += [f"{when}: {name}: temporary" for name in found if any(sign in name for sign in TEMPORARY)]
    return faults


def trials(folder: Path, server: Server, *, size: int, convert: bool = True) -> list[Trial]:
    """A pull of two files and an archive, an import of a model folder, and a conversion. ``size`` bytes a file."""
    bodies = {name: random.Random(name).randbytes(size) for name in ("known", "unknown", "packed")}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("deep/a.onnx", bodies["packed"])
    server.files = {"/known": bodies["known"], "/unknown": bodies["unknown"], "/p.zip": stream.getvalue()}
    rows = (
        f'[[archives]]\npath = "p.zip"\nurl = "{server.url}/p.zip"\n'
        f'[[files]]\npath = "known.bin"\nurl = "{server.url}/known"\nbytes = {size}\n'
        f'sha256 = "{hashlib.sha256(bodies["known"]).hexdigest()}"\n'
        f'[[files]]\npath = "sub/unknown.bin"\nurl = "{server.url}/unknown"\n'
        '[[files]]\npath = "a.onnx"\narchive = "p.zip"\n'
    )

    def catalogued(home: Path) -> None:
        entry = home / "models/m"
        entry.mkdir(parents=True)
        (entry / "model.toml").write_text(f'name = "m"\n{rows}', encoding="utf-8")

    def empty(home: Path) -> None:
        home.mkdir()

    mine = folder / "mine"
    (mine / "sub").mkdir(parents=True)
    (mine / "model.toml").write_text('name = "mine"\n[components.unet]\nfile = "a.onnx"\n', encoding="utf-8")
    for index in range(20):
        (mine / f"sub/{index}.onnx").write_bytes(bodies["packed"] * 8)
    (mine / "a.onnx").write_bytes(bodies["known"])
    found = [
        Trial("pull", ("models", "pull", "m"), catalogued),
        Trial("import --copy", ("models", "import", str(mine), "--copy"), empty),
    ]
    if convert:
        import torch

        loose = folder / "loose"
        loose.mkdir()
        for role in ("unet", "pose_net", "face_encoder"):
            tensors = {f"layer{index}": torch.full((size // 8,), float(index)) for index in range(64)}
            torch.save(tensors, loose / f"{role}.pth")
        words = ("models", "import", str(loose), "--copy", "--convert")
        found.append(Trial("import --copy --convert", words, empty))
    return found


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    server = Server()
    server.block, server.pause = 1 << 14, 0.01
    faults = 0
    try:
        with tempfile.TemporaryDirectory() as name:
            for index, trial in enumerate(trials(Path(name), server, size=400_000)):
                (Path(name) / str(index)).mkdir()
                outcome = run(trial, Path(name) / str(index), kills)
                crowds = ", ".join(
                    f"{crowd} at once: {done} done, {refused} refused"
                    for crowd, (done, refused) in outcome.together.items()
                )
                print(
                    f"{trial.name}: {outcome.kills} kills, {outcome.hits} of them before the end, {outcome.left} left "
                    f"something for the next run; {crowds}; {len(outcome.faults)} fault(s)",
                    flush=True,
                )
                for fault in outcome.faults:
                    print(f"  {fault}", flush=True)
                faults += len(outcome.faults)
    finally:
        server.close()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
