"""Standard output and standard error whatever they are connected to: closed, full, a pipe that is no longer read, or of
an encoding that lacks characters."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys

from stableanimator_cli.errors import BadInput, SaError

_LOSSLESS = "sa-lossless"


class OutputUnread(SaError):
    """Nothing reads the pipe that standard output is: ``sa models list | head -1``. Nothing is printed about it."""

    exit_code = 141  # 128 + SIGPIPE, as the shell reports programs that the signal ended
    code = "output-unread"


def prepare() -> None:
    """Make both streams writable. A closed one takes what is written and drops it; a character that the encoding lacks
    is escaped; a byte of a file name that is no text comes out as that byte."""
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
    """Write ``text`` to standard output, at once. ``BadInput`` where it is full, ``OutputUnread`` where no one reads
    it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise failure(error) from error


def write_stderr(text: str) -> None:
    """Write ``text`` to standard error. Where that fails there is no place left to say so."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def failure(error: OSError) -> SaError:
    """The error for standard output that did not take what was written."""
    if isinstance(error, BrokenPipeError):
        return OutputUnread("nothing reads the standard output")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return BadInput("standard output", "no room left to write", "enough free space", hint="free some space")
    reason = (error.strerror or str(error)).lower()
    return BadInput.because("standard output", f"it cannot be written ({reason})", hint="send it elsewhere")


def finish() -> SaError | None:
    """Write out what is still held, and return what went wrong. Whatever did not come out is dropped, so that the
    interpreter does not try it again when it ends and change the exit code."""
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
    """What stands for characters that the encoding of a stream lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= sign <= "\udcff" for sign in text):
        return bytes(ord(sign) - 0xDC00 for sign in text), error.end
    return text.encode("ascii", "backslashreplace"), error.end
