"""Paths as values of options. Standard library only: the shell's completion imports this module at each TAB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stableanimator_cli.errors import ConfigError


def path_of(value: str | Path, label: str) -> Path:
    """A path that records and reports can hold: text in UTF-8."""
    text = str(value)
    if text == "" or "\0" in text:
        raise ConfigError(label, value, "a path")
    if text == "-":
        expected = "a path: standard input and standard output are not used"
        raise ConfigError(label, value, expected, hint="name a file or a folder")
    if not is_utf8(text):
        raise ConfigError(label, value, "a name in UTF-8", hint="rename it: records and reports hold UTF-8")
    path = Path(value) if Path(value).name else Path(value).absolute()  # "." has no name that siblings could have
    if path.name == "":
        raise ConfigError(label, value, "a file or folder below the root of the file system")
    return path


def paths_of(value: Any, label: str) -> tuple[Path, ...]:
    """Paths from the command line, or from TOML: a text with one path per line."""
    if isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str | Path) and str(item) for item in value):
        raise ConfigError(label, value, "paths")
    for item in value:
        if len(str(item).splitlines()) != 1:
            raise ConfigError(label, item, "a path without a line break")
    return tuple(path_of(item, label) for item in value)


def is_utf8(text: str) -> bool:
    """Whether ``text`` has no lone surrogates, Python's form of undecodable bytes of file names."""
    return text.encode(errors="ignore").decode() == text
