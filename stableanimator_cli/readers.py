"""Bounded readers of untrusted files: JSON, TOML, and NumPy's npy and npz.

Every reader checks before it parses: a regular file, its length, UTF-8, the depth of nesting, the digits of numbers,
and the length of an array against its header. Nothing is unpickled or evaluated. Each problem is one error that names
the file: ``BadInput``, or the result of ``error`` (:func:`damaged_model` for files of a model). Only the readers of
arrays import NumPy and zipfile, so that completion and ``--help`` stay quick.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from stableanimator_cli.errors import BadInput, ModelDamaged, SaError

if TYPE_CHECKING:
    import zipfile

    import numpy as np

RECORD_BYTES = 2**26
"""Longest text file that is parsed, unless the caller sets another limit."""
ARRAY_BYTES = 2**31
"""Longest array, and longest sum of the arrays of one npz, unless the caller sets another limit."""
DEPTH = 48
"""Containers within containers."""
WHOLE = 2**64
"""Whole numbers of a file are below this, on either side of zero."""

_TOML_BYTES = 2**20
_HEADER_BYTES = 2**14  # of an npy file
_MEMBERS = 64  # of an npz file
_DEFLATED = 1100  # zlib never makes more bytes of one
_KINDS = re.compile(r"[<>=|](?:b1|[iu][1248]|f[248]|U\d{1,3})")
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)
_PART = r"(?:(?<![\w-])[\w-]++|\"[^\"\n]*\"|'[^'\n]*')[ \t]*\."
_LONG_KEY = re.compile(rf"(?:{_PART}[ \t]*){{{DEPTH}}}", re.ASCII)
_HEADER_ITEM = r"'(descr|fortran_order|shape)'\s*:\s*('[^'\\]*'|True|False|\([0-9, ]*\))"
_HEADER = re.compile(rf"\{{(?:\s*{_HEADER_ITEM}\s*,?)*\s*\}}\s*(?:#[^\n]*)?\s*")


class ErrorFactory(Protocol):
    """Make the error for ``path``; ``problem`` is a clause."""

    def __call__(self, path: Path | str, problem: str, *, hint: str | None = None) -> SaError: ...


def damaged_model(path: Path | str, problem: str, *, hint: str | None = None) -> ModelDamaged:
    """The ``error`` of readers for files of a model folder."""
    return ModelDamaged(f"{path}: {problem}", hint=hint)


class _Refused(ValueError):
    """A clause that states the problem; readers add the file."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A file and the error for it. ``what`` names its expected content: "a motion"."""

    path: Path
    what: str
    error: ErrorFactory
    hint: str | None

    def problem(self, text: str, hint: str | None = None) -> SaError:
        return self.error(self.path, text, hint=self.hint or hint)

    def is_not(self, text: object, hint: str | None = None) -> SaError:
        return self.problem(f"it is not {self.what}: {text}", hint)

    @contextlib.contextmanager
    def opened(self, limit: int | None, *, empty: bool = False) -> Iterator[tuple[IO[bytes], int]]:
        """A regular file and its length. Its type is checked before opening: opening a pipe would block."""
        try:
            mode, stream = os.stat(self.path).st_mode, None
            if stat.S_ISREG(mode):
                stream = open(self.path, "rb")  # noqa: SIM115  errors of the caller's block are not translated
        except (OSError, ValueError) as reason:
            raise self.problem(f"it cannot be read ({_first_line(reason)})") from None
        if stream is None:
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise self.problem(f"it is {kind}, expected {self.what}")
        with stream:
            length = os.fstat(stream.fileno()).st_size
            if length == 0 and not empty:
                raise self.problem(f"it is empty, expected {self.what}")
            if limit is not None and length > limit:
                raise self.problem(f"it has {length} bytes, which is too long for {self.what}")
            yield stream, length

    def text(self, limit: int) -> str:
        """The text of a file of at most ``limit`` bytes, a byte order mark removed."""
        with self.opened(limit) as (stream, _):
            content = stream.read(limit + 1)
        if len(content) > limit:  # it grew
            raise self.problem(f"it has more than {limit} bytes, which is too long for {self.what}")
        return self.decoded(content)

    def decoded(self, content: bytes) -> str:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as reason:
            byte = f"byte {reason.start} is 0x{content[reason.start]:02x}"
            raise self.problem(f"it is not UTF-8 text ({byte}), as {self.what} is") from None

    def json(self, text: str, nan: bool) -> Any:
        def number(digits: str) -> float:
            value = float(digits)
            if not nan and not math.isfinite(value):
                raise _Refused(f"the number {_shown(digits)} is not finite")
            return value

        if _depth(text) > DEPTH:
            raise self.problem(self.too_deep)
        try:
            return json.loads(
                text, object_pairs_hook=_unique, parse_int=_whole, parse_float=number, parse_constant=number
            )
        except _Refused as reason:
            raise self.is_not(reason) from None
        except json.JSONDecodeError as reason:
            where = f"line {reason.lineno}, column {reason.colno}"
            raise self.is_not(f"broken JSON at {where} ({reason.msg})") from None
        except (ValueError, RecursionError, MemoryError) as reason:
            raise self.is_not(f"no JSON ({_first_line(reason)})") from None

    def toml(self, text: str) -> dict[str, Any]:
        if _LONG_KEY.search(text):  # tomllib takes the square of a key's length in time
            raise self.problem(self.too_deep)
        try:
            tables = tomllib.loads(text)
        except RecursionError:
            raise self.problem(self.too_deep) from None
        # besides a TOMLDecodeError, which is a ValueError: a number of too many digits, a date of year 0
        except (ValueError, OverflowError, MemoryError) as reason:
            raise self.is_not(f"no valid TOML ({_first_line(reason)})") from None
        level: list[Any] = [tables]
        for _ in range(DEPTH):
            level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
            for value in level:
                if isinstance(value, int) and abs(value) >= WHOLE:
                    raise self.is_not("a whole number has too many digits")
                if isinstance(value, float) and not math.isfinite(value):
                    raise self.is_not(f"the number {value} is not finite")
            level = [value for value in level if isinstance(value, dict | list)]
            if not level:
                return tables
        raise self.problem(self.too_deep)

    @property
    def too_deep(self) -> str:
        return f"it nests more than {DEPTH} levels deep, which {self.what} never does"


