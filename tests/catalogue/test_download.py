"""Fetching against a server on the loopback: whole, resumed, replaced, damaged, refused, unreachable; and verifying."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import download, http, store
from stableanimator_cli.errors import ModelDamaged, ModelMissing
from tests.model_server import Server

BODY = bytes(range(256)) * 40


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalogue, "builtin_dir", lambda: tmp_path / "models")
    monkeypatch.setattr(http, "PAUSE", 0.001)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def entry(tmp_path: Path, text: str, name: str = "m") -> Path:
    folder = tmp_path / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(f'name = "{name}"\nsource = "http://owner"\n{text}', encoding="utf-8")
    return folder


def row(url: str, body: bytes | None = BODY, path: str = "w.bin", more: str = "") -> str:
    known = "" if body is None else f'bytes = {len(body)}\nsha256 = "{sha(body)}"\n'
    return f'[[files]]\npath = "{path}"\nurl = "{url}"\n{known}{more}\n'


def parts(home: Path) -> list[str]:
    return sorted(p.name for p in home.rglob("*.part*"))


def test_pull_fetches_what_is_missing_and_nothing_twice(server: Server, home: Path, tmp_path: Path) -> None:
    server.files = {"/w": BODY, "/b": b"base", "/o": b"optional"}
    entry(tmp_path, row(f"{server.url}/b", b"base", "sub/b.bin"), "base")
    extra = row(f"{server.url}/o", b"optional", "o.bin", "optional = true")
    entry(tmp_path, 'needs = ["base"]\n' + row(f"{server.url}/w") + extra)
    told: list[tuple[str, int, int | None]] = []
    fetched = download.pull("m", lambda *step: told.append(step))
    assert [p.relative_to(home).as_posix() for p in fetched] == ["models/m/w.bin", "models/base/sub/b.bin"]
    assert fetched[0].read_bytes() == BODY
    assert ("m/w.bin", len(BODY), len(BODY)) in told
    assert parts(home) == []
    assert download.pull("m") == []
    assert len(server.asked) == 2
    assert [p.name for p in download.pull("m", optional=True)] == ["o.bin"]


def test_a_cut_connection_goes_on_where_it_stopped(server: Server, home: Path, tmp_path: Path) -> None:
    server.files, server.cut_after, server.cuts = {"/w": BODY}, 1000, 3
    entry(tmp_path, row(f"{server.url}/w"))
    (fetched,) = download.pull("m")
    assert fetched.read_bytes() == BODY
    assert server.asked == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]
    assert parts(home) == []


def test_a_killed_run_is_gone_on_with_by_the_next(server: Server, home: Path, tmp_path: Path) -> None:
    server.files = {"/w": BODY}
    entry(tmp_path, row(f"{server.url}/w"))
    part = home / "models/m/w.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:77])
    assert download.pull("m")[0].read_bytes() == BODY
    assert server.asked == ["bytes=77-"]


def test_a_finished_part_is_only_checked(server: Server, home: Path, tmp_path: Path) -> None:
    entry(tmp_path, row(f"{server.url}/w"))
    part = home / "models/m/w.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    assert download.pull("m")[0].read_bytes() == BODY
    assert server.asked == []


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.files, server.ranges, server.cut_after, server.cuts = {"/w": BODY}, False, 1000, 1
    entry(tmp_path, row(f"{server.url}/w"))
    assert download.pull("m")[0].read_bytes() == BODY


def test_without_a_digest_only_an_unchanged_file_is_gone_on_with(server: Server, home: Path, tmp_path: Path) -> None:
    server.files, server.cut_after, server.cuts = {"/w": BODY}, 1000, 1
    entry(tmp_path, row(f"{server.url}/w", None))
    assert download.pull("m")[0].read_bytes() == BODY
    assert server.asked == [None, "bytes=1000-"]
    # replaced at the server between two runs: the new file comes whole
    target = home / "models/m/w.bin"
    target.unlink()
    target.with_name("w.bin.part").write_bytes(BODY[:500])
    target.with_name("w.bin.part.etag").write_text('"one"', encoding="utf-8")
    server.files, server.etag = {"/w": BODY[::-1]}, '"two"'
    assert download.pull("m")[0].read_bytes() == BODY[::-1]
    # and a partial file of which nothing is known is not built on
    target.unlink()
    target.with_name("w.bin.part").write_bytes(b"stale")
    server.etag = None
    assert download.pull("m")[0].read_bytes() == BODY[::-1]
    assert server.asked[-1] is None


def test_a_whole_part_of_unknown_size_is_accepted(server: Server, home: Path, tmp_path: Path) -> None:
    server.files = {"/w": BODY}
    entry(tmp_path, f'[[files]]\npath = "w.bin"\nurl = "{server.url}/w"\nsha256 = "{sha(BODY)}"\n')
    part = home / "models/m/w.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    assert download.pull("m")[0].read_bytes() == BODY
    (home / "models/m/w.bin").unlink()
    part.write_bytes(BODY + b"too much")  # cannot be gone on with: begun anew
    assert download.pull("m")[0].read_bytes() == BODY


@pytest.mark.parametrize(("body", "told"), [(BODY[::-1], "sha256"), (BODY[:-1], "bytes")])
def test_what_is_not_as_recorded_is_deleted(server: Server, home: Path, tmp_path: Path, body: bytes, told: str) -> None:
    server.files = {"/w": body}
    entry(tmp_path, row(f"{server.url}/w"))
    with pytest.raises(ModelDamaged, match=rf"m/w\.bin: .*found .*{told}.*deleted"):
        download.pull("m")
    assert [p for p in home.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "may have moved"), (401, "HF_TOKEN"), (403, "terms at http://owner")]
)
def test_a_refusal_is_not_tried_again(server: Server, tmp_path: Path, status: int, hint: str) -> None:
    server.status = status
    entry(tmp_path, row(f"{server.url}/w"))
    with pytest.raises(ModelMissing, match=f"answered {status}") as caught:
        download.pull("m")
    assert hint in str(caught.value.hint)
    assert len(server.asked) == 1


def test_a_server_that_stays_ill_is_given_up(server: Server, tmp_path: Path) -> None:
    server.status = 503
    entry(tmp_path, row(f"{server.url}/w"))
    with pytest.raises(ModelMissing, match="cannot fetch"):
        download.pull("m")
    assert len(server.asked) == http.ATTEMPTS


def test_no_network_is_one_line_at_once(home: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    entry(tmp_path, row(f"http://127.0.0.1:{port}/w"))
    with pytest.raises(ModelMissing, match=rf"cannot fetch w\.bin from 127\.0\.0\.1:{port}: .*refused") as caught:
        download.pull("m")
    assert "\n" not in caught.value.message
    assert "sa models import" in str(caught.value.hint)


def test_a_file_without_an_address_is_told(tmp_path: Path) -> None:
    entry(tmp_path, '[[files]]\npath = "w.bin"\n')
    with pytest.raises(ModelMissing, match="address is not recorded"):
        download.pull("m")


def test_no_room_is_told_before_the_disk_is_full(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {"/w": BODY}
    entry(tmp_path, row(f"{server.url}/w"))
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 10})())
    with pytest.raises(ModelMissing, match="are free") as caught:
        download.pull("m")
    assert "SA_HOME" in str(caught.value.hint)


def test_a_token_goes_to_its_host_only(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.files = {"/w": BODY}
    entry(tmp_path, row(f"{server.url}/w"))
    download.pull("m")
    assert all("secret" not in str(headers) for headers in server.headers)


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return stream.getvalue()


def packed(tmp_path: Path, server: Server, body: bytes) -> None:
    server.files = {"/p.zip": body}
    text = f'[[archives]]\npath = "p.zip"\nurl = "{server.url}/p.zip"\n'
    text += f'[[files]]\npath = "a.onnx"\narchive = "p.zip"\nsha256 = "{sha(b"face")}"\n'
    entry(tmp_path, text + '[components.face]\nfile = "."\n')


def test_an_archive_is_unpacked_by_name_at_any_depth(server: Server, home: Path, tmp_path: Path) -> None:
    packed(tmp_path, server, zipped({"m/deep/a.onnx": b"face", "m/other.onnx": b"x", "../../evil": b"y"}))
    assert download.pull("m") == [home / "models/m/a.onnx"]
    assert [p.name for p in home.rglob("*") if p.is_file()] == ["a.onnx"]
    assert catalogue.open_model("m", ("face",)).files["face"] == home / "models/m"
    assert download.pull("m") == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"no zip at all", "not a zip"),
        (zipped({"b.onnx": b"face"}), "does not hold a.onnx"),
        (zipped({"a.onnx": b"fake"}), "sha256"),
    ],
)
def test_archives_that_are_not_as_recorded(server: Server, home: Path, tmp_path: Path, body: bytes, told: str) -> None:
    packed(tmp_path, server, body)
    with pytest.raises(ModelDamaged, match="m") as caught:
        download.pull("m")
    assert told in caught.value.message
    assert not (home / "models/m/a.onnx").exists()
    assert parts(home) == []


# verify


def test_verify_names_every_state(home: Path, tmp_path: Path) -> None:
    rows = [("ok", BODY), ("size", BODY), ("digest", BODY), ("form", BODY), ("gone", BODY)]
    text = "".join(row("http://x/w", body, f"{name}.bin") for name, body in rows)
    text += row("http://x/w", None, "unknown.bin") + row("http://x/w", BODY, "maybe.bin", "optional = true")
    entry(tmp_path, text)
    here = home / "models/m"
    here.mkdir(parents=True)
    files = {"ok.bin": BODY, "size.bin": b"1", "digest.bin": BODY[::-1], "form.safetensors": b"2", "unknown.bin": b"3"}
    for name, body in files.items():
        (here / name).write_bytes(body)
    checks = {Path(c.path).stem: c for c in download.verify("m")}
    assert {name: c.status for name, c in checks.items()} == {
        "ok": "ok",
        "size": "wrong size",
        "digest": "wrong digest",
        "form": "other form",
        "gone": "missing",
        "unknown": "digest unknown",
        "maybe": "missing",
    }
    assert checks["unknown"].sha256 == sha(b"3")
    assert checks["digest"].sha256 == sha(BODY[::-1])
    assert sorted(name for name, c in checks.items() if not c.holds) == ["digest", "gone", "size"]


def test_a_second_verify_reads_nothing_unless_the_file_changed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(tmp_path, row("http://x/w"))
    place = home / "models/m/w.bin"
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    read: list[Path] = []
    real = download._sha256

    def counting(path: Path, *rest: object) -> str:
        read.append(path)
        return real(path, None, "")

    monkeypatch.setattr(download, "_sha256", counting)
    assert [download.verify("m")[0].status for _ in range(3)] == ["ok"] * 3
    assert len(read) == 1
    place.write_bytes(BODY[::-1])
    os.utime(place, ns=(1, 1))
    assert download.verify("m")[0].status == "wrong digest"
    (home / "digests.json").write_text("{broken", encoding="utf-8")
    assert download.verify("m")[0].status == "wrong digest"
    assert str(place.resolve()) in json.loads((home / "digests.json").read_text(encoding="utf-8"))


def test_the_stored_digests_are_parsed_once_for_many_files(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{number}.bin" for number in range(5)]
    for file in files:
        file.write_bytes(file.name.encode())
    expected = [download.digest(file) for file in files]
    parsed: list[Path] = []
    real = download.read_json

    def counting(path: Path, name: str) -> object:
        parsed.append(path)
        return real(path, name)

    monkeypatch.setattr(download, "read_json", counting)
    assert [download.digest(file) for _ in range(3) for file in files] == 3 * expected
    assert len(parsed) == 1


def test_pull_replaces_what_verify_refuses(server: Server, home: Path, tmp_path: Path) -> None:
    server.files = {"/w": BODY}
    entry(tmp_path, row(f"{server.url}/w"))
    for wrong in (b"short", BODY[::-1]):
        place = home / "models/m/w.bin"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(wrong)
        assert download.pull("m") == [place]
        assert download.verify("m")[0].status == "ok"
