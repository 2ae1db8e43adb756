"""Ways to damage a file: bytes, JSON, TOML, arrays, and what can lie in a file's place."""

from __future__ import annotations

import io
import json
import os
import random
import re
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ODD_JSON = [
    "null", "true", "-1", "0", "1e300", "-1e300", "1e999", "NaN", "Infinity", str(2**40), str(2**63), str(2**64),
    "9" * 5000, '"x"', '""', '"' + "x" * 200_000 + '"', "[]", "{}", "[" * 5000 + "]" * 5000, '[[[[["x"]]]]]', "1.5",
    '{"a": ' * 900 + "1" + "}" * 900, '"\\ud800"', '"\\u0000"', '"../../../etc/passwd"', '["x", 1, null]', '"a\\nb"',
]  # fmt: skip
ODD_TOML = [
    "true", "-1", "0", "1e300", "nan", "inf", "-inf", str(2**40), str(2**63), str(2**70), "9" * 5000, '"x"', '""',
    "[]", "{}", "[" * 3000 + "]" * 3000, "1.5", '"\\u0000"', '"../../x"', '["x", 1]', "1979-05-27", '"a\\nb"',
    "{a = 1, b = {c = []}}", "'" + "x" * 100_000 + "'",
]  # fmt: skip
ODD_NUMBERS = [np.nan, np.inf, -np.inf, 1e300, -1e300, 2.0**40, -1, 0, 1e-300, 2.0**62, 255, 0.5]
TYPES = ["<f8", "<f2", "<i8", "<u8", "|i1", "|b1", "<U4", "<c8", ">f4", "<M8[s]"]


def damaged(path: Path, chance: random.Random) -> str:
    """Damage ``path`` in a way that suits it, and say how."""
    kinds: list[Callable[[Path, random.Random], str]] = [_bytes, _cut, _replaced]
    suffix = path.suffix.lower()
    own = {
        ".json": [_json, _json, _json, _json, _text], ".jsonl": [_json, _json, _text], ".toml": [_toml] * 4 + [_text],
        ".npz": [_npz] * 4, ".npy": [_npy] * 4, ".safetensors": [_safetensors] * 2, ".txt": [_text] * 3,
    }.get(suffix, [_bytes, _cut])  # fmt: skip
    return chance.choice([*kinds, *own])(path, chance)


