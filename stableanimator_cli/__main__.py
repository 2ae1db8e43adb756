"""Run ``sa``: an expected failure prints one line and one hint, and sets the exit code (``docs/design.md`` §7)."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import sys
import threading
import traceback
from types import FrameType

from stableanimator_cli import distributed
from stableanimator_cli.cli import console, streams
from stableanimator_cli.errors import BadUsage, Interrupted, SaError, as_sa_error
from stableanimator_cli.errors import command as quoted

# onnxruntime otherwise writes an id and a database under the user's cache when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenMP's threads wait for one another in a loop, by default so long that two runs on the same cores take five times as
# long as one after the other. A short wait costs a run of its own nothing (docs/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

_NUMBERS = {"int": "a whole number", "float": "a number, with a decimal point"}


def main() -> None:
    """Entry point of the console script; exits with the code of the result."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _as_interrupt)  # so that temporary files and devices are released
        hangup = getattr(signal, "SIGHUP", None)  # a closed terminal; Windows has none
        if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(hangup, _as_interrupt)
    streams.prepare()
    if sys.platform != "win32":  # there it also reports errors that a library handles itself
        with contextlib.suppress(OSError, ValueError):  # a stderr that is not a file, in a program that embeds this
            faulthandler.enable()  # a crash of a native library shows the Python lines that led there
    from stableanimator_cli.cli.verbs import app

    try:
        code = app(prog_name="sa", standalone_mode=False)
    except SaError as error:
        code = _fail(error)
    except KeyboardInterrupt:
        code = _fail(Interrupted("interrupted"))
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        code = streams.OutputUnread.exit_code  # Typer exits with 1 if nothing reads its help
    except Exception as error:
        code = _fail_unexpected(error)
    else:
        if code == Interrupted.exit_code:  # Typer turns Ctrl-C into this without a message
            code = _fail(Interrupted("interrupted"))
    late = streams.finish()
    sys.exit(code or (late.exit_code if late is not None else 0))


def _as_interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail_unexpected(error: Exception) -> int:
    """An error outside ``SaError``: a command line that does not parse, a refusal of the system, or a bug."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return _fail(as_sa_error(error))
    # Typer's own errors; their classes are private
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "sa"
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, which is printed already
        return BadUsage.exit_code
    words = " ".join(format_message().split()).rstrip(".")
    # Typer names the types of a number with limits "int range" and "float range", as if A:B were expected.
    words = re.sub(r"is not a valid (int|float)(?: range)?$", lambda kind: f"is not {_NUMBERS[kind[1]]}", words)
    flag = getattr(error, "option_name", None)
    if isinstance(flag, str) and type(error).__name__ == "NoSuchOption":
        from stableanimator_cli.cli.reference_flags import counterpart

        ours = counterpart(command.split()[-1], flag)
        words = words if ours is None else f"no option {flag}: {ours}"
    hint = f"`{command} --help` shows what it takes"
    file = next((word for word in sys.argv[1:] if word.startswith("-") and os.path.lexists(word)), None)
    if file is not None:
        hint = f"a file of that name is given as {quoted(f'./{file}')}"
    return _fail(BadUsage(words[:1].lower() + words[1:], hint=hint))


def _fail(error: SaError) -> int:
    """Print an error: two lines on stderr (an object with ``--progress json``), or with ``--json`` one object on
    stdout. Returns the exit code."""
    if isinstance(error, BadUsage) and distributed.rank() > 0:
        return error.exit_code  # all processes of torchrun parse the same command line; rank 0 reports it
    if os.environ.get("SA_DEBUG", "0") not in ("", "0"):
        shown = error.__cause__ if type(error) is SaError and error.__cause__ else error
        with contextlib.suppress(OSError):
            traceback.print_exception(shown, file=sys.stderr)
    if isinstance(error, streams.OutputUnread):
        return error.exit_code  # nothing to report: the reader closed the pipe
    out = console.configured_for(sys.argv[1:])  # before parsing nothing is configured
    if out.json:
        try:
            streams.write(error.to_json() + "\n")
        except SaError as lost:
            if isinstance(lost, streams.OutputUnread):
                return lost.exit_code
            out.error(error)
    else:
        out.error(error)
    return error.exit_code


if __name__ == "__main__":
    main()
