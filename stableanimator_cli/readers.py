"""Bounded readers of files that anybody may have written: JSON, TOML, and NumPy's npy and npz.

Every reader checks before it parses: a regular file, its length, UTF-8, the depth of nesting, the digits of numbers,
and whether an array is as long as its header claims. Nothing is unpickled and nothing is evaluated. What is wrong with
a file is one error that names it: ``BadInput``, or what the caller's ``error`` makes (:func:`damaged_model` for files
of a model).
NumPy and zipfile are imported by the readers of arrays alone, so that completion and ``--help`` stay quick.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator
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
    """Makes the error for ``path``; ``problem`` is a clause that states what is wrong."""

    def __call__(self, path: Path | str, problem: str, *, hint: str | None = None) -> SaError: ...


def damaged_model(path: Path | str, problem: str, *, hint: str | None = None) -> ModelDamaged:
    """The ``error`` of readers for what belongs to a model folder."""
    return ModelDamaged(f"{path}: {problem}", hint=hint)


def read_bytes(
    path: Path, what: str, *, limit: int = RECORD_BYTES, error: ErrorFactory = BadInput.because, hint: str | None = None
) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes. ``what`` names what it should be: "a motion"."""
    with _opened(path, what, limit, error, hint) as (stream, _):
        content = stream.read(limit + 1)
    if len(content) > limit:  # it grew
        raise error(path, f"it has more than {limit} bytes, which is too long for {what}", hint=hint)
    return content


def read_text(
    path: Path, what: str, *, limit: int = RECORD_BYTES, error: ErrorFactory = BadInput.because, hint: str | None = None
) -> str:
    """The text of a file in UTF-8, a byte order mark removed."""
    return _decoded(read_bytes(path, what, limit=limit, error=error, hint=hint), path, what, error, hint)


def _decoded(content: bytes, path: Path, what: str, error: ErrorFactory, hint: str | None) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        problem = f"it is not UTF-8 text (byte {reason.start} is 0x{content[reason.start]:02x}), as {what} is"
        raise error(path, problem, hint=hint) from None


def read_json(
    path: Path,
    what: str,
    *,
    nan: bool = False,
    limit: int = RECORD_BYTES,
    error: ErrorFactory = BadInput.because,
    hint: str | None = None,
) -> Any:
    """The value that a JSON file holds. NaN and infinity are refused unless ``nan``."""
    text = read_text(path, what, limit=limit, error=error, hint=hint)
    return parse_json(text, path, what, nan=nan, error=error, hint=hint)


def parse_json(
    text: str,
    path: Path,
    what: str,
    *,
    nan: bool = False,
    error: ErrorFactory = BadInput.because,
    hint: str | None = None,
) -> Any:
    """The value of a JSON text that was found in ``path``: the metadata of a weight file, a line of a log."""

    def number(digits: str) -> float:
        value = float(digits)
        if not nan and not math.isfinite(value):
            raise _Refused(f"the number {_shown(digits)} is not finite")
        return value

    if _depth(text) > DEPTH:
        raise error(path, f"it nests more than {DEPTH} levels deep, which {what} never does", hint=hint)
    try:
        return json.loads(
            text, object_pairs_hook=_once, parse_int=_whole, parse_float=number, parse_constant=number
        )  # fmt: skip
    except _Refused as reason:
        raise error(path, f"it is not {what}: {reason}", hint=hint) from None
    except json.JSONDecodeError as reason:
        where = f"line {reason.lineno}, column {reason.colno}"
        raise error(path, f"it is not {what}: broken JSON at {where} ({reason.msg})", hint=hint) from None
    except (ValueError, RecursionError, MemoryError) as reason:
        raise error(path, f"it is not {what}: no JSON ({_first_line(reason)})", hint=hint) from None


