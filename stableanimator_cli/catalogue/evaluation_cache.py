"""The cache of evaluations: detections (``seen/``) and clip statistics (``clips/``) of videos, below a size limit.

An entry is named by the SHA-256 of everything that determines it. When a run ends, the least recently used entries are
removed until the rest fits ``SA_CACHE_SIZE`` (4 GiB if unset). Entries that another running evaluation uses stay, and
so does every file that is not named like an entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stableanimator_cli.catalogue.home import cache_dir
from stableanimator_cli.config.parse import parse_bytes
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import atomic_write, may_be_running, remove_temporary_files
from stableanimator_cli.readers import read_npz

if TYPE_CHECKING:
    import numpy as np

FOLDERS = ("seen", "clips")
DEFAULT_LIMIT = 4 * 2**30
VARIABLE = "SA_CACHE_SIZE"
_ENTRY = re.compile(r"[0-9a-f]{64}\.npz")
_MARKER = re.compile(r"\.evaluation-(\d{1,9})")


@dataclass(frozen=True, slots=True, order=True)
class CacheEntry:
    """A file of the cache. Entries sort by their last use (modification time), the oldest first."""

    last_used: float
    path: Path
    bytes: int


def size_limit() -> int:
    """Bytes that the cache may take; with 0 no entry outlives a run. Raises ``ConfigError`` unless ``SA_CACHE_SIZE`` is
    an amount with its unit."""
    value = os.environ.get(VARIABLE)
    if value and re.fullmatch(r"\s*0+\s*[A-Za-z]*\s*", value):
        return 0
    return parse_bytes(value, VARIABLE) if value else DEFAULT_LIMIT


def load_arrays(folder: str, key: str) -> dict[str, np.ndarray] | None:
    """The arrays stored in one of ``FOLDERS`` under ``key``, None if there are none or they cannot be read."""
    path = _path(folder, key)
    try:
        arrays = read_npz(path, "an entry of the evaluation cache (.npz)")
    except BadInput:  # missing, damaged, or in a folder that may not be read
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return arrays


def store_arrays(folder: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Store arrays under ``key``. A cache that cannot be written costs time at the next run, nothing else."""
    import numpy as np

    path = _path(folder, key)
    with contextlib.suppress(BadInput, OSError), atomic_write(path) as temp, temp.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]


def entries() -> list[CacheEntry]:
    """All entries, the least recently used first."""
    found = []
    for folder in FOLDERS:
        with contextlib.suppress(OSError):
            for item in os.scandir(cache_dir() / folder):
                if _ENTRY.fullmatch(item.name) and item.is_file(follow_symlinks=False):
                    status = item.stat()
                    found.append(CacheEntry(status.st_mtime, Path(item.path), status.st_size))
    return sorted(found)


def describe() -> str:
    """Size, limit and folders of the cache in one line. Raises ``ConfigError`` as ``size_limit``."""
    used = sum(entry.bytes for entry in entries())
    folders = " and ".join(str(cache_dir() / name) for name in FOLDERS)
    return f"{used / 2**30:.2f} of at most {size_limit() / 2**30:.2f} GiB in {folders}"


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Protect the entries that this process uses in the block from other runs, and trim the cache at the end."""
    limit, marker = size_limit(), cache_dir() / f".evaluation-{os.getpid()}"
    with contextlib.suppress(OSError):  # a cache that cannot be written is not trimmed either
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)
            trim(limit)


def trim(limit: int) -> None:
    """Remove what killed runs left, then the least recently used entries.

    Stops at ``limit`` bytes, or at an entry that another run uses.
    """
    for folder in FOLDERS:
        remove_temporary_files(cache_dir() / folder, _ENTRY.pattern)
    found, in_use_since = entries(), _first_running()
    total = sum(entry.bytes for entry in found)
    for entry in found:
        if total <= limit or entry.last_used >= in_use_since:
            return
        with contextlib.suppress(OSError):
            entry.path.unlink()
            total -= entry.bytes


def _first_running() -> float:
    """When the oldest other run started, infinity if there is none. Markers of killed runs are removed."""
    started = math.inf
    for marker in cache_dir().glob(".evaluation-*"):
        match = _MARKER.fullmatch(marker.name)
        if match is None or int(match[1]) == os.getpid():
            continue
        if may_be_running(int(match[1])):
            with contextlib.suppress(OSError):
                started = min(started, marker.stat().st_mtime)
        else:
            with contextlib.suppress(OSError):  # of another user
                marker.unlink()
    return started


def _path(folder: str, key: str) -> Path:
    return cache_dir() / folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
