"""Many clips: in this process, in worker processes of this machine, or as tasks of a Ray cluster.

Each worker opens the networks once. Outcomes come in the order in which clips are finished. What a clip holds does not
depend on the worker.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.errors import ConfigError, ModelDamaged, ModelMissing, SaError
from stableanimator_cli.preprocess.clip import Outcome, PreprocessJob, make_clip, write_failure
from stableanimator_cli.preprocess.inputs import Source
from stableanimator_cli.progress import NullReporter, Reporter

_FATAL = (ModelMissing, ModelDamaged)
"""Errors that every video would raise: they end the run instead of filling the report."""


def attempt(job: PreprocessJob, detectors: Detectors, source: Source, reporter: Reporter) -> Outcome:
    """One clip. A failure becomes an outcome and a file beside the clips, unless every video would fail likewise."""
    started = time.perf_counter()
    try:
        outcome = make_clip(job, source, detectors, reporter)
    except _FATAL:
        raise
    except SaError as error:
        outcome = Outcome(source=source, status="failed", error=write_failure(job.out, source, error))
    return replace(outcome, seconds=time.perf_counter() - started)


def in_this_process(job: PreprocessJob, sources: Sequence[Source], reporter: Reporter) -> Iterator[Outcome]:
    detectors = job.open_detectors()
    onnx.warn_of_fallbacks(reporter)
    for source in sources:
        yield attempt(job, detectors, source, reporter)


_opened: tuple[PreprocessJob, Detectors] | None = None


def _start(job: PreprocessJob) -> None:
    global _opened
    # Ctrl-C reaches the whole process group: the parent reports it and ends the workers.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _opened = job, job.open_detectors()


def _work(source: Source) -> Outcome:
    if _opened is None:
        raise RuntimeError("the worker was not started")
    return attempt(*_opened, source, NullReporter())


def in_processes(job: PreprocessJob, sources: Sequence[Source], workers: int) -> Iterator[Outcome]:
    """``workers`` processes that share the machine's cores. Raises ``SaError`` if one is killed from outside."""
    pool = ProcessPoolExecutor(
        min(workers, len(sources)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(job,),
    )
    pending: set[Future[Outcome]] = set()
    try:
        pending = {pool.submit(_work, source) for source in sources}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        job.open_detectors()  # raises the reason if the networks do not open at all
        raise SaError(
            "a worker process ended from outside, perhaps for lack of memory",
            hint="run the same command again: finished clips are reused; fewer --workers need less memory",
        ) from None
    finally:
        for process in list((getattr(pool, "_processes", None) or {}).values()) if pending else ():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def on_ray(job: PreprocessJob, sources: Sequence[Source], address: str) -> Iterator[Outcome]:
    """Tasks of a Ray cluster at ``address`` (``local`` starts one here). All machines must see the same folders.

    Ray sends tasks as pickles, so everybody who may send to a cluster can run code on it. A local cluster requires a
    token of its own; any other is as safe as its owner has made it.
    Raises ``ConfigError`` if Ray is not installed or the cluster does not answer.
    """
    by_name, out = {source.name: source for source in sources}, job.out
    job, sources = _with_absolute_paths(job, sources)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Ray's processes run what they receive, on ports that the network may reach: only holders of this run's token
        # may send to them. The token is passed by the environment and written to no file.
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
            remote = ray.remote(max_retries=2)(_work_on_ray)
            pending = [remote.remote(job, source) for source in sources]
            while pending:
                (first,), pending = ray.wait(pending, num_returns=1)
                done: Outcome = ray.get(first)
                folder = None if done.folder is None else out / done.folder.relative_to(job.out)
                yield replace(done, source=by_name[done.source.name], folder=folder)
        finally:
            ray.shutdown()


def _with_absolute_paths(job: PreprocessJob, sources: Sequence[Source]) -> tuple[PreprocessJob, list[Source]]:
    """Ray's processes have a working directory of their own."""
    files = {role: path.resolve() for role, path in job.model.files.items()}
    model = replace(job.model, path=job.model.path.resolve(), files=files)
    return replace(job, model=model, out=job.out.resolve()), [
        replace(source, path=source.path.absolute()) for source in sources
    ]


def _work_on_ray(job: PreprocessJob, source: Source) -> Outcome:
    """As ``_work``, in a process of Ray's, which may serve several jobs."""
    global _opened
    if _opened is None or _opened[0] != job:
        _opened = job, job.open_detectors()
    return attempt(*_opened, source, NullReporter())