def read_json_lines(
    path: Path,
    what: str,
    *,
    nan: bool = False,
    cut: bool = False,
    limit: int = RECORD_BYTES,
    error: ErrorFactory = BadInput.because,
    hint: str | None = None,
) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and value of each line that is not empty. With ``cut`` a last line that is no JSON is left out: a
    kill may have cut it in two, within a character too."""
    with _opened(path, what, limit, error, hint, empty=True) as (stream, _):
        content = stream.read(limit)
    *whole, last = content.removesuffix(b"\n").split(b"\n")
    for number, raw in enumerate([*whole, last], start=1):
        if not raw.strip():
            continue

        def at(path: Path | str, problem: str, *, hint: str | None = None, number: int = number) -> SaError:
            return error(path, f"line {number}: {problem}", hint=hint)

        try:
            yield number, parse_json(_decoded(raw, path, what, at, hint), path, what, nan=nan, error=at, hint=hint)
        except SaError:
            if not cut or number <= len(whole):
                raise


def read_toml(
    path: Path, what: str, *, error: ErrorFactory = BadInput.because, hint: str | None = None
) -> dict[str, Any]:
    """The tables of a TOML file of at most a mebibyte. NaN and infinity are refused."""
    text = read_text(path, what, limit=_TOML_BYTES, error=error, hint=hint)
    return parse_toml(text, path, what, error=error, hint=hint)


def parse_toml(
    text: str, path: Path, what: str, *, error: ErrorFactory = BadInput.because, hint: str | None = None
) -> dict[str, Any]:
    """The tables of a TOML text that was found in ``path``."""
    deep = f"it nests more than {DEPTH} levels deep, which {what} never does"
    if _LONG_KEY.search(text):  # tomllib takes the square of a key's length in time
        raise error(path, deep, hint=hint)
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise error(path, deep, hint=hint) from None
    # besides a TOMLDecodeError, which is a ValueError: a number of too many digits, a date of year 0
    except (ValueError, OverflowError, MemoryError) as reason:
        raise error(path, f"it is not {what}: no valid TOML ({_first_line(reason)})", hint=hint) from None
    level: list[Any] = [tables]
    for _ in range(DEPTH):
        level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        for value in level:
            if isinstance(value, int) and abs(value) >= WHOLE:
                raise error(path, f"it is not {what}: a whole number has too many digits", hint=hint)
            if isinstance(value, float) and not math.isfinite(value):
                raise error(path, f"it is not {what}: the number {value} is not finite", hint=hint)
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return tables
    raise error(path, deep, hint=hint)


def read_npy(
    path: Path,
    what: str,
    *,
    limit: int = ARRAY_BYTES,
    error: ErrorFactory = BadInput.because,
    hint: str | None = None,
) -> np.ndarray:
    """The array of an npy file: booleans, whole numbers, floats, or short texts; never objects."""
    with _opened(path, what, None, error, hint) as (stream, length):
        try:
            return _array(stream, length, limit)
        except _Refused as reason:
            raise error(path, f"it is not {what}: {reason}", hint=hint) from None
        except (OSError, MemoryError) as reason:
            raise error(path, f"it cannot be read ({_first_line(reason)})", hint=hint) from None


def read_npz(
    path: Path,
    what: str,
    *,
    limit: int = ARRAY_BYTES,
    error: ErrorFactory = BadInput.because,
    hint: str | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name, all of them together within ``limit`` bytes."""
    import struct
    import zipfile
    import zlib

    with _opened(path, what, None, error, hint) as (stream, _):
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
            raise error(path, f"it is not {what}: {reason}", hint=hint) from None
        # zipfile has no error of its own for half of what can be wrong with an archive
        except (
            zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError, RuntimeError,
            OverflowError, MemoryError,
        ) as reason:  # fmt: skip
            problem = f"it is not {what}: damaged or no npz ({_first_line(reason)})"
            raise error(path, problem, hint=hint or "write the file again") from None


class _Refused(ValueError):
    """What is wrong, as a clause; readers add the file."""


@contextlib.contextmanager
def _opened(
    path: Path, what: str, limit: int | None, error: ErrorFactory, hint: str | None, *, empty: bool = False
) -> Iterator[tuple[IO[bytes], int]]:
    """A regular file and its length. What it is is asked before it is opened: opening a pipe would wait for ever."""
    try:
        mode, stream = os.stat(path).st_mode, None
        if stat.S_ISREG(mode):
            stream = open(path, "rb")  # noqa: SIM115  the caller's block is no part of what is translated
    except (OSError, ValueError) as reason:
        raise error(path, f"it cannot be read ({_first_line(reason)})", hint=hint) from None
    if stream is None:
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise error(path, f"it is {kind}, where {what} is needed", hint=hint)
    with stream:
        length = os.fstat(stream.fileno()).st_size
        if length == 0 and not empty:
            raise error(path, f"it is empty, where {what} is needed", hint=hint)
        if limit is not None and length > limit:
            raise error(path, f"it has {length} bytes, which is too long for {what}", hint=hint)
        yield stream, length


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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Refused(f"the key {twice!r} is there twice")
    return whole


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
            raise _Refused(f"{_shown(name)!r} is no name of an array, or is there twice")
        if member.flag_bits & 1:
            raise _Refused(f"{name} is encrypted")
        if member.file_size > _DEFLATED * max(member.compress_size, 1) or member.file_size > limit + _HEADER_BYTES:
            raise _Refused(f"{name} claims {member.file_size} bytes, more than can be in it")
    return members


def _array(stream: IO[bytes], length: int, limit: int, *, exact: bool = False) -> np.ndarray:
    """One array. ``length`` is that of the whole, header and data. With ``exact`` nothing may follow, and the end is
    read, where zipfile compares the checksum."""
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
        raise _Refused(f"an array of type {_shown(kind)!r}, where only numbers, truth values and texts are read")
    digits = re.findall(r"[0-9]+", items["shape"])
    if len(digits) > 32 or any(len(one) > 18 for one in digits):
        raise _Refused(f"an array of shape {_shown(items['shape'])}")
    shape, dtype = tuple(map(int, digits)), np.dtype(kind)
    needed = math.prod(shape) * dtype.itemsize
    rest = length - 8 - size - header_length
    if needed > rest or (exact and needed < rest):
        raise _Refused(f"an array of shape {shape} needs {needed} bytes and {max(rest, 0)} are there")
    if math.prod(side or 1 for side in shape) * dtype.itemsize > limit:
        raise _Refused(f"an array of shape {shape}, of more than {limit} bytes")
    content = stream.read(needed + 1 if exact else needed)
    if len(content) != needed:
        raise _Refused(f"an array of shape {shape} needs {needed} bytes and {len(content)} are there")
    if dtype.kind == "b":  # bytes other than 0 and 1 would be neither true nor false
        flat = np.frombuffer(content, np.uint8) != 0
    else:
        codes = np.frombuffer(content, np.dtype(f"{kind[0]}u4")) if dtype.kind == "U" else np.zeros(0)
        if codes.max(initial=0) > 0x10FFFF:
            raise _Refused("a text with characters that do not exist")
        flat = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if items["fortran_order"] == "True" else "C")
