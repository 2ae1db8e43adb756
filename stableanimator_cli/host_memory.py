"""Memory of this process that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def trim() -> None:
    """Return freed memory to the operating system, with glibc; elsewhere do nothing.

    Opening a network from ONNX leaves copies of its weights freed but resident (docs/performance.md). It takes
    milliseconds, so it is for what happens once.
    """
    release = _malloc_trim()
    if release is not None:
        release(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows cannot open None
        return None
