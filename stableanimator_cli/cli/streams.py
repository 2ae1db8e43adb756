"""Standard output and error if they are closed, full, an unread pipe, or of an encoding that lacks characters."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys

from stableanimator_cli.errors import BadInput, SaError, system_reason

_LOSSLESS = "sa-lossless"


class OutputUnread(SaError, exit_code=141, code="output-unread"):
    """Nothing reads standard output: ``sa models list | head -1``. Not reported; 141 is 128 + SIGPIPE, as the shell
    reports programs ended by it."""


def prepare() -> None:
    """Make both streams writable. A closed one discards its output. Characters that the encoding lacks are escaped;
    undecodable bytes of file names are written as these bytes."""
    codecs.register_error(_LOSSLESS, _encoded)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            _drop(number)
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  for the life of the process
            setattr(sys, name, stream)
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and name == "stdout":
            reconfigure(errors=_LOSSLESS)


def write(text: str) -> None:
    """Write ``text`` to standard output and flush. Raises ``BadInput`` if it is full, ``OutputUnread`` if unread."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise failure(error) from error


def write_stderr(text: str) -> None:
    """Write ``text`` to standard error. Failures are ignored: there is no stream to report them."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def failure(error: OSError) -> SaError:
    """The error for a failed write to standard output."""
    if isinstance(error, BrokenPipeError):
        return OutputUnread("nothing reads the standard output")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return BadInput("standard output", "no room left to write", "enough free space", hint="free some space")
    reason = system_reason(error)
    return BadInput.because("standard output", f"it cannot be written ({reason})", hint="send it elsewhere")


def finish() -> SaError | None:
    """Flush both streams and return the error of standard output. Unwritten data is discarded, so that the interpreter
    does not try again at exit and change the exit code."""
    failed = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if stream is sys.stdout:
                failed = failure(error)
            with contextlib.suppress(OSError, ValueError):
                _drop(stream.fileno())
    return failed


def _drop(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replacement of characters that the encoding of a stream lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= char <= "\udcff" for char in text):
        return bytes(ord(char) - 0xDC00 for char in text), error.end
    return text.encode("ascii", "backslashreplace"), error.end
