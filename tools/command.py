"""The parts that all commands of ``tools`` share: messages, errors and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from stableanimator_cli.errors import SaError


def report(message: str) -> None:
    """Print a line to stderr at once: stdout is for results."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def report_error(error: SaError) -> int:
    """Print ``error`` and its hint; return the exit code."""
    report(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
    return error.exit_code


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command to its end. An error or an interruption is printed, without a traceback."""
    try:
        command()
    except SaError as error:
        return report_error(error)
    except KeyboardInterrupt:
        report("interrupted: run the same command to resume")
        return 130
    return 0
