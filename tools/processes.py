"""Run Python commands in processes of their own, which free all memory at their end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from stableanimator_cli.errors import Interrupted, SaError

Command = Callable[[Sequence[str]], int]
"""Runs Python with arguments (``-m stableanimator_cli ...``) to its end; returns the exit code."""

_GRACE = 30.0  # seconds that an interrupted command has to exit


class CommandFailed(SaError):
    """A command failed; it has printed its own error. Has the exit code of that command."""

    code = "command-failed"

    def __init__(self, what: str, exit_code: int) -> None:
        super().__init__(
            f"{what}: exit code {exit_code}", hint="fix the error above and run the same command to resume"
        )
        self.exit_code = exit_code


def run_sa(command: Command, what: str, arguments: Sequence[str]) -> None:
    """Run ``sa`` with arguments. Raises ``Interrupted`` and ``CommandFailed``, which name ``what``."""
    code = command(["-m", "stableanimator_cli", *arguments])
    if code in (130, -2):
        raise Interrupted(f"{what}: interrupted", hint="run the same command to resume")
    if code:
        raise CommandFailed(what, code if code > 0 else 128 - code)


def python(arguments: Sequence[str]) -> int:
    """A ``Command``: this Python. Its stdout goes to stderr, so that stdout has only results."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=sys.stderr)
    try:
        return process.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):  # Ctrl-C in a terminal has reached the process already
            process.terminate()
        try:
            process.wait(_GRACE)  # it removes unfinished files and reports how to resume
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is sent to this process alone."""


def on_sigterm(signum: int, frame: object) -> None:
    """A signal handler that raises ``Terminated``."""
    raise Terminated
