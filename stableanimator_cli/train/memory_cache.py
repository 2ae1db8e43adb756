"""An in-memory cache with a limit in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class BoundedCache:
    """Cache until ``limit`` bytes are full, then nothing more: in shuffled order eviction would gain nothing.

    Thread-safe. Two threads that need the same value at once may both compute it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: dict[Hashable, Any] = {}
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: Hashable, compute: Callable[[], T], nbytes: Callable[[T], int]) -> T:
        """The cached value, else the result of ``compute``, cached if it fits."""
        with self._lock:
            if key in self._values:
                return self._values[key]
        value = compute()
        size = nbytes(value)
        with self._lock:
            if key not in self._values and self.bytes + size <= self._limit:
                self._values[key] = value
                self.bytes += size
        return value

    def accepts(self, key: Hashable, size: int) -> bool:
        """Whether a value of ``size`` bytes is cached, or would be."""
        return key in self._values or self.bytes + size <= self._limit
