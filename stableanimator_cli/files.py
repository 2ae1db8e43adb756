"""Files: checks before reading, atomic writes, checksums, locks, and which files ``sa`` may replace.

Only files that ``sa`` wrote are replaced or removed. Such a file carries ``MARK`` near its beginning or its end: in the
metadata of a video or an image, the comment of an archive, a key of JSON, a comment of a page. An output never equals,
contains or is inside an input.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from stableanimator_cli.errors import BadInput, command, json_line, system_reason

MARK = "stableanimator-cli"
"""Every file that ``sa`` writes holds these ASCII bytes in its first or last mebibyte."""

_MARK_REACH = 2**20  # bytes at each end of a file that are searched for the mark
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
_LONGEST_NAME = 220  # bytes; file systems have 255, and the names of temporary files and records are longer
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of writes without room: a full disk, a quota, a limit of the file's size."""


def require_file(path: Path, expected: str) -> Path:
    """Return ``path`` if it is a readable file that is not empty. Raises ``BadInput`` otherwise.

    ``expected`` names the expected content. The hint for a missing file is the nearest name in its folder.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            found = f"a link to {os.readlink(path)}, which does not exist"
            raise BadInput(path, found, expected, hint="mend the link, or name another file") from None
        raise BadInput(path, "no such file", expected, hint=_near(path)) from None
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or holds a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(path, f"a name that leads nowhere ({reason.lower()})", expected, hint="check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise BadInput(path, "a folder", expected, hint="name a file inside the folder")
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        hint = "write its content to a file and name that"
        raise BadInput(path, _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file"), expected, hint=hint)
    if not os.access(path, os.R_OK):
        raise BadInput(path, "a file that may not be read", expected, hint=f"allow it: {command('chmod', 'u+r', path)}")
    if status.st_size == 0:
        raise BadInput(path, "an empty file (0 bytes)", expected, hint="copy or download it again")
    return path


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    try:
        others = [other.name for other in folder.iterdir()]
    except OSError:
        others = []
    close = difflib.get_close_matches(path.name, others, n=1)
    return f"did you mean {folder / close[0]}?" if close else f"look with: {command('ls', folder)}"


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``frame_2`` before ``frame_10``; names that differ in zeros have a fixed order."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def write_refused(path: Path, error: OSError, *, frame: int | None = None) -> BadInput:
    """The error for a failed write of ``path``: no room, no rights, or no folder."""
    hint: str | None = "choose another -o"
    if error.errno in NO_ROOM:
        found, expected, hint = "no room left to write", "enough free space", "free some space or choose another -o"
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        found, expected = "a folder that may not be written", "a writable folder"
    elif isinstance(error, (NotADirectoryError, FileExistsError)):
        found, expected = "a file in the place of a folder", "a folder"
    else:
        reason = system_reason(error)
        found, expected, hint = f"a write that failed ({reason})", "a file that can be written", None
    return BadInput(path, found, expected, frame=frame, hint=hint)


def sha256_of(path: Path, of_file: Callable[[Path], str] | None = None, without: str = "") -> str:
    """sha256 of a file, or of a folder's visible files by name and content in natural order. Raises ``BadInput``.

    ``of_file`` returns the digest of a file in a folder, perhaps a known one. Names like ``without`` do not count.
    """
    if not path.is_dir():
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise BadInput.because(path, "it is not a regular file", hint="write its content to a file and name that")
        with translate_read_errors(path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in (one for one in visible_files(path) if not re.fullmatch(without, one.name)):
        total.update(os.fsencode(f"{file.name}\0{(of_file or sha256_of)(file)}\n"))
    return total.hexdigest()


def json_text(data: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """The content of a JSON file: ``errors.json_line`` with a line break at its end."""
    return json_line(data, indent=indent, default=default) + "\n"


def visible_files(folder: Path) -> list[Path]:
    """Files of a folder that are not hidden, in natural order; folders are left out."""
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(files, key=lambda file: natural_key(file.name))


def temporary_path(path: Path) -> Path:
    """Temporary path of this process for ``path``: ``.NAME.PID.part``. The process id shows later whether the file is
    being written or was left by a killed process (``may_be_running``)."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def may_be_running(process: int) -> bool:
    """Whether a process of this id exists on this machine, of any user. True for ids that no process can have."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def remove_temporary_files(folder: Path, names: str = ".+", *, folders: bool = False) -> None:
    """Remove the temporary files that killed processes left in ``folder``: ``.NAME.PID.part`` (``temporary_path``).

    NAME matches the regular expression ``names``. Links, files of processes that may be running and, without
    ``folders``, folders stay. A folder that cannot be read is left as it is.
    """
    pattern = re.compile(rf"\.(?:{names})\.(\d{{1,9}})\.part(?:\.mp4)?")
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match is None or path.is_symlink() or may_be_running(int(match[1])):
                continue
            if not path.is_dir():
                path.unlink(missing_ok=True)
            elif folders:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def atomic_write(path: Path, *, folder: bool = False, marked: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on any error.

    With ``folder`` the block creates a folder, which may replace an empty ``path``. With ``marked`` the block writes a
    file that carries ``MARK``, and only such a file is replaced, checked before the block and before the rename.
    Missing parents are created. Failures here raise ``BadInput``, and so does a full disk in the block, whose error
    names no file. Other errors of the block pass (``translate_os_errors`` translates those), and a ``BadInput`` about a
    file in the temporary folder is about the one that it becomes.
    """
    if path.is_dir() and not folder:
        raise BadInput(path, "a folder", "a name for a file", hint="name a file inside the folder")
    if marked:
        check_replaceable(path)
    temp = temporary_path(path)
    try:
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        if marked:
            check_replaceable(path)
        with translate_os_errors(path):
            os.replace(temp, path)
    except BadInput as error:
        if error.path.is_relative_to(temp):
            error.at(path / error.path.relative_to(temp))
        raise
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            raise write_refused(path, error) from error
        raise
    finally:
        if temp.is_dir():
            shutil.rmtree(temp, ignore_errors=True)
        with contextlib.suppress(OSError):
            temp.unlink()


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while ``path`` is written into ``BadInput``."""
    try:
        yield
    except OSError as error:
        raise write_refused(path, error) from error


@contextlib.contextmanager
def translate_read_errors(path: Path, hint: str = "check the path and its rights") -> Iterator[None]:
    """Turn failures of the block to read ``path`` into ``BadInput``."""
    try:
        yield
    except OSError as error:
        reason = system_reason(error)
        raise BadInput.because(path, f"it cannot be read ({reason})", hint=hint) from error


def carries_mark(path: Path) -> bool:
    """Whether ``sa`` wrote the file ``path``. Raises ``BadInput`` if it cannot be read."""
    with translate_read_errors(path), path.open("rb") as file:
        if MARK.encode() in file.read(_MARK_REACH):
            return True
        end = file.seek(0, os.SEEK_END)
        file.seek(max(_MARK_REACH - len(MARK), end - _MARK_REACH))
        return MARK.encode() in file.read()


def _recorded(path: Path) -> bool:
    """Whether a record of `sa animate` beside the video ``path`` has its digest, as of videos older than the mark."""
    beside = path.with_suffix(".json")
    if beside == path or not beside.is_file() or not carries_mark(beside):
        return False
    try:
        return json.loads(beside.read_text(encoding="utf-8"))["output"]["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_replaceable(*paths: Path) -> None:
    """Raise ``BadInput`` for the first of ``paths`` that exists and that ``sa`` did not write.

    Folders, links, devices and pipes are never replaced; an empty regular file may be. Call it before any work and
    again right before the rename.
    """
    for path in paths:
        if not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_file():
            kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "not a regular file"
            raise BadInput.because(path, f"an output cannot replace it: it is {kind}", hint="choose another -o")
        if path.stat().st_size and not carries_mark(path) and not _recorded(path):
            raise BadInput.because(
                path, "it exists and was not written by sa, so it is not replaced",
                hint="choose another -o, or move the file away",
            )  # fmt: skip


def check_apart(output: Path, inputs: Iterable[Path]) -> None:
    """Raise ``BadInput`` if ``output`` equals, contains or is inside one of ``inputs``, links resolved.

    ``output`` is the file or folder that will be written; it need not exist.
    """
    target = _resolved(output)
    for given in inputs:
        source = _resolved(given)
        same = target == source or (target.exists() and source.exists() and target.samefile(source))
        relation = (
            "is the same as" if same
            else "contains" if target in source.parents
            else "is inside" if source in target.parents
            else None
        )  # fmt: skip
        if relation is not None:
            raise BadInput.because(
                output, f"the output {relation} the input {given}", hint="choose an -o apart from every input"
            )


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return path.absolute()


@contextlib.contextmanager
def locked_output(
    output: Path, command: str, *, folder: bool = False, shard: tuple[int, int] | None = None
) -> Iterator[None]:
    """Lock the output for this process. Raises ``BadInput`` while another process writes it.

    ``command`` is named in the message: ``sa animate``. The lock of a file is ``.NAME.lock`` beside it; that of a
    ``folder``, which is created if missing, is ``.sa.lock`` in it. It is removed with the block, and so are created
    folders that stayed empty. Processes with ``shard`` (I, N) share a folder, each part once, as ``.sa.I-of-N.lock``.
    """
    if not output.name and not folder:  # "." has no name for a lock
        output = output.absolute()
    length = len(os.fsencode(output.name))
    if not folder and not 0 < length <= _LONGEST_NAME:
        limit = f": it has {length} bytes, at most {_LONGEST_NAME} are possible" if length else ""
        raise BadInput.because(output, f"it is no name for an output{limit}", hint="choose another -o")
    exclusive = output / ".sa.lock" if folder else output.with_name(f".{output.name}.lock")
    lock = exclusive if shard is None else output / f".sa.{shard[0]}-of-{shard[1]}.lock"
    with contextlib.ExitStack() as stack:
        if folder:
            stack.enter_context(created_folder(output))
        else:
            with translate_os_errors(output):
                output.parent.mkdir(parents=True, exist_ok=True)
        free = stack.enter_context(exclusive_lock(lock))
        others = list(output.glob(".sa.*-of-*.lock")) if folder else []
        if shard is not None:
            others = [exclusive, *(other for other in others if not other.name.endswith(f"-of-{shard[1]}.lock"))]
        if not free or any(_is_locked(other) for other in others):
            problem = f"it is being written by another `{command}`"
            raise BadInput.because(output, problem, hint="wait until it has ended, or choose another -o")
        yield


@contextlib.contextmanager
def created_folder(folder: Path) -> Iterator[None]:
    """Create ``folder`` and its parents. Those that stayed empty, as of work that failed, are removed at the end."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def exclusive_lock(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yield whether this process got ``lock``, a file that exists during the block; ``wait`` until it is free.

    The system releases it however a process ends. True if nothing can be locked: Windows, some network drives.
    """
    try:
        stream = _lock(lock, wait=wait)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        if stream is not None:
            with contextlib.suppress(OSError):
                lock.unlink()
            stream.close()


def _is_locked(lock: Path) -> bool:
    """Whether another process holds ``lock``. A shared lock tests it, so that tests do not block one another."""
    try:
        import fcntl

        if lock.is_file():
            with lock.open() as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


def _open_lock(lock: Path) -> TextIO:
    """Open or create ``lock``, an empty regular file. Raises ``BadInput`` for anything else with its name."""
    with translate_os_errors(lock):
        if os.path.lexists(lock):
            try:
                status = lock.lstat()
            except FileNotFoundError:  # its owner has removed it
                status = None
            if status is not None and (not stat.S_ISREG(status.st_mode) or status.st_size):
                problem = "it is in the place of a lock and was not written by sa"
                raise BadInput.because(lock, problem, hint="move it away, or choose another -o")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.fdopen(os.open(lock, flags, 0o666), "a")


def _lock(lock: Path, *, wait: bool) -> TextIO | None:
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        stream = _open_lock(lock)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # the previous owner may have removed the file that was opened here
            if os.path.samestat(os.fstat(stream.fileno()), lock.stat()):
                return stream
        except FileNotFoundError:
            pass
        except BlockingIOError:
            stream.close()
            raise
        except OSError:
            stream.close()
            return None
        stream.close()
