"""Many clips: in this process, in worker processes of this machine, or as tasks of a Ray cluster.

Each worker opens the networks once. The order of answers is the order in which clips get done; what they hold does not
depend on who made them.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.errors import ConfigError, ModelDamaged, ModelMissing, SaError
from stableanimator_cli.preprocess.clip import Outcome, make_clip, write_failure
from stableanimator_cli.preprocess.inputs import Source
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import ModelFolder

_FATAL = (ModelMissing, ModelDamaged, ConfigError)
"""Errors that no other video would escape: they end the run instead of filling the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """All that a worker needs, in a form that travels between processes. ``threads`` for each network, None: all."""

    config: PreprocessConfig
    model: ModelFolder
    networks: Mapping[str, str]
    out: Path
    threads: int | None = None

    def open(self) -> Detectors:
        return Detectors.open(
            self.model, self.config.device, threshold=self.config.detect_threshold, threads=self.threads
        )


def attempt(task: Task, detectors: Detectors, source: Source, reporter: Reporter) -> Outcome:
    """One clip; a failure becomes an outcome and a file beside the clips, unless it would befall all of them."""
    started = time.perf_counter()
    try:
        done = make_clip(source, task.config, detectors, task.networks, task.out, reporter)
    except _FATAL:
        raise
    except SaError as error:
        told = write_failure(task.out, source, error)
        return Outcome(source=source, status="failed", error=told, seconds=time.perf_counter() - started)
    return Outcome(
        source=source,
        status="ok",
        folder=done.folder,
        kept=done.kept,
        record=done.record,
        seconds=time.perf_counter() - started,
    )


def in_this_process(task: Task, sources: Sequence[Source], reporter: Reporter) -> Iterator[Outcome]:
    detectors = task.open()
    onnx.warn_of_fallbacks(reporter)
    for source in sources:
        yield attempt(task, detectors, source, reporter)


_opened: tuple[Task, Detectors] | None = None


def _start(task: Task) -> None:
    global _opened
    # Ctrl-C reaches the whole group of processes: the parent tells, and ends these.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _opened = task, task.open()


def _work(source: Source) -> Outcome:
    if _opened is None:
        raise RuntimeError("the worker was not started")
    return attempt(*_opened, source, NullReporter())


def in_processes(task: Task, sources: Sequence[Source], workers: int) -> Iterator[Outcome]:
    """``workers`` processes that share the machine's cores. ``SaError`` where one is killed from outside."""
    pool = ProcessPoolExecutor(
        min(workers, len(sources)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(task,),
    )
    waiting: set[Future[Outcome]] = set()
    try:
        waiting = {pool.submit(_work, source) for source in sources}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        task.open()  # where the networks do not open at all, this says why
        raise SaError(
            "a worker process ended from outside, perhaps for lack of memory",
            hint="run the same command again: finished clips are reused; fewer --workers need less memory",
        ) from None
    finally:
        for process in list((getattr(pool, "_processes", None) or {}).values()) if waiting else ():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def on_ray(task: Task, sources: Sequence[Source], address: str) -> Iterator[Outcome]:
    """Tasks of a Ray cluster at ``address`` (``local`` starts one here). All machines must see the same folders.

    Ray sends tasks as pickles. Whoever may send to a cluster runs code on it: a local one asks for a token of its own,
    another one is as safe as its owner has made it.
    ``ConfigError`` where Ray is not installed or the cluster does not answer.
    """
    given, out = {source.name: source for source in sources}, task.out
    task, sources = _from_anywhere(task, sources)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Ray's processes run what they receive, on ports that the network may reach: only who knows this run's token
        # may send to them. The token is passed on by the environment and written nowhere.
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "--ray", address, "Ray, which is not installed", hint="pip install 'stableanimator-cli[ray]', or --workers"
        ) from None
    local: dict[str, Any] = {"num_cpus": os.cpu_count(), "include_dashboard": False, "object_store_memory": 100 << 20}
    with tempfile.TemporaryDirectory(prefix="sa-ray-") as folder:
        settings = {**local, "_temp_dir": folder} if address == "local" else {"address": address}
        try:
            ray.init(**settings, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except Exception as error:  # Ray raises many kinds here
            raise ConfigError("--ray", address, f"a cluster that answers ({error})") from error
        try:
            remote = ray.remote(max_retries=2)(_anywhere)
            waiting = [remote.remote(task, source) for source in sources]
            while waiting:
                (first,), waiting = ray.wait(waiting, num_returns=1)
                done: Outcome = ray.get(first)
                folder = None if done.folder is None else out / done.folder.relative_to(task.out)
                yield replace(done, source=given[done.source.name], folder=folder)
        finally:
            ray.shutdown()


def _from_anywhere(task: Task, sources: Sequence[Source]) -> tuple[Task, list[Source]]:
    """The same with absolute paths: Ray's processes have a working directory of their own."""
    files = {role: path.resolve() for role, path in task.model.files.items()}
    model = replace(task.model, path=task.model.path.resolve(), files=files)
    return replace(task, model=model, out=task.out.resolve()), [
        replace(source, path=source.path.absolute()) for source in sources
    ]


def _anywhere(task: Task, source: Source) -> Outcome:
    """As ``_work``, in a process of Ray's, which lives on from task to task."""
    global _opened
    if _opened is None or _opened[0] != task:
        _opened = task, task.open()
    return attempt(*_opened, source, NullReporter())
