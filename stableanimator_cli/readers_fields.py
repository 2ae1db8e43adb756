"""Typed fields of tables read from a file, checked for type and range; errors name file and key.

    record = Fields.of(read_json(path, "the record of a clip"), path, "the record of a clip")
    frames = record.whole("frames", 1, 10**7)
    seconds = record.fields("source").number("seconds", 0, 1e9, default=None)

A field without ``default`` must exist; with ``default=None`` it may be missing or null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

from stableanimator_cli.errors import BadInput, value_text
from stableanimator_cli.readers import WHOLE, ErrorFactory

T = TypeVar("T")
_REQUIRED: Any = object()
_NAMES = {
    dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number",
    type(None): "null",
}  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """One table of a file. ``where`` is its path in the file: ``source.``, or empty at the top."""

    path: Path
    table: Mapping[str, Any]
    where: str = ""
    error: ErrorFactory = BadInput.because
    hint: str | None = None

    @classmethod
    def of(
        cls, value: Any, path: Path, what: str, *, error: ErrorFactory = BadInput.because, hint: str | None = None
    ) -> Fields:
        """The fields of ``value``, which must be a table; ``what`` names the file's expected content."""
        if not isinstance(value, Mapping):
            raise error(path, f"it is {kind_of(value)}, expected {what}, an object", hint=hint)
        return cls(path=path, table=value, error=error, hint=hint)

    def __contains__(self, key: str) -> bool:
        return self.table.get(key) is not None

    def fail(self, key: str, expected: str) -> NoReturn:
        """Raise the error for the value of ``key``."""
        found = "missing" if key not in self.table else shown(self.table[key])
        raise self.error(self.path, f"{self.where}{key} is {found}, expected {expected}", hint=self.hint)

    def only(self, keys: Iterable[str]) -> None:
        """Refuse unknown keys."""
        known = list(keys)
        for key in self.table:
            if key not in known:
                problem = f"{self.where}{key} is not a known key, expected {', '.join(known)}"
                raise self.error(self.path, problem, hint=self.hint)

    def text(self, key: str, default: Any = _REQUIRED, *, empty: bool = True) -> str:
        """A text, not empty unless ``empty``."""
        value = self._value(key, default, str, "a text")
        if value == "" and not empty:
            self.fail(key, "a text that is not empty")
        return value

    def sha256(self, key: str, default: Any = _REQUIRED) -> str:
        """A digest: 64 hexadecimal digits in lower case."""
        value = self._value(key, default, str, "a sha256 of 64 hexadecimal digits")
        if isinstance(value, str) and not _SHA256.fullmatch(value):
            self.fail(key, "a sha256 of 64 hexadecimal digits")
        return value

    def choice(self, key: str, choices: Iterable[T], default: Any = _REQUIRED) -> T:
        """One of several values of the same type: ``true`` is not 1."""
        known = list(choices)
        if default is not _REQUIRED and self.table.get(key) is None:
            return default
        value = self.table.get(key)
        if not any(type(value) is type(one) and value == one for one in known):
            self.fail(key, " or ".join(map(shown, known)))
        return value  # type: ignore[return-value]

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        return self._value(key, default, bool, "true or false")

    def whole(self, key: str, low: int = 0, high: int = WHOLE, default: Any = _REQUIRED) -> int:
        """A whole number from ``low`` to ``high``. 8.0 is not one."""
        expected = f"a whole number from {low} to {high}" if high < WHOLE else f"a whole number of {low} or more"
        value = self._value(key, default, int, expected)
        if value is not default and not low <= value <= high:
            self.fail(key, expected)
        return value

    def number(
        self, key: str, low: float = -math.inf, high: float = math.inf, default: Any = _REQUIRED, *, nan: bool = False
    ) -> float:
        """A number from ``low`` to ``high``, finite unless ``nan``."""
        limits = [f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"] if low > -math.inf else []
        expected = " ".join(["a finite number" if not limits else "a number", *limits])
        value = self._value(key, default, (int, float), expected)
        if value is default and not isinstance(value, int | float):
            return value
        inside = is_number(value) and low <= value <= high
        if not inside and not (nan and not math.isfinite(value)):
            self.fail(key, expected)
        return float(value)

    def fields(self, key: str, default: Any = _REQUIRED) -> Fields:
        """A nested table. ``default={}`` if it may be missing."""
        value = self._value(key, default, dict, "an object")
        return replace(self, table=value, where=f"{self.where}{key}.")

    def rows(self, key: str, default: Any = _REQUIRED) -> list[Fields]:
        """A list of tables."""
        found = []
        for index, row in enumerate(self._value(key, default, list, "a list of objects")):
            if not isinstance(row, dict):
                self.fail(key, f"a list of objects (item {index} is {kind_of(row)})")
            found.append(replace(self, table=row, where=f"{self.where}{key}[{index}]."))
        return found

    @overload
    def values(self, key: str, kind: type[T], count: int | None = ..., default: Any = ...) -> list[T]: ...
    @overload
    def values(self, key: str, kind: tuple[type, ...], count: int | None = ..., default: Any = ...) -> list[Any]: ...
    def values(self, key: str, kind: Any, count: int | None = None, default: Any = _REQUIRED) -> list[Any]:
        """A list of values of one type, ``count`` of them if given."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(dict.fromkeys(_NAMES[one] for one in kinds))
        expected = f"a list of {'' if count is None else f'{count} values, each '}{names}"
        value = self._value(key, default, list, expected)
        if value is not default and (
            (count is not None and len(value) != count) or not all(type(item) in kinds for item in value)
        ):
            self.fail(key, expected)
        return value

    def size(self, key: str, default: Any = _REQUIRED, *, longest: int = 2**16) -> tuple[int, int]:
        """(width, height) in pixels."""
        value = self._value(key, default, list, "[width, height] in pixels")
        if value is default and not isinstance(value, list):
            return value
        if len(value) != 2 or not all(type(side) is int and 1 <= side <= longest for side in value):
            self.fail(key, f"[width, height], each from 1 to {longest} pixels")
        return value[0], value[1]

    def _value(self, key: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self.table.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(key, expected)
        return value


def is_number(value: Any) -> bool:
    """Whether a value of JSON or TOML is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def kind_of(value: Any) -> str:
    """Type of a value of JSON or TOML, in words."""
    return "an empty list" if value == [] else _NAMES.get(type(value), f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value of JSON or TOML for a message, shortened."""
    if isinstance(value, dict | list):
        return f"{kind_of(value)} of {len(value)}" if value else kind_of(value)
    text = value_text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
