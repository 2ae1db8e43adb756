"""Where fetched and imported models are kept: ``SA_HOME``, or the platform's cache folder of the user."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from stableanimator_cli.errors import ConfigError


def cache_dir() -> Path:
    """The folder of fetched and imported files, which need not exist.

    A relative ``SA_HOME`` is below the current folder; an empty one counts as unset. Raises ``ConfigError`` if it
    cannot name a folder. Whether it may be written is found out by the commands that write.
    """
    named = os.environ.get("SA_HOME")
    if named:
        return _named(named)
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stableanimator"


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` and ``~user`` replaced if there is such a user; else as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _named(named: str) -> Path:
    place = expanded(named).absolute()
    try:
        if named.startswith("~") and expanded(named) == Path(named):
            raise OSError("no such user")
        problem = "" if stat.S_ISDIR(os.stat(place).st_mode) else "it is a file"
    except FileNotFoundError:
        problem = "a link that leads nowhere" if place.is_symlink() else ""
    except OSError as error:  # a name too long, a file in the place of a folder above
        problem = (error.strerror or str(error)).lower()
    if problem:
        shown = named if len(named) <= 200 else f"{named[:197]}..."
        raise ConfigError(
            "SA_HOME", shown, f"a folder ({problem})", hint="set SA_HOME to a folder, or unset it for the default one"
        )
    return place
