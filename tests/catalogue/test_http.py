"""What a server, an address or an archive must not do: lead elsewhere, send without end, show a password."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import archive, download
from stableanimator_cli.catalogue import http as http_download
from stableanimator_cli.catalogue.address import problem, redacted, refused_redirect
from stableanimator_cli.cli.models import app
from stableanimator_cli.errors import ModelDamaged, ModelMissing
from tests.catalogue.test_download import BODY, entry, home, parts, row, server
from tests.conftest import largest_file
from tests.model_server import Server

__all__ = ["home", "server"]  # fixtures that pytest uses by name


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no second attempt would change is reported at once."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s for a second attempt")

    monkeypatch.setattr(http_download, "time", SimpleNamespace(sleep=sleep))


@pytest.mark.parametrize(
    "target",
    ["ftp://u:secret@127.0.0.1/w", "file:///etc/passwd", "data:text/plain,x", "gopher://h/x", "http://u:secret@h/", "http://[::1/x"],
)  # fmt: skip
@pytest.mark.usefixtures("no_waiting")
def test_a_redirect_leads_to_http_alone(server: Server, home: Path, tmp_path: Path, target: str) -> None:
    server.redirects = {"/w": target}
    entry(tmp_path, row(f"{server.url}/w"))
    with pytest.raises(ModelMissing, match=r"w\.bin") as caught:
        download.pull("m")
    assert "secret" not in caught.value.message
    assert len(server.asked) == 1
    assert not (home / "models/m").exists()


@pytest.mark.usefixtures("no_waiting")
def test_redirects_among_http_are_followed_and_circles_end(server: Server, tmp_path: Path) -> None:
    server.redirects = {"/w": "/b", "/b": f"{server.url}/c%20d", "/c%20d": "/e"}
    server.files = {"/e": BODY}
    entry(tmp_path, row(f"{server.url}/w"))
    assert download.pull("m")[0].read_bytes() == BODY
    server.redirects = {"/w": "/b", "/b": "/w"}
    entry(tmp_path, row(f"{server.url}/w", path="v.bin"))
    with pytest.raises(ModelMissing, match="too many redirects"):
        download.pull("m")


@pytest.mark.usefixtures("no_waiting")
def test_the_body_of_a_redirect_is_not_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = http.client.HTTPResponse.read

    def watched(self: http.client.HTTPResponse, amount: int | None = None) -> bytes:
        read.append(self.status)
        return original(self, amount)

    monkeypatch.setattr(http.client.HTTPResponse, "read", watched)
    server.redirects, server.files = {"/w": "/b"}, {"/b": BODY}
    entry(tmp_path, row(f"{server.url}/w"))
    assert download.pull("m")[0].read_bytes() == BODY
    assert set(read) == {200}


def test_https_leads_to_http_on_the_loopback_alone() -> None:
    assert refused_redirect("https://a/x", "http://b/x") == "it leads from https to http"
    assert refused_redirect("https://a/x", "http://127.0.0.1:80/x") is None
    assert refused_redirect("https://a/x", "http://[::1]/x") is None
    assert refused_redirect("https://a/x", "https://b/x") is None
    assert refused_redirect("http://a/x", "http://b/x") is None


@pytest.mark.parametrize(
    "address",
    [
        "http://", "http:///w", "http://h:port/w", "http://h:/w", "http://h:99999/w", "http://[::1/w", "http://h w/",
        "http://h/a b", "http://h/é", "http://h\\\\x/w", "ftp://h/w", "h/w", "http://u:p@h/w", "http://u@h/w",
        "http://" + "h" * 5000, "http://..../w",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_waiting")
def test_a_malformed_address_is_refused_when_it_is_read(tmp_path: Path, address: str) -> None:
    entry(tmp_path, row(address))
    with pytest.raises(ModelDamaged, match=r"model\.toml: files\[0\]\.url is .*an http\(s\) address") as caught:
        download.pull("m")
    assert len(caught.value.message) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    "address", ["http://h/w", "https://h.example:8443/a/b?x=1#y", "http://127.0.0.1:1/w", "http://[::1]:1/w"]
)
def test_an_address_that_is_fetched(address: str) -> None:
    assert problem(address) is None


def test_secrets_are_not_shown() -> None:
    assert redacted("https://me:pass@h:1/a?token=abc#d") == "https://...@h:1/a?..."
    assert redacted("see https://me@h/a?x=1 and http://h/b") == "see https://...@h/a?... and http://h/b"
    assert redacted("https://h/a") == "https://h/a"
    assert redacted("it costs 3 $ @ home") == "it costs 3 $ @ home"


def test_no_command_prints_a_password_or_a_token(server: Server, tmp_path: Path) -> None:
    server.status = 404
    text = f'[[files]]\npath = "w.bin"\nurl = "{server.url}/w?token=SECRET"\n'
    entry(tmp_path, text.replace("[[files]]", 'licence_note = "at http://me:SECRET@h/x?SECRET"\n[[files]]'))
    outputs = [CliRunner().invoke(app, words) for words in (["show", "m"], ["show", "m", "--json"], ["pull", "m"])]
    assert [done.exit_code for done in outputs] == [0, 0, 1]
    assert isinstance(outputs[2].exception, ModelMissing)
    assert "/w?...: the server answered 404" in outputs[2].exception.message
    assert json.loads(outputs[1].stdout)["files"][0]["url"] == f"{server.url}/w?..."
    entry(tmp_path, row("http://me:SECRET@127.0.0.1:1/w"))
    outputs += [
        CliRunner().invoke(app, words) for words in (["list"], ["list", "--json"], ["show", "m"], ["pull", "m"])
    ]
    for done in outputs:
        assert "SECRET" not in done.output + str(done.exception) + str(getattr(done.exception, "hint", ""))


@pytest.mark.usefixtures("no_waiting")
def test_an_answer_that_is_no_http_is_not_asked_for_again(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            stream, _ = listener.accept()
            with stream:
                stream.recv(4096)
                stream.sendall(b"220 welcome to ftp\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        entry(tmp_path, row(f"http://127.0.0.1:{listener.getsockname()[1]}/w"))
        with pytest.raises(ModelMissing, match=r"cannot fetch w\.bin"):
            download.pull("m")
        thread.join()


@pytest.mark.usefixtures("no_waiting")
def test_an_answer_that_is_compressed_unasked_is_refused(server: Server, home: Path, tmp_path: Path) -> None:
    server.files, server.more = {"/w": BODY}, {"Content-Encoding": "gzip"}
    entry(tmp_path, row(f"{server.url}/w", None))
    with pytest.raises(ModelMissing, match="compressed"):
        download.pull("m")


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.usefixtures("no_waiting")
def test_no_more_is_read_than_is_recorded(server: Server, home: Path, tmp_path: Path, announced: bool) -> None:
    server.files, server.length = {"/w": BODY * 2}, announced
    entry(tmp_path, row(f"{server.url}/w"))
    with pytest.raises(ModelDamaged, match=f"expected {len(BODY)} bytes; deleted"):
        download.pull("m")
    assert not (home / "models/m").exists()


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.usefixtures("no_waiting")
def test_a_size_that_is_not_recorded_has_a_bound(
    server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    monkeypatch.setattr(http_download, "LONGEST", 5000)
    server.files, server.length = {"/w": BODY}, announced
    entry(tmp_path, row(f"{server.url}/w", None))
    with pytest.raises(ModelDamaged, match="whose size is not recorded; deleted") as caught:
        download.pull("m")
    assert "`bytes`" in str(caught.value.hint)
    assert not (home / "models/m").exists()


@pytest.mark.usefixtures("no_waiting")
def test_a_full_disk_is_named_and_the_next_run_resumes(server: Server, home: Path, tmp_path: Path) -> None:
    server.files = {"/w": BODY}
    entry(tmp_path, row(f"{server.url}/w"))
    with largest_file(4000), pytest.raises(ModelMissing, match=r"w\.bin\.part: no room left to write it") as caught:
        download.pull("m")
    assert "make room" in str(caught.value.hint)
    assert download.pull("m")[0].read_bytes() == BODY
    assert server.asked == [None, "bytes=4000-"]
    assert parts(home) == []


# Archives


def publish(tmp_path: Path, server: Server, body: bytes, size: int | None = None) -> None:
    server.files = {"/p.zip": body}
    text = f'[[archives]]\npath = "p.zip"\nurl = "{server.url}/p.zip"\n[[files]]\npath = "a.onnx"\narchive = "p.zip"\n'
    entry(tmp_path, text + ("" if size is None else f"bytes = {size}\n"))


def zipped(content: bytes, name: str = "a.onnx", method: int = zipfile.ZIP_DEFLATED, mode: int = 0o644) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        info = zipfile.ZipInfo(name)
        info.compress_type, info.external_attr = method, (0o100000 | mode if mode < 0o10000 else mode) << 16
        made.writestr(info, content)
    return stream.getvalue()


def test_an_archive_that_grows_a_thousandfold_is_not_unpacked(server: Server, home: Path, tmp_path: Path) -> None:
    zeros = bytes(20_000_000)
    publish(tmp_path, server, zipped(zeros))
    with pytest.raises(ModelDamaged, match="it would become 20000000 bytes, far more than the archive holds") as caught:
        download.pull("m")
    assert "`bytes`" in str(caught.value.hint)
    assert not (home / "models/m").exists()
    publish(tmp_path, server, zipped(zeros), size=len(zeros))  # recorded: meant
    assert download.pull("m")[0].stat().st_size == len(zeros)
    assert [p.name for p in home.rglob("*") if p.is_file()] == ["a.onnx"]


def test_an_archive_is_not_unpacked_beyond_the_recorded_or_the_absolute_size(
    server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, server, zipped(BODY), size=len(BODY) - 1)
    with pytest.raises(ModelDamaged, match=f"found {len(BODY)} bytes, expected {len(BODY) - 1} bytes"):
        download.pull("m")
    monkeypatch.setattr(archive, "LONGEST", 5000)
    publish(tmp_path, server, zipped(BODY))
    with pytest.raises(ModelDamaged, match="far more"):
        download.pull("m")


def with_offset(body: bytes, offset: int) -> bytes:
    """The zip with another place of its directory: files then lie before the beginning."""
    end = body.rindex(b"PK\x05\x06") + 16
    return body[:end] + offset.to_bytes(4, "little") + body[end + 4 :]


def spoiled(find: bytes, put: bytes, body: bytes) -> bytes:
    assert find in body
    return body.replace(find, put)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (zipped(b"/etc/passwd", mode=0o120777), "does not hold a.onnx"),
        (zipped(b"", "a.onnx/"), "does not hold a.onnx"),
        (zipped(BODY, method=zipfile.ZIP_BZIP2), "packed by method 12"),
        (zipped(BODY, method=zipfile.ZIP_LZMA), "packed by method 14"),
        (spoiled(b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x01\x00\x08\x00", zipped(BODY)), "encryp"),
        (zipped(BODY)[:-30], "not a zip"),
        (with_offset(zipped(BODY), 0x70000), "not a zip"),
        (spoiled(b"PK\x01\x02", b"PK\x01\x03", zipped(BODY)), "not a zip"),
        (zipped(BODY)[:60] + b"\xff" * 40 + zipped(BODY)[100:], "not a zip"),
    ],
)
def test_archives_that_hold_no_such_file_or_are_damaged(
    server: Server, home: Path, tmp_path: Path, body: bytes, told: str
) -> None:
    publish(tmp_path, server, body)
    with pytest.raises(ModelDamaged) as caught:
        download.pull("m")
    assert told in caught.value.message
    assert not (home / "models/m").exists()


def test_members_that_lead_elsewhere_are_written_to_their_own_place_alone(
    server: Server, home: Path, tmp_path: Path
) -> None:
    publish(tmp_path, server, zipped(b"face", "../../../a.onnx"))
    assert download.pull("m") == [catalogue.model_cache_dir("m") / "a.onnx"]
    assert list(tmp_path.rglob("a.onnx")) == [home / "models/m/a.onnx"]