def read_text(path: Path, what: str, *, hint: str | None = None) -> str:
    """The text of a file in UTF-8 of at most ``RECORD_BYTES``. ``what`` names its expected content: "a motion"."""
    return _Source(path, what, BadInput.because, hint).text(RECORD_BYTES)


def read_json(
    path: Path, what: str, *, nan: bool = False, limit: int = RECORD_BYTES, error: ErrorFactory = BadInput.because,
    hint: str | None = None,
) -> Any:  # fmt: skip
    """The value of a JSON file. NaN and infinity are refused unless ``nan``."""
    source = _Source(path, what, error, hint)
    return source.json(source.text(limit), nan)


def parse_json(text: str, path: Path, what: str, *, nan: bool = False) -> Any:
    """The value of a JSON text found in ``path``: the metadata of a weight file, a line of a log."""
    return _Source(path, what, BadInput.because, None).json(text, nan)


def read_json_lines(
    path: Path, what: str, *, nan: bool = False, cut: bool = False, limit: int = RECORD_BYTES, hint: str | None = None
) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and value of each line that is not empty. With ``cut`` a last line that is no JSON is left out:
    an interrupted write may have cut it, within a character too."""
    source = _Source(path, what, BadInput.because, hint)
    with source.opened(limit, empty=True) as (stream, _):
        content = stream.read(limit)
    *complete, last = content.removesuffix(b"\n").split(b"\n")
    for number, raw in enumerate([*complete, last], start=1):
        if not raw.strip():
            continue

        def at(path: Path | str, problem: str, *, hint: str | None = None, number: int = number) -> BadInput:
            return BadInput.because(path, f"line {number}: {problem}", hint=hint)

        line = replace(source, error=at)
        try:
            yield number, line.json(line.decoded(raw), nan)
        except SaError:
            if not cut or number <= len(complete):
                raise


def read_toml(
    path: Path, what: str, *, error: ErrorFactory = BadInput.because, hint: str | None = None
) -> dict[str, Any]:
    """The tables of a TOML file of at most a mebibyte. NaN and infinity are refused."""
    source = _Source(path, what, error, hint)
    return source.toml(source.text(_TOML_BYTES))


def read_npy(path: Path, what: str, *, limit: int = ARRAY_BYTES, hint: str | None = None) -> np.ndarray:
    """The array of an npy file: booleans, whole numbers, floats, or short texts; never objects."""
    source = _Source(path, what, BadInput.because, hint)
    with source.opened(None) as (stream, length):
        try:
            return _array(stream, length, limit)
        except _Refused as reason:
            raise source.is_not(reason) from None
        except (OSError, MemoryError) as reason:
            raise source.problem(f"it cannot be read ({_first_line(reason)})") from None


def read_npz(path: Path, what: str, *, limit: int = ARRAY_BYTES, hint: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name, at most ``limit`` bytes together."""
    import struct
    import zipfile
    import zlib

    source = _Source(path, what, BadInput.because, hint)
    with source.opened(None) as (stream, _):
        try:
            with zipfile.ZipFile(stream) as archive:
                arrays, left = {}, limit
                for member in _members(archive, limit):
                    with archive.open(member) as content:
                        array = _array(content, member.file_size, left, exact=True)
                    arrays[member.filename.removesuffix(".npy")] = array
                    left -= array.nbytes
                return arrays
        except _Refused as reason:
            raise source.is_not(reason) from None
        # zipfile has no error of its own for half of what can be wrong with an archive
        except (
            zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError, RuntimeError,
            OverflowError, MemoryError,
        ) as reason:  # fmt: skip
            raise source.is_not(f"damaged or no npz ({_first_line(reason)})", hint="write the file again") from None


