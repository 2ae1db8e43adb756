"""What must hold of a file before it is read; how one appears, whole, under its name, or not at all; who may write."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .errors import BadInput

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def require_file(path: Path, expected: str) -> Path:
    """``path`` again, once it is known to be a readable file that is not empty.

    ``expected`` says in words what should be there. Raises ``BadInput``; a missing name is compared with its
    neighbours in the folder, as most missing files are typing mistakes.
    """
    if path.is_dir():
        raise BadInput(path, "a folder", expected, hint="name a file inside the folder")
    if not path.exists():
        raise BadInput(path, "no such file", expected, hint=_near(path))
    if not os.access(path, os.R_OK):
        raise BadInput(path, "a file that may not be read", expected, hint=f"allow reading it: chmod u+r {path}")
    if path.is_file() and path.stat().st_size == 0:
        raise BadInput(path, "an empty file (0 bytes)", expected, hint="copy or download it again")
    return path


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    close = difflib.get_close_matches(path.name, [other.name for other in folder.iterdir()], n=1)
    return f"did you mean {folder / close[0]}?" if close else f"look with: ls {folder}"


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key under which ``frame_2`` comes before ``frame_10``; names equal but for zeros keep a fixed order."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def write_refused(path: Path, error: OSError, *, frame: int | None = None) -> BadInput:
    """The error to raise when the system refuses to write ``path``: says whether it is room, rights or the folder."""
    if error.errno in _NO_ROOM:
        return BadInput(
            path, "no room left to write", "enough free space", frame=frame, hint="free some space or choose another -o"
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return BadInput(
            path, "a folder that may not be written", "a writable folder", frame=frame, hint="choose another -o"
        )
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return BadInput(path, "a file in the place of a folder", "a folder", frame=frame, hint="choose another -o")
    reason = (error.strerror or str(error)).lower()
    return BadInput(path, f"a write that failed ({reason})", "a file that can be written", frame=frame)


def digest_of(path: Path) -> str:
    """sha256 of a file, or of a folder's visible files by name and content in natural order. ``BadInput`` names a file
    that cannot be read."""
    if not path.is_dir():
        with refusals(path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for file in visible_files(path):
        whole.update(f"{file.name}\0{digest_of(file)}\n".encode())
    return whole.hexdigest()


def visible_files(folder: Path) -> list[Path]:
    """Files of a folder that are not hidden, in natural order; folders in it are left out."""
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(files, key=lambda file: natural_key(file.name))


@contextlib.contextmanager
def appearing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; rename it to ``path`` on success, remove it on any error.

    With ``folder`` the block makes a folder of that name, and an empty ``path`` gives way. Missing folders above are
    made. What the system refuses here becomes ``BadInput`` naming ``path``; errors of the block are left as they are,
    for they may be about another file: those about this one are the business of ``refusals``.
    """
    if path.is_dir() and not folder:
        raise BadInput(path, "a folder", "a name for a file", hint="name a file inside the folder")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with refusals(path):
            os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn what the system refuses while ``path`` is written (``OSError``) into ``BadInput``."""
    try:
        yield
    except OSError as error:
        raise write_refused(path, error) from error


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Whether no other process is in such a block of the same ``lock``, a file that is there as long as the block. The
    system lets go of it however a process ends. True where nothing can be locked: Windows, some network drives."""
    try:
        stream = _lock(lock)
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


def _lock(lock: Path) -> TextIO | None:
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        with refusals(lock):
            stream = lock.open("a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # who held it until now may have removed the file that was opened here
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