def _bytes(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    count = chance.choice([1, 1, 2, 8, 64])
    for _ in range(count):
        place = chance.randrange(min(len(content), chance.choice([64, 512, len(content)])))
        content[place] = chance.choice([0, 255, content[place] ^ (1 << chance.randrange(8)), chance.randrange(256)])
    path.write_bytes(bytes(content))
    return f"{count} bytes changed"


def _cut(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    length = chance.choice([0, 1, 8, len(content) // 2, len(content) - 1, chance.randrange(len(content))])
    path.write_bytes(content[:length])
    return f"cut to {length} bytes"


def _replaced(path: Path, chance: random.Random) -> str:
    """Something else under the name of the file."""
    size = path.stat().st_size
    contents: dict[str, bytes] = {
        "zeros": b"\0" * min(size, 2**20), "noise": chance.randbytes(min(size, 2**16)), "text": b"hello\n",
        "brackets": b"[" * 20_000, "utf-16": "{}".encode("utf-16"), "png": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
        "zip": b"PK\x03\x04" + b"\0" * 64, "npy": b"\x93NUMPY\x01\x00\xff\xff", "no utf-8": b"\xff\xfe\xfd" * 100,
    }  # fmt: skip
    name = chance.choice([*contents, "pipe", "folder", "loop", "gone", "socket", "device"])
    path.unlink()
    if name in contents:
        path.write_bytes(contents[name])
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "loop":
        path.symlink_to(path.name)
    elif name == "device":
        path.symlink_to("/dev/zero")
    elif name == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            before = os.getcwd()
            os.chdir(path.parent)
            server.bind(path.name)
            os.chdir(before)
    return f"{name} in its place"


def _json(path: Path, chance: random.Random) -> str:
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    index = chance.randrange(len(lines))
    data = json.loads(lines[index])
    places = list(_places(data))
    holder, key = chance.choice(places) if places else ([data], 0)
    what = chance.choice(["value", "value", "value", "gone", "twice", "added"])
    mark = "\x00odd\x00"
    odd = chance.choice(ODD_JSON)
    if what == "gone":
        del holder[key]
    elif what == "added" and isinstance(holder, dict):
        holder[chance.choice(["a", "", "__class__", "format", "x" * 5000])] = mark
    elif what == "added":
        holder.insert(0, mark)
    else:
        holder[key] = mark
    text = json.dumps(data)
    if what == "twice" and isinstance(holder, dict):
        name = json.dumps(key)
        text = text.replace(f"{name}: {json.dumps(mark)}", f"{name}: 1, {name}: {odd}")
    lines[index] = text.replace(json.dumps(mark), odd)
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"{what} {str(key)[:40]!r}: {odd[:40]}"


def _places(value: Any) -> Any:
    """(container, key) of everything in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:50]:
        yield value, key
        yield from _places(inner)


def _toml(path: Path, chance: random.Random) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    places = [index for index, line in enumerate(lines) if re.match(r"\s*[\w\"-]+\s*=", line)]
    odd = chance.choice(ODD_TOML)
    what = chance.choice(["value", "value", "value", "gone", "twice", "added", "table", "deep"])
    index = chance.choice(places) if places else 0
    said = lines[index][:40] if lines else ""
    key = said.split("=")[0].strip() or "a"
    if what == "gone" and places:
        del lines[index]
    elif what == "twice" and places:
        lines.insert(index, lines[index])
    elif what == "added":
        lines.insert(0, f"{chance.choice(['a', 'x-y', 'steps', 'files', 'components'])} = {odd}")
    elif what == "table":
        lines.append(
            f"[{chance.choice(['a', 'files', 'components.unet', 'defaults', 'stage', 'sampling'])}]\nx = {odd}"
        )
    elif what == "deep":
        lines.append(".".join(["a"] * chance.choice([5, 100, 3000])) + " = 1")
    else:
        lines[index : index + 1] = [f"{key} = {odd}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{what} {said!r}: {odd[:40]}"


def _text(path: Path, chance: random.Random) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    odd = chance.choice(["\0", "\r", "﻿", "\ud7ff", "x" * 5000, "/dev/zero", "\n\n", "..", "~", "💃", "\t", "/" * 300])
    place = chance.randrange(len(text) + 1)
    path.write_text(text[:place] + odd + text[place:], encoding="utf-8")
    return f"{odd[:20]!r} put in at {place}"


def _odd_array(array: np.ndarray, chance: random.Random) -> tuple[bytes, str]:
    """An npy file like ``array`` but for one thing."""
    what = chance.choice(["number", "number", "type", "shape", "header", "object", "cut", "empty", "one axis more"])
    stream = io.BytesIO()
    if what == "number":
        odd = chance.choice(ODD_NUMBERS)
        array = np.array(array, dtype=array.dtype if array.dtype.kind == "f" else "<f8" if odd % 1 else array.dtype)
        flat = array.reshape(-1)
        with np.errstate(all="ignore"):
            if len(flat):
                flat[slice(None) if chance.random() < 0.5 else chance.randrange(len(flat))] = np.array(odd).astype(
                    array.dtype
                )
        what = f"number {odd}"
    elif what == "type":
        kind = chance.choice(TYPES)
        with np.errstate(all="ignore"):
            array = np.zeros(array.shape, kind) if array.dtype.kind == "U" or "M8" in kind else array.astype(kind)
        what = f"type {kind}"
    elif what == "shape":
        array = chance.choice([array[:1], array.reshape(-1), array[..., None], array.T]) if array.ndim else array[None]
        what = f"shape {array.shape}"
    elif what == "object":
        array = np.array([{}, None], object)
    elif what == "empty":
        array = array.reshape(-1)[:0]
    elif what == "one axis more":
        array = np.stack([array, array])
    np.save(stream, array)
    content = stream.getvalue()
    if what == "header":
        shape = chance.choice(["(40000000000000,)", "(-1,)", "(4294967296, 4294967296)", "(0, 1152921504606846976)"])
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        content, what = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * 64, f"claims {shape}"
    elif what == "cut":
        content = content[: chance.randrange(len(content))]
    return content, what


def _npy(path: Path, chance: random.Random) -> str:
    content, what = _odd_array(np.load(path), chance)
    path.write_bytes(content)
    return what


def _npz(path: Path, chance: random.Random) -> str:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = chance.choice(list(arrays))
    content, what = _odd_array(arrays.pop(name), chance)
    if chance.random() < 0.15:
        content, what = b"", "gone"
    with zipfile.ZipFile(path, "w", chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for other, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{other}.npy", stream.getvalue())
        if content:
            archive.writestr(f"{name}.npy", content)
    return f"{name}: {what}"


def _safetensors(path: Path, chance: random.Random) -> str:
    """Another header over the same data: other shapes, types, names, offsets or lengths."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    name = chance.choice(sorted(head))
    what = chance.choice(["gone", "shape", "dtype", "offsets", "renamed", "length", "state"])
    row = head[name]
    if what == "gone":
        del head[name]
    elif what == "renamed":
        head["other"] = head.pop(name)
    elif what == "state" and "__metadata__" in head:
        key = chance.choice(sorted(head["__metadata__"]))
        head["__metadata__"][key] = chance.choice(["", "{}", "[1]", "[" * 5000, '{"facts": 1}', "9" * 5000])
    elif "shape" in row:
        row["shape"] = (
            chance.choice([[2**40], [-1], [], row["shape"][::-1], ["x"]]) if what == "shape" else row["shape"]
        )
        row["dtype"] = chance.choice(["I64", "BOOL", "F8_E4M3", "X"]) if what == "dtype" else row["dtype"]
        row["data_offsets"] = [2**40, 2**41] if what == "offsets" else row["data_offsets"]
    raw = json.dumps(head).encode()
    size = 2**60 if what == "length" else len(raw)
    path.write_bytes(size.to_bytes(8, "little") + raw + content[8 + length :])
    return f"{what} {name[:40]}"


def odd_places(box: Path) -> None:
    """A pipe, a link to itself, a socket and an empty file, under those names."""
    os.mkfifo(box / "pipe")
    (box / "loop").symlink_to("loop")
    (box / "empty").touch()
    before = os.getcwd()
    os.chdir(box)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    os.chdir(before)
