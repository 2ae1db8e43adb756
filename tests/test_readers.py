"""Readers of untrusted files: whatever is in one, the answer is its content or one error that names it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput, ModelDamaged
from stableanimator_cli.readers import DEPTH, damaged_model, read_json, read_json_lines, read_npy, read_npz, read_toml
from stableanimator_cli.readers_fields import Fields


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    raw = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + data


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "it is empty"),
        ('{"a": 1', "broken JSON at line 1"),
        ("[" * 10_000 + "]" * 10_000, f"more than {DEPTH} levels"),
        ('{"a":' * 60 + "1" + "}" * 60, f"more than {DEPTH} levels"),
        ('{"frames": ' + "9" * 5000 + "}", "too many digits"),
        ('{"frames": 18446744073709551616}', "too many digits"),
        ('{"time": 1e999}', "not finite"),
        ('{"time": NaN}', "not finite"),
        ('{"time": -Infinity}', "not finite"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' exists twice"),
        (b'{"a": "\xff\xfe"}', "it is not UTF-8 text (byte 7 is 0xff)"),
        ('"' + '\\"' * 500_000, "broken JSON"),
        ("[" * 100 + '"' + '\\"' * 500_000, f"more than {DEPTH} levels"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: str | bytes, why: str) -> None:
    path = put(tmp_path / "record.json", content)
    started = time.monotonic()
    with pytest.raises(BadInput) as caught:
        read_json(path, "a record", hint="write it again")
    assert str(caught.value).startswith(f"{path}: ")
    assert why in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - started < 5


def test_json_that_can_be_read(tmp_path: Path) -> None:
    value = {"text": '[[[[{{{{ \\" ü', "numbers": [1, -2.5, 2**63], "deep": [[[[[[None]]]]]], "more": [[]] * 100}
    path = put(tmp_path / "record.json", "\ufeff" + json.dumps(value))
    assert read_json(path, "a record") == value
    assert str(read_json(put(path, "[NaN, 1e999]"), "a record", nan=True)) == "[nan, inf]"


def test_the_caller_chooses_the_error(tmp_path: Path) -> None:
    path = put(tmp_path / "unet.json", "{")
    with pytest.raises(ModelDamaged, match="it is not a config: broken JSON"):
        read_json(path, "a config", error=damaged_model)


def test_a_file_is_no_longer_than_its_limit(tmp_path: Path) -> None:
    path = put(tmp_path / "record.json", "[1, 2, 3]")
    with pytest.raises(BadInput, match="it has 9 bytes, which is too long for a record"):
        read_json(path, "a record", limit=8)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "loop", "long", "below a file"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "record.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer for ever
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "long":
        path = tmp_path / ("n" * 5000)
    elif kind == "below a file":
        path = put(tmp_path / "file", "x") / "record.json"
    for read in (read_json, read_toml, read_npy, read_npz):
        with pytest.raises(BadInput):
            read(path, "a record")


def test_lines_of_json(tmp_path: Path) -> None:
    path = put(tmp_path / "log.jsonl", '{"step": 1}\n\n{"step": 2}\n{"st')
    assert list(read_json_lines(path, "a log", cut=True)) == [(1, {"step": 1}), (3, {"step": 2})]
    with pytest.raises(BadInput, match=r"log\.jsonl: line 4: it is not a log"):
        list(read_json_lines(path, "a log"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a = ", "no valid TOML"),
        ("a = 1\na = 2", "no valid TOML"),
        ("a = " + "[" * 10_000 + "]" * 10_000, f"more than {DEPTH} levels"),
        ("a = " + "[" * 60 + "]" * 60, f"more than {DEPTH} levels"),
        (".".join(["a"] * 200_000) + " = 1", f"more than {DEPTH} levels"),
        (" . ".join(['"a"'] * 100_000) + " = 1", f"more than {DEPTH} levels"),
        ("x = {" + ".".join(["a"] * 200_000) + " = 1}", f"more than {DEPTH} levels"),
        ("a = " + "9" * 5000, "no valid TOML"),
        ("a = 0x" + "f" * 100_000, "too many digits"),
        ("a = 1e999", "not finite"),
        ("a = [1.0, nan]", "not finite"),
        (b"a = '\xff'", "not UTF-8"),
        ("a = 0000-00-00", "no valid TOML"),
        ("# " + "x" * 2**20, "too long"),
    ],
)
def test_toml_that_cannot_be_read(tmp_path: Path, content: str | bytes, why: str) -> None:
    path = put(tmp_path / "model.toml", content)
    started = time.monotonic()
    with pytest.raises(BadInput) as caught:
        read_toml(path, "a model.toml")
    assert str(caught.value).startswith(f"{path}: ")
    assert why in str(caught.value)
    assert time.monotonic() - started < 5


def test_toml_that_can_be_read(tmp_path: Path) -> None:
    path = put(tmp_path / "a.toml", "[a.b.c]\nd = [1, 2.5, 'x']\nurl = 'https://a.b.c.d.e/f'\nwhen = 2020-01-01\n")
    read = read_toml(path, "a config")
    assert read["a"]["b"]["c"]["d"] == [1, 2.5, "x"]


ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
    np.arange(5, dtype=">f8"),
    np.float16([1, np.nan, np.inf]),
    np.array([[True, False]]),
    np.array("bgr"),
    np.int64(7),
    np.zeros((0, 4), np.float32),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path: Path, array: np.ndarray, save: Any) -> None:
    found = read_npy(put(tmp_path / "a.npy", npy(array)), "points")
    save(tmp_path / "a.npz", first=array, second=array)
    for one in (found, *read_npz(tmp_path / "a.npz", "points").values()):
        assert one.shape == np.shape(array)
        assert one.dtype == np.asarray(array).dtype.newbyteorder("=")
        assert one.flags.writeable
        np.testing.assert_array_equal(one, array)


FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
BAD_ARRAYS = {
    "146 TiB": (header(FLOATS % "(40000000000000,)", b"\0" * 64), "needs 160000000000000 bytes and has 64"),
    "overflow": (header(FLOATS % "(99999999999999999999,)"), "an array of shape"),
    "product": (header(FLOATS % "(4294967296, 4294967296)"), "needs 73786976294838206464 bytes"),
    "nothing of much": (header(FLOATS % "(0, 1073741824, 1073741824)"), "an array of shape"),
    "negative": (header(FLOATS % "(-1,)", b"\0" * 4), "without a plain type and shape"),
    "no tuple": (header(FLOATS % "4", b"\0" * 16), "without a plain type and shape"),
    "many axes": (header(FLOATS % ("(" + "1, " * 100 + ")"), b"\0" * 4), "an array of shape"),
    "objects": (npy(np.array([{}, None], object)), "an array of type '|O'"),
    "records": (npy(np.zeros(2, [("a", "f4"), ("b", "i4")])), "without a plain type and shape"),
    "complex": (npy(np.zeros(2, np.complex64)), "an array of type '<c8'"),
    "dates": (npy(np.zeros(2, "M8[s]")), "an array of type '<M8[s]'"),
    "bytes": (npy(np.array([b"ab"])), "an array of type '|S2'"),
    "long text": (npy(np.array("x" * 5000)), "an array of type '<U5000'"),
    "no characters": (header(FLOATS.replace("f4", "U1") % "(1,)", b"\xff" * 4), "characters that do not exist"),
    "code": (header("__import__('os').system('true')"), "without a plain type and shape"),
    "deep header": (header("(" * 9000), "without a plain type and shape"),
    "long header": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "a header that claims 4294967295 bytes"),
    "version": (b"\x93NUMPY\x09\x00\x10\x00", "a NumPy array of version 9"),
    "magic": (b"PK\x03\x04 something else", "an archive of arrays"),
    "cut": (npy(np.zeros(100, np.float32))[:-1], "needs 400 bytes and has 399"),
    "cut in the header": (npy(np.zeros(4, np.float32))[:40], "a header that claims 118 bytes"),
    "magic alone": (b"\x93NUMPY", "no NumPy array"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    content, why = BAD_ARRAYS[name]
    path = put(tmp_path / "a.npy", content)
    with pytest.raises(BadInput) as caught:
        read_npy(path, "points")
    assert str(caught.value).startswith(f"{path}: ")
    assert why in str(caught.value)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("points.npy", content)
    with pytest.raises(BadInput):
        read_npz(tmp_path / "a.npz", "points")


def test_a_truth_value_is_one_of_two(tmp_path: Path) -> None:
    content = header("{'descr': '|b1', 'fortran_order': False, 'shape': (4,), }", b"\x00\x01\x02\xff")
    assert read_npy(put(tmp_path / "a.npy", content), "flags").view(np.uint8).tolist() == [0, 1, 1, 1]


def _archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    good = npy(np.arange(1000, dtype=np.float32))
    path = tmp_path / "a.npz"

    def refused(why: str, **options: Any) -> None:
        with pytest.raises(BadInput) as caught:
            read_npz(path, "points", **options)
        assert why in str(caught.value), str(caught.value)

    _archive(path, **{"../../evil.npy": good})
    refused("is no name of an array")
    _archive(path, **{f"{index}.npy": good for index in range(100)})
    refused("100 arrays")
    _archive(path, **{"a.npy": npy(np.zeros(10_000_000, np.float32))})  # 40 kB
    refused("bytes, more than the archive can hold", limit=2**20)
    _archive(path, **{"a.npy": good, "b.npy": good})
    refused("more than", limit=5000)  # each would do, not both
    _archive(path, **{"a.npy": good + b"more"})
    refused("needs 4000 bytes")
    _archive(path)
    refused("0 arrays")
    whole = _archive(path, **{"a.npy": good}).read_bytes()
    put(path, whole[: len(whole) // 2])
    refused("damaged or no npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", good)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the data: the checksum tells
    put(path, bytes(content))
    refused("Bad CRC-32")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", good)
    assert read_npz(path, "points")["a"].shape == (1000,)


def test_damaged_archives_of_any_kind(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "good.npz", a=np.arange(300), b=np.array("bgr"))
    good = (tmp_path / "good.npz").read_bytes()
    chance = np.random.default_rng(5)
    for _ in range(400):
        content = bytearray(good)
        for place in chance.integers(0, len(content), chance.integers(1, 4)):
            content[place] = chance.integers(256)
        path = put(tmp_path / "bad.npz", bytes(content[: chance.integers(1, len(content) + 1)]))
        with contextlib.suppress(BadInput):  # nothing else
            read_npz(path, "points")


def fields(**table: Any) -> Fields:
    return Fields.of(table, Path("clip.json"), "the record of a clip", hint="run it again")


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda: fields().whole("frames"), "clip.json: frames is missing, expected a whole number of 0 or more"),
        (lambda: fields(frames="x").whole("frames", 1, 9), "frames is 'x', expected a whole number from 1 to 9"),
        (lambda: fields(frames=True).whole("frames"), "frames is true"),
        (lambda: fields(frames=8.0).whole("frames"), "frames is 8.0"),
        (lambda: fields(frames=-1).whole("frames"), "frames is -1"),
        (lambda: fields(time=1e300).number("time", 0, 1e9), "time is 1e+300, expected a number from 0 to 1e+09"),
        (lambda: fields(time=float("nan")).number("time"), "time is nan, expected a finite number"),
        (lambda: fields(time="1").number("time"), "time is '1', expected a finite number"),
        (lambda: fields(size=[2**40, 8]).size("size"), "size is a list of 2, expected [width, height], each from 1"),
        (lambda: fields(size="8x8").size("size"), "size is '8x8', expected [width, height] in pixels"),
        (lambda: fields(name=3).text("name"), "name is 3, expected a text"),
        (lambda: fields(name="").text("name", empty=False), "name is '', expected a text that is not empty"),
        (lambda: fields(sha256=7).sha256("sha256"), "sha256 is 7, expected a sha256 of 64"),
        (lambda: fields(sha256="abc").sha256("sha256"), "sha256 is 'abc'"),
        (lambda: fields(format=True).choice("format", [1]), "format is true, expected 1"),
        (lambda: fields(kept=1).flag("kept"), "kept is 1, expected true or false"),
        (lambda: fields(source=[1]).fields("source"), "source is a list of 1, expected an object"),
        (lambda: fields(source={"path": 1}).fields("source").text("path"), "source.path is 1, expected a text"),
        (lambda: fields(rows=[{}, 3]).rows("rows"), "rows is a list of 2, expected a list of objects (item 1 is a num"),
        (lambda: fields(rows=[{"n": "x"}]).rows("rows")[0].whole("n"), "rows[0].n is 'x'"),
        (lambda: fields(box=[1, 2]).values("box", (int, float), 4), "box is a list of 2, expected a list of 4 values"),
        (lambda: fields(box=[1, "2"]).values("box", (int, float)), "box is a list of 2, expected a list of a number"),
        (lambda: fields(nmae=1).only(["name"]), "nmae is not a known key, expected name"),
        (lambda: fields(name="x" * 10_000).whole("name"), "x..., expected"),
        (lambda: Fields.of([], Path("clip.json"), "a record"), "clip.json: it is an empty list, expected a record, an"),
    ],
)
def test_a_field_of_another_type(read: Any, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        read()
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200


def test_fields_that_fit() -> None:
    record = fields(
        frames=8, time=2, name="a", size=[8, 16], sha256="0f" * 32, rows=[{"n": 1}], box=[1, 2.5], off=None, lost=None
    )
    assert record.whole("frames") == 8
    assert record.number("time") == 2.0
    assert record.text("name") == "a"
    assert record.size("size") == (8, 16)
    assert record.sha256("sha256") == "0f" * 32
    assert [row.whole("n") for row in record.rows("rows")] == [1]
    assert record.values("box", (int, float), 2) == [1, 2.5]
    assert record.number("off", default=None) is None
    assert record.whole("gone", default=3) == 3
    assert record.size("off", default=None) is None
    assert record.rows("off", default=[]) == []
    assert record.fields("gone", default={}).text("x", default="y") == "y"
    assert record.choice("frames", [8, "8"]) == 8
    assert "frames" in record
    assert "off" not in record
