"""The parts that all commands of ``tools`` share: messages, errors and exit codes."""

from __future__ import annotations

import argparse
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


def positive(text: str) -> int:
    """The type of an option of ``argparse``: an integer of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, expected 1 or more")
    return number


def exit_code_of(command: Callable[[], int | None], *, resumes: bool = True) -> int:
    """Run a command to its end; returns its exit code, 0 for None.

    An error or an interruption is printed, without a traceback. ``resumes``: the same command continues the work.
    """
    try:
        return command() or 0
    except SaError as error:
        return report_error(error)
    except KeyboardInterrupt:
        report("interrupted: run the same command to resume" if resumes else "interrupted")
        return 130
