"""Folder of downloaded and imported models: ``SA_HOME``, or the user's cache folder of the platform."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from stableanimator_cli.errors import ConfigError, system_reason

_PACKAGE = Path(__file__).resolve().parents[1]
BUILTIN = (_PACKAGE / "models", _PACKAGE.parent / "models")
"""Possible folders of the program's own catalogue: inside an installed package, or at the root of a checkout."""


def cache_dir() -> Path:
    """The folder of downloaded and imported files, which need not exist.

    A relative ``SA_HOME`` is below the current folder; an empty one is ignored. Raises ``ConfigError`` if it cannot
    be a folder.
    """
    value = os.environ.get("SA_HOME")
    if value:
        return _checked(value)
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stableanimator"


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` and ``~user`` replaced if the user exists."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _checked(value: str) -> Path:
    path = expanded(value).absolute()
    try:
        if value.startswith("~") and expanded(value) == Path(value):
            raise OSError("no such user")
        problem = "" if stat.S_ISDIR(os.stat(path).st_mode) else "it is a file"
    except FileNotFoundError:
        problem = "a link that leads nowhere" if path.is_symlink() else ""
    except OSError as error:  # a name too long, a file in the place of a parent folder
        problem = system_reason(error)
    if problem:
        hint = "set SA_HOME to a folder, or unset it for the default one"
        raise ConfigError("SA_HOME", value, f"a folder ({problem})", hint=hint)
    return path
