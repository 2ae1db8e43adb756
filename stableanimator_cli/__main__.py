"""Run ``sa``: an expected failure becomes one line, one hint and one exit code (``docs/design.md`` §7)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from types import FrameType

from stableanimator_cli import distributed
from stableanimator_cli.cli import console, streams
from stableanimator_cli.errors import BadInput, BadUsage, Interrupted, OutOfMemory, SaError, is_out_of_memory, plain

# onnxruntime otherwise writes an id and a database under the user's cache when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def main() -> None:
    """The entry point of the console script. Leaves with the exit code of what happened."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _as_interrupt)  # so that temporary files and devices are let go
    streams.prepare()
    from stableanimator_cli.cli.app import app

    try:
        code = app(prog_name="sa", standalone_mode=False)
    except SaError as error:
        code = _fail(error)
    except KeyboardInterrupt:
        code = _fail(Interrupted("interrupted"))
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        code = streams.OutputUnread.exit_code  # Typer leaves with 1 where nothing reads its pages of help
    except Exception as error:
        code = _fail_unexpected(error)
    else:
        if code == Interrupted.exit_code:  # Typer turns Ctrl-C into this, without a word
            code = _fail(Interrupted("interrupted"))
    late = streams.finish()
    sys.exit(code or (late.exit_code if late is not None else 0))


def _as_interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail_unexpected(error: Exception) -> int:
    """What no stage foresaw: a command line that does not parse, an output that is full, or a bug."""
    say = getattr(error, "format_message", None)
    if say is None:
        if is_out_of_memory(error):
            lack = OutOfMemory("the memory of this machine is not enough", hint="use a smaller size or fewer frames")
            lack.__cause__ = error
            return _fail(lack)
        return _fail((_of_the_system(error) if isinstance(error, OSError) else None) or _bug(error))
    # Typer's own errors; their classes are private to it
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "sa"
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, which is printed already
        return BadUsage.exit_code
    words = " ".join(say().split()).rstrip(".")
    return _fail(BadUsage(words[:1].lower() + words[1:], hint=f"`{command} --help` shows what it takes"))


def _of_the_system(error: OSError) -> SaError | None:
    """What the system refuses about a file that it names is no bug, wherever it was refused: a name that is too long, a
    folder that may not be read, a full disk."""
    place, reason = error.filename, (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadInput(
            place or "standard output", "no room left to write", "enough free space", hint="free some space"
        )
    if not isinstance(place, str | bytes) or not place:
        return None
    refused = BadInput.because(
        os.fsdecode(place), f"the system refuses it ({reason})", hint="check the path and its rights"
    )
    refused.__cause__ = error
    return refused


def _bug(error: Exception) -> SaError:
    """What is not an SaError is our mistake: say so in a line, and how to see more."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in last)
    words = " ".join(str(error).split())
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    bug = SaError(f"a bug of ours: {said}{where}", hint="SA_DEBUG=1 shows the traceback; please report it with that")
    bug.__cause__ = error
    return bug


def _fail(error: SaError) -> int:
    """Print an error as the user asked for: two lines on stderr, or one JSON object on stdout."""
    if isinstance(error, BadUsage) and distributed.rank() > 0:
        return error.exit_code  # every process of torchrun reads the same words; the first one says it
    if os.environ.get("SA_DEBUG", "0") not in ("", "0"):
        shown = error.__cause__ if type(error) is SaError and error.__cause__ else error
        with contextlib.suppress(OSError):
            traceback.print_exception(shown, file=sys.stderr)
    if isinstance(error, streams.OutputUnread):
        return error.exit_code  # who ended the pipe knows
    if console.get().json or "--json" in sys.argv[1:]:  # what does not parse has configured nothing
        try:
            streams.write(error.to_json() + "\n")
        except SaError as lost:
            if isinstance(lost, streams.OutputUnread):
                return lost.exit_code
            streams.write_stderr(f"sa: {plain(error.message)}\n")
    else:
        hint = f"hint: {plain(error.hint)}\n" if error.hint else ""
        streams.write_stderr(f"sa: {plain(error.message)}\n{hint}")
    return error.exit_code


if __name__ == "__main__":
    main()
