"""Versions of the installed packages."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def version_of(distribution: str) -> str | None:
    """The version of an installed package, None if it is not installed. Read once: records ask for it at each output,
    and a lookup parses the package's metadata."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
