"""Expected failures of a run.

A stage raises one of these; ``__main__`` prints one line and one hint and exits with its code (``docs/design.md`` §7).
``code`` is stable and printed by ``--json``, so that scripts need not parse messages.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

QUOTED = 200
"""Maximum length of a quoted path or value in a message."""
_LINE = 1500  # characters of a message
_LONG_WORD = re.compile(rf"\S{{{QUOTED + 1},}}")


def plain(text: object, longest: int = _LINE) -> str:
    """``text`` as one printable line: control characters escaped, long words and lines cut in the middle, so that the
    end of a path stays."""
    line = str(text)
    if not line.isprintable():
        line = "".join(char if char.isprintable() else _escape(char) for char in line)
    return cut(_LONG_WORD.sub(lambda word: cut(word[0], QUOTED), line), longest)


def cut(text: str, longest: int = QUOTED) -> str:
    """``text`` cut in the middle to at most ``longest`` characters."""
    if len(text) <= longest:
        return text
    end = longest // 2
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def command(*words: object) -> str:
    """A command for a hint, ready for a shell: names with spaces or quotes are quoted."""
    return shlex.join(str(word) for word in words)


def value_text(value: object) -> str:
    """A value as TOML and JSON spell it: ``true``, ``1979-05-27``, ``{key = 1}``, ``null``. Texts are in single quotes,
    and values of other types as Python shows them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {value_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, Path):
        return repr(str(value))
    if hasattr(value, "isoformat"):  # dates and times; their module is slow to import
        return value.isoformat()  # type: ignore[attr-defined]
    return repr(value)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a file name that is not UTF-8, as Python holds it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def json_line(data: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """``data`` as JSON in UTF-8. Lone surrogates, Python's form of undecodable bytes of file names, are escaped."""
    text = json.dumps(data, indent=indent, ensure_ascii=False, default=default)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint with the nearest known word, None if none is similar."""
    import difflib  # not before it is needed: completion imports this module

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else None


# Texts of allocators that raise a plain RuntimeError: the host's, Apple's, CUDA's outside of torch's own allocator,
# those of its libraries (CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED), and ONNX Runtime's.
_OUT_OF_MEMORY = (
    "out of memory", "not enough memory", "failed to allocate", "can't allocate memory", "_status_alloc_failed",
    "host_allocation_failed",
)  # fmt: skip


def system_reason(error: Exception) -> str:
    """The reason that the system or FFmpeg gives for an error, in lower case."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library's error means that a device or the host has too little memory."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in _OUT_OF_MEMORY)


class _Lines(str):
    """A printable hint whose line breaks are meant, as ``SaError.hint`` holds it: a hint may be passed on."""

    __slots__ = ()

    def __new__(cls, hint: str | tuple[str, ...]) -> _Lines:
        lines = (hint,) if isinstance(hint, str) else hint
        return super().__new__(cls, "\n".join(line if isinstance(line, _Lines) else plain(line) for line in lines))

    def __getnewargs__(self) -> tuple[tuple[str, ...]]:  # for pickle
        return (tuple(self.split("\n")),)