def _first_line(reason: BaseException) -> str:
    text = (reason.strerror or "").lower() if isinstance(reason, OSError) else str(reason)
    return (text.strip().splitlines() or [type(reason).__name__])[0]


def _shown(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:21]}..."


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings, counted without recursion."""
    if text.count("[") + text.count("{") <= DEPTH:
        return 0
    deepest = depth = 0
    for found in _STRUCTURE.finditer(text):
        sign = found[0]
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Refused(f"the key {twice!r} exists twice")
    return table


def _whole(digits: str) -> int:
    value = int(digits) if len(digits) <= 21 else WHOLE
    if abs(value) >= WHOLE:
        raise _Refused(f"the number {_shown(digits)} has too many digits")
    return value


def _members(archive: zipfile.ZipFile, limit: int) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    if not members or len(members) > _MEMBERS:
        raise _Refused(f"{len(members)} arrays in an archive")
    names = [member.filename for member in members]
    for member in members:
        name = member.filename
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) or names.count(name) > 1:
            raise _Refused(f"{_shown(name)!r} is no name of an array, or exists twice")
        if member.flag_bits & 1:
            raise _Refused(f"{name} is encrypted")
        if member.file_size > _DEFLATED * max(member.compress_size, 1) or member.file_size > limit + _HEADER_BYTES:
            raise _Refused(f"{name} claims {member.file_size} bytes, more than the archive can hold")
    return members


def _array(stream: IO[bytes], length: int, limit: int, *, exact: bool = False) -> np.ndarray:
    """One array of ``length`` bytes with its header. With ``exact`` nothing may follow, and reading reaches the end,
    where zipfile compares the checksum."""
    import numpy as np

    start = stream.read(8)
    if start[:6] != b"\x93NUMPY" or len(start) < 8:
        raise _Refused("an archive of arrays (npz)" if start[:2] == b"PK" else "no NumPy array")
    size = {1: 2, 2: 4, 3: 4}.get(start[6], 0)
    field = stream.read(size)
    if size == 0 or len(field) < size:
        raise _Refused(f"a NumPy array of version {start[6]}")
    header_length = int.from_bytes(field, "little")
    if header_length > min(_HEADER_BYTES, length):
        raise _Refused(f"a header that claims {header_length} bytes")
    header = stream.read(header_length).decode("latin-1")
    items = dict(re.findall(_HEADER_ITEM, header)) if _HEADER.fullmatch(header) else {}
    if items.keys() != {"descr", "fortran_order", "shape"} or items["descr"][0] != "'" or items["shape"][0] != "(":
        raise _Refused("an array without a plain type and shape")
    kind = items["descr"].strip("'")
    if not _KINDS.fullmatch(kind):
        raise _Refused(f"an array of type {_shown(kind)!r}, expected numbers, booleans or text")
    digits = re.findall(r"[0-9]+", items["shape"])
    if len(digits) > 32 or any(len(one) > 18 for one in digits):
        raise _Refused(f"an array of shape {_shown(items['shape'])}")
    shape, dtype = tuple(map(int, digits)), np.dtype(kind)
    needed = math.prod(shape) * dtype.itemsize
    rest = length - 8 - size - header_length
    if needed > rest or (exact and needed < rest):
        raise _Refused(f"an array of shape {shape} needs {needed} bytes and has {max(rest, 0)}")
    if math.prod(side or 1 for side in shape) * dtype.itemsize > limit:
        raise _Refused(f"an array of shape {shape}, of more than {limit} bytes")
    content = stream.read(needed + 1 if exact else needed)
    if len(content) != needed:
        raise _Refused(f"an array of shape {shape} needs {needed} bytes and has {len(content)}")
    if dtype.kind == "b":  # bytes other than 0 and 1 would be neither true nor false
        flat = np.frombuffer(content, np.uint8) != 0
    else:
        codes = np.frombuffer(content, np.dtype(f"{kind[0]}u4")) if dtype.kind == "U" else np.zeros(0)
        if codes.max(initial=0) > 0x10FFFF:
            raise _Refused("a text with characters that do not exist")
        flat = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if items["fortran_order"] == "True" else "C")
