"""Train the six small networks that detect and measure puppets: ``python -m tools.figure_networks.detectors``.

``make puppet-detectors`` runs it. It draws the training data first, then trains one network after the other. Interrupt
it at any time: the same command resumes from the last shard and checkpoint. The networks are written into a model
folder, and their sizes and digests into its ``model.toml``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import torch

from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import atomic_write, translate_os_errors
from tools.command import exit_code_of, report
from tools.figure_networks.boxes import FaceTask, PersonTask
from tools.figure_networks.identity import JudgeTask, RecogniserTask
from tools.figure_networks.loop import Task, train
from tools.figure_networks.pose import PoseTask
from tools.figure_networks.video import VideoTask

TASKS: tuple[type[Task], ...] = (PoseTask, FaceTask, PersonTask, RecogniserTask, JudgeTask, VideoTask)
FOLDERS = {"face": "face", "recogniser": "face"}
"""Subfolder of a task's file in the model folder; insightface opens a folder of two files, so these share one."""


def write_digests(folder: Path, written: Sequence[Path]) -> None:
    """Set the ``[[files]]`` of ``folder/model.toml``: path, bytes and sha256 of the listed files and of ``written``.

    The rows are at the end of the file; the text above them stays. Raises ``BadInput`` if the file is damaged.
    """
    path = folder / "model.toml"
    try:
        text = path.read_text(encoding="utf-8")
        listed = {row["path"] for row in tomllib.loads(text).get("files", [])}
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise BadInput(path, str(error) or type(error).__name__, "the model.toml of a model folder") from error
    names = listed | {file.relative_to(folder).as_posix() for file in written if file.suffix != ".json"}
    rows = [text.partition("[[files]]")[0].rstrip() + "\n"]
    for name in sorted(names):
        data = (folder / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        rows.append(f'[[files]]\npath = "{name}"\nbytes = {len(data)}\nsha256 = "{digest}"\n')
    with atomic_write(path) as temp, translate_os_errors(path):
        temp.write_text("\n".join(rows), encoding="utf-8")


def run(tasks: Sequence[type[Task]], work: Path, out: Path, *, threads: int, workers: int) -> None:
    """Train the networks that are not trained yet, and write their files."""
    torch.set_num_threads(threads)
    for kind in tasks:
        task, started = kind(), time.monotonic()
        net = train(task, work, report, workers=workers)
        files = task.export(net, out / FOLDERS.get(task.name, "."))
        write_digests(out, files)
        for file in files:
            report(f"{task.name}: {file}, {file.stat().st_size / 1e6:.2f} MB, {time.monotonic() - started:.0f} s")


def parse(arguments: Sequence[str] | None, names: Sequence[str], what: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("tasks", nargs="*", metavar="NETWORK", help=f"of {', '.join(names)}; by default all")
    parser.add_argument("--work", type=Path, default=Path("runs/puppet-training"), help="drawn data and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("models/puppet"), help="the model folder")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    options = parser.parse_args(arguments)
    for name in options.tasks:
        if name not in names:
            raise ConfigError("NETWORK", name, f"one of {', '.join(names)}")
    for option in ("threads", "workers"):
        if getattr(options, option) < 1:
            raise ConfigError(f"--{option}", getattr(options, option), "1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    names = [task.name for task in TASKS]
    options = parse(arguments, names, "Train the small networks that detect and measure puppets.")
    chosen = [task for task in TASKS if not options.tasks or task.name in options.tasks]
    run(chosen, options.work, options.out, threads=options.threads, workers=options.workers)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