class SaError(Exception):
    """Base of all expected failures. ``message`` is one line; ``hint`` is the remedy, in several lines if it is a
    tuple."""

    exit_code = 70
    code = "internal"

    def __init_subclass__(cls, *, exit_code: int | None = None, code: str | None = None) -> None:
        """A class has its own codes, or those of its base."""
        cls.exit_code = cls.exit_code if exit_code is None else exit_code
        cls.code = cls.code if code is None else code

    def __init__(self, message: str, *, hint: str | tuple[str, ...] | None = None) -> None:
        message = plain(message)
        super().__init__(message)
        self.message = message
        self.hint: str | None = None if hint is None else hint if isinstance(hint, _Lines) else _Lines(hint)

    def _reworded(self, message: str) -> Self:
        self.message = plain(message)
        self.args = (self.message,)
        return self

    def to_json(self) -> str:
        return json.dumps({"error": self.code, "message": self.message, "hint": self.hint, "exit_code": self.exit_code})

    @staticmethod
    def from_json(text: str | bytes) -> SaError:
        """The error described by ``to_json``, of the class with its code.

        Never raises: ``text`` may come from a socket. Exit codes belong to classes and are not read.
        """
        try:
            data = json.loads(text)
            kind, message, hint = classes()[data["error"]], plain(str(data["message"])), data["hint"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return SaError("an error that cannot be read")
        return _rebuilt(kind, message, {"message": message, "hint": None if hint is None else plain(str(hint))})

    def __reduce__(self) -> tuple[Any, ...]:
        """For child processes connected by pipes (``concurrent.futures``), to which no other program can write. Over
        sockets errors travel as JSON."""
        return _rebuilt, (type(self), self.message, dict(self.__dict__))


class ConfigError(SaError, exit_code=2, code="bad-config"):
    """A flag or a config key has a wrong value. Names the option as the user typed it."""

    def __init__(self, option: str, found: object, expected: str, *, hint: str | None = None) -> None:
        shown = "nothing" if found is None else cut(value_text(found))
        super().__init__(f"{cut(option)}: found {shown}, expected {expected}", hint=hint)
        self.option = option

    @classmethod
    def because(cls, path: Path | str, problem: str, *, hint: str | None = None) -> ConfigError:
        """An error whose ``problem`` is a clause: ``run.toml: it is empty``."""
        return cls(str(path), None, "", hint=hint)._reworded(f"{cut(str(path))}: {problem}")


class BadUsage(SaError, exit_code=2, code="bad-usage"):
    """A command line that does not parse: an unknown option, a value out of range, an extra word."""


class BadInput(SaError, exit_code=3, code="bad-input"):
    """A given file cannot be used. Names the file, the frame if known, found and expected. ``problem`` is the message
    without the file."""

    path: Path = Path()  # of an error from JSON, which has neither
    problem: str = ""

    def __init__(
        self,
        path: Path | str,
        found: str,
        expected: str,
        *,
        frame: int | None = None,
        hint: str | tuple[str, ...] | None = None,
    ) -> None:
        self.path, self.frame = Path(path), frame
        self.problem = f"found {cut(found, 2 * QUOTED)}, expected {expected}"
        super().__init__(f"{_place(path, frame)}: {self.problem}", hint=hint)

    @classmethod
    def because(cls, path: Path | str, problem: str, *, frame: int | None = None, hint: str | None = None) -> BadInput:
        """An error whose ``problem`` is a clause: ``out.mp4: it is being written by another process``."""
        error = cls(path, "", "", frame=frame, hint=hint)
        error.problem = problem
        return error.at(path)

    def at(self, path: Path | str) -> Self:
        """This error about the file ``path``, as of a temporary file that becomes it."""
        self.path = Path(path)
        return self._reworded(f"{_place(path, self.frame)}: {self.problem}")


class NoFace(SaError, exit_code=4, code="no-face"):
    """A face is needed and none was found."""


class NoPerson(SaError, exit_code=4, code="no-person"):
    """A person is needed and none was found."""


class ModelMissing(SaError, exit_code=5, code="model-missing"):
    """A model or one of its files is not on this machine. ``downloads``: names of the catalogue that provide it,
    ``optional``: as an optional file."""

    downloads: tuple[str, ...] = ()
    optional: bool = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | tuple[str, ...] | None = None,
        downloads: tuple[str, ...] = (),
        optional: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.downloads = downloads
        self.optional = optional


class ModelDamaged(SaError, exit_code=5, code="model-damaged"):
    """A model's file is damaged: digest, names, shapes, or a pickle that contains code."""


class OutOfMemory(SaError, exit_code=6, code="out-of-memory"):
    """The device has too little memory; the hint names the setting that helps."""


class BatchFailed(SaError, exit_code=7, code="batch-failed"):
    """Part of a batch failed; the rest is complete."""


class CheckFailed(SaError, exit_code=8, code="check-failed"):
    """A requested check failed."""


class Interrupted(SaError, exit_code=130, code="interrupted"):
    """The user stopped the run (Ctrl-C, SIGTERM, SIGHUP)."""


def _place(path: Path | str, frame: int | None) -> str:
    return cut(str(path)) if frame is None else f"{cut(str(path))}, frame {frame}"


def classes() -> dict[str, type[SaError]]:
    """Classes by code; of several with one code, the base."""
    found: dict[str, type[SaError]] = {}
    waiting = [SaError]
    while waiting:
        kind = waiting.pop(0)
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found


def _rebuilt(kind: type[SaError], message: str, state: dict[str, Any]) -> SaError:
    error = kind.__new__(kind)
    error.args = (message,)
    error.__dict__.update(state)
    return error


def as_sa_error(error: Exception) -> SaError:
    """The error that is reported for any exception: too little memory, a refusal of the system, else a bug."""
    if isinstance(error, SaError):
        return error
    if is_out_of_memory(error):
        failure: SaError = OutOfMemory("this machine has too little memory", hint="use a smaller size or fewer frames")
    else:
        failure = (_system_error(error) if isinstance(error, OSError) else None) or _bug(error)
    failure.__cause__ = error
    return failure


def _system_error(error: OSError) -> SaError | None:
    """The error for a file that the system refuses: a name that is too long, missing rights, a full disk."""
    path, reason = error.filename, system_reason(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadInput(path or "standard output", "no room left to write", "enough free space", hint="free some space")
    if not isinstance(path, str | bytes) or not path:
        return None
    hint = "check the path and its rights"
    return BadInput.because(os.fsdecode(path), f"the system refuses it ({reason})", hint=hint)


def _bug(error: Exception) -> SaError:
    """The error for everything else, with its class, message and line."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in last)
    words = " ".join(str(error).split())
    name = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return SaError(f"a bug of ours: {name}{where}", hint="SA_DEBUG=1 shows the traceback; please report it with that")
