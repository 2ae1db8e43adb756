"""Rows of measurements in a process of their own: a crash, a hang or an exhausted card ends the row and not the run.

A line of standard input names a row; the reply is one line of JSON. A process that failed is replaced, since a card
is not to be trusted after an error. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from stableanimator_cli.errors import plain

START = 120.0  # seconds to import and to reply for the first time
OK, FAILED, NOT_APPLICABLE, NOT_RUN = "ok", "failed", "not applicable", "not run"
NO_TIME = "no time left: run the same command again, or raise --budget"
Reply = dict[str, Any]


class NotApplicable(Exception):
    """A row that this machine cannot have, with the reason."""


def serve(reply: Callable[[str], Mapping[str, Any]]) -> None:
    """The other side: reply once when ready, then to each line of standard input. Libraries print to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    replies.write(json.dumps({"status": OK}) + "\n")
    replies.flush()
    for line in sys.stdin:
        replies.write(json.dumps(guarded(reply, line.strip())) + "\n")
        replies.flush()


def guarded(run: Callable[..., Mapping[str, Any]], *given: str) -> Reply:
    """The fields of ``run`` with status ok, or why there are none."""
    try:
        return {"status": OK} | {name: _finite(value) for name, value in run(*given).items()}
    except NotApplicable as error:
        return {"status": NOT_APPLICABLE, "reason": plain(error, 300)}
    except Exception as error:
        return {"status": FAILED, "reason": plain(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RowProcess:
    """A process of ``words`` that is started when it is needed."""

    def __init__(self, words: Sequence[str], cwd: Path | None = None) -> None:
        self._words, self._cwd = list(words), cwd
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._stderr: IO[str] | None = None

    def __enter__(self) -> RowProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, row: str, seconds: float, left: float = math.inf) -> Reply:
        """The reply to ``row``; of status failed if the process has not replied in ``seconds``, or has ended.

        ``left`` seconds include those that the process needs to start; if they do not suffice, the row was not run.
        """
        if self._process is None:
            started = time.monotonic()
            self._start()
            ready = self._read(min(START, left))
            if ready["status"] != OK:
                late = left < START and self._is_running()
                self.close()
                return {"status": NOT_RUN, "reason": NO_TIME} if late else ready
            seconds = min(seconds, max(1.0, left - (time.monotonic() - started)))
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(row + "\n")
            self._process.stdin.flush()
        reply = self._read(seconds)
        if reply["status"] == FAILED:
            self.close()
        return reply

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            self._words, cwd=self._cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
            start_new_session=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        self._replies = queue.Queue()
        threading.Thread(target=_forward, args=(self._process.stdout, self._replies), daemon=True).start()

    def _read(self, seconds: float) -> Reply:
        try:
            line = self._replies.get(timeout=seconds)
        except queue.Empty:
            return {"status": FAILED, "reason": f"no result in {seconds:.0f} s"}
        if line is None:
            return {"status": FAILED, "reason": self._ended()}
        try:
            reply = json.loads(line)
            known = reply["status"] in (OK, FAILED, NOT_APPLICABLE)
        except (ValueError, LookupError, TypeError, RecursionError):
            known, reply = False, {}
        return reply if known else {"status": FAILED, "reason": f"no reply but {plain(line.strip(), 100)!r}"}

    def _ended(self) -> str:
        """Exit status of the process, and the last line that it wrote."""
        assert self._process is not None
        assert self._stderr is not None
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr if line.strip()]
        return plain(f"its process ended ({name})" + (f": {lines[-1]}" if lines else ""), 300)

    def close(self) -> None:
        """End the process and its children."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process = None


def _forward(stream: IO[str], replies: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            replies.put(line)
    replies.put(None)
