"""A queue of one engine: runs wait for one another, and the model stays loaded between them."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stableanimator_cli.app.request import Request, Run, new_folder
from stableanimator_cli.errors import Interrupted, SaError, as_sa_error
from stableanimator_cli.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from stableanimator_cli.animate.result import Animation

WARNING = "warning: "
State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass(slots=True, kw_only=True)
class Stage:
    """Long work of a run: ``done`` of ``total`` ``unit``s, ``initial`` of them by an earlier run, and what else it
    reports."""

    desc: str
    total: int | None
    unit: str
    initial: int = 0
    done: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before the first unit of this run, after the last, and for an unknown total."""
        if not self.total or not self.initial < self.done < self.total:
            return None
        return (time.monotonic() - self.started) / (self.done - self.initial) * (self.total - self.done)


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One run as the page sees it. It is a ``Reporter``; the engine's thread writes it, the page reads it."""

    request: Request
    key: tuple[str, ...]
    run: Run | None = None
    state: State = "waiting"
    stage: Stage | None = None
    messages: list[str] = field(default_factory=list)
    preview: Image | None = None
    animation: Animation | None = None
    error: SaError | None = None
    stop_requested: bool = False

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed", "stopped")

    def stop(self) -> None:
        """Interrupt the run at its next report of progress. ``EngineQueue.stop`` also drops one that waits."""
        self.stop_requested = True

    def drop(self) -> None:
        """End a run that has not started."""
        self.error, self.state = Interrupted("interrupted before it began"), "stopped"

    def info(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.messages.append(f"{WARNING}{text}")

    def progress(self, total: int | None, desc: str, unit: str = "frame", *, initial: int = 0) -> Progress:
        return _Bar(self, Stage(desc=desc, total=total, unit=unit, initial=initial, done=initial))

    def show(self, image: Image, step: object) -> None:
        """The ``on_preview`` of ``api.Animator``."""
        self.preview = image


class _Bar:
    """Progress of a stage. It raises ``KeyboardInterrupt``, as Ctrl-C does, once the job is to be stopped."""

    def __init__(self, job: Job, stage: Stage) -> None:
        self._job, self._stage = job, stage

    def update(self, n: int = 1, **fields: Any) -> None:
        self._stage.done += n
        self._stage.fields |= fields
        if self._job.stop_requested:
            raise KeyboardInterrupt

    def __enter__(self) -> Progress:
        self._job.stage = self._stage
        return self

    def __exit__(self, *raised: object) -> None:
        pass


Render = Callable[[Run, Job], "Animation"]


class EngineQueue:
    """Runs jobs one after the other in one thread. ``render`` makes the video of a run."""

    def __init__(self, output: Path, render: Render) -> None:
        self._output, self._render = output, render
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._unfinished: dict[tuple[str, ...], Run] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Job:
        """The job of a request; that of an equal one which waits or runs, as after the page was loaded again."""
        job = Job(request=request, key=request.key())
        with self._changed:
            for other in (*self._waiting, *([] if self._running is None else [self._running])):
                if not other.stop_requested and other.key == job.key:
                    return other
            self._waiting.append(job)
            self._changed.notify()
        return job

    def ahead_of(self, job: Job) -> int:
        """Number of runs before a waiting one."""
        with self._changed:
            return self._waiting.index(job) + (self._running is not None) if job in self._waiting else 0

    def stop(self, job: Job) -> None:
        """Interrupt a running job at its next report of progress; end a waiting one now."""
        job.stop()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.drop()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def close(self, timeout: float = 30.0) -> Job | None:
        """Stop all jobs and the thread, within ``timeout`` seconds. Returns the job that was running."""
        with self._changed:
            self._closed, running = True, self._running
            for job in (*self._waiting, *([] if running is None else [running])):
                job.stop()
            self._changed.notify()
        self._thread.join(timeout)
        return running

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                job = self._running = self._waiting.popleft()
            try:
                self._carry_out(job)
            finally:
                with self._changed:
                    self._running = None

    def _carry_out(self, job: Job) -> None:
        """Run a job. Its ``state`` is set last: after that all other fields are complete."""
        if job.stop_requested:
            job.drop()
            return
        job.state = "running"
        state: State = "done"
        try:
            unfinished = self._unfinished.pop(job.key, None)
            job.run = unfinished if unfinished and unfinished.has_inputs else self._new_run(job.request)
            job.animation = self._render(job.run, job)
        except KeyboardInterrupt:
            job.error, state = Interrupted("interrupted before there was anything to resume"), "stopped"
        except Exception as error:
            job.error = copy.copy(as_sa_error(error))  # without frames: they hold what filled the memory
            state = "stopped" if isinstance(error, Interrupted) else "failed"
        if job.error is not None and job.run is not None and job.run.keep_if_begun():
            self._unfinished[job.key] = job.run
        job.state = state

    def _new_run(self, request: Request) -> Run:
        run = Run(request=request, folder=new_folder(self._output))
        try:
            run.copy_inputs()
        except SaError:
            run.keep_if_begun()
            raise
        return run
