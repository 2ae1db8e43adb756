"""A store in memory with a limit: what fits stays, what does not is made again each time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class BoundedCache:
    """Keeps until ``limit`` bytes are full and forgets nothing: in shuffled order the oldest is needed as soon as any.

    May be used from several threads; two that ask for the same thing at once may both make it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Hashable, Any] = {}
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], T], bytes_of: Callable[[T], int]) -> T:
        """What is kept under ``key``, else what ``make`` gives, kept where its bytes have room."""
        with self._lock:
            if key in self._held:
                return self._held[key]
        made = make()
        size = bytes_of(made)
        with self._lock:
            if key not in self._held and self.bytes + size <= self._limit:
                self._held[key] = made
                self.bytes += size
        return made

    def takes(self, key: Hashable, size: int) -> bool:
        """Whether ``key`` is kept or would be, with ``size`` bytes."""
        return key in self._held or self.bytes + size <= self._limit

    def __len__(self) -> int:
        return len(self._held)
