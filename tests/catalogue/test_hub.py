"""The hub's variables: a mirror on the loopback in its place, its cache, and where the token goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import download, hub
from stableanimator_cli.errors import ConfigError, ModelDamaged
from tests.catalogue.test_download import BODY, entry, home, row, server
from tests.model_server import Server

__all__ = ["home", "server"]  # fixtures that pytest uses by name

PATH = "/someone/net/resolve/0123abc/sub%20dir/w.bin"
URL = hub.HUB + PATH


@pytest.fixture(autouse=True)
def mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The loopback server as the hub, an empty cache of it, and a token."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/hf/")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    return server


def tokens(server: Server) -> list[str | None]:
    return [headers.get("Authorization") for headers in server.headers]


def cache_file(tmp_path: Path, body: bytes, revision: str = "feed") -> Path:
    """A file as the hub's library keeps it: a link in a snapshot to a blob."""
    folder = tmp_path / "hf" / "hub" / "models--someone--net"
    blob, link = folder / "blobs" / revision, folder / "snapshots" / revision / "sub dir" / "w.bin"
    blob.parent.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True)
    blob.write_bytes(body)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return blob


def test_a_mirror_stands_in_for_the_hub_and_gets_the_token(mirror: Server, tmp_path: Path) -> None:
    mirror.files = {f"/hf{PATH}": BODY}
    entry(tmp_path, row(URL))
    assert download.pull("m")[0].read_bytes() == BODY
    assert tokens(mirror) == ["Bearer secret"]


def test_an_interrupted_download_from_a_mirror_is_resumed(mirror: Server, home: Path, tmp_path: Path) -> None:
    mirror.files = {f"/hf{PATH}": BODY}
    mirror.cuts, mirror.cut_after = 1, 1000
    entry(tmp_path, row(URL))
    assert download.pull("m")[0].read_bytes() == BODY
    assert mirror.asked == [None, "bytes=1000-"]
    assert tokens(mirror) == ["Bearer secret"] * 2


def test_a_mirror_with_another_file_is_refused(mirror: Server, tmp_path: Path) -> None:
    mirror.files = {f"/hf{PATH}": BODY[::-1]}
    entry(tmp_path, row(URL))
    with pytest.raises(ModelDamaged, match="the download differs from its record: found sha256"):
        download.pull("m")


def test_the_token_follows_redirects_within_the_hub_alone(mirror: Server, tmp_path: Path) -> None:
    other = Server()
    try:
        other.files = {"/cdn": BODY}
        mirror.redirects = {f"/hf{PATH}": "/renamed", "/renamed": f"{other.url}/cdn"}
        entry(tmp_path, row(URL))
        assert download.pull("m")[0].read_bytes() == BODY
        assert tokens(mirror) == ["Bearer secret"] * 2
        assert tokens(other) == [None]
    finally:
        other.close()


def test_the_token_does_not_come_back_from_another_host(mirror: Server, tmp_path: Path) -> None:
    other = Server()
    try:
        mirror.files = {"/back": BODY}
        mirror.redirects = {f"/hf{PATH}": f"{other.url}/away"}
        other.redirects = {"/away": f"{mirror.url}/back"}
        entry(tmp_path, row(URL))
        download.pull("m")
        assert tokens(mirror) == ["Bearer secret", None]
    finally:
        other.close()


def test_other_addresses_get_neither_mirror_nor_token(mirror: Server, tmp_path: Path) -> None:
    other = Server()
    try:
        other.files = {"/w": BODY}
        entry(tmp_path, row(f"{other.url}/w"))
        download.pull("m")
        assert tokens(other) == [None]
        assert mirror.asked == []
    finally:
        other.close()


@pytest.mark.parametrize(
    ("endpoint", "url", "sent"),
    [
        ("", "https://huggingface.co/a", True),
        ("", "https://huggingface.co:443/a", True),
        ("", "http://huggingface.co/a", False),
        ("", "https://huggingface.co.evil.example/a", False),
        ("", "https://cdn.huggingface.co/a", False),
        ("http://mirror.example", "http://mirror.example/a", False),
        ("https://mirror.example/hf", "https://mirror.example/a", True),
        ("https://mirror.example", "https://huggingface.co/a", False),
    ],
)
def test_where_the_token_may_go(endpoint: str, url: str, sent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert (hub.authorization_for(url) == "Bearer secret") == sent


@pytest.mark.parametrize("endpoint", ["mirror.example", "ftp://mirror.example", "https://u:secret@mirror.example"])
def test_an_endpoint_that_is_no_address_is_named(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    entry(tmp_path, row(URL))
    with pytest.raises(ConfigError, match="HF_ENDPOINT: found") as caught:
        download.pull("m")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"])
def test_a_file_in_the_hub_s_cache_is_not_fetched_again(
    mirror: Server, home: Path, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = cache_file(tmp_path, BODY)
    monkeypatch.delenv("HF_HOME")
    if variable == "XDG_CACHE_HOME":
        (tmp_path / "hf").rename(tmp_path / "huggingface")
        blob = tmp_path / "huggingface" / blob.relative_to(tmp_path / "hf")
    values = {"HF_HOME": tmp_path / "hf", "HF_HUB_CACHE": tmp_path / "hf/hub", "XDG_CACHE_HOME": tmp_path}
    monkeypatch.setenv(variable, str(values[variable]))
    entry(tmp_path, row(URL))
    assert catalogue.download_of(["m"]).files == 0
    assert download.pull("m") == [home / "models/m/w.bin"]
    assert (home / "models/m/w.bin").resolve() == blob
    assert mirror.asked == []
    assert download.pull("m") == []


def test_the_cache_is_searched_for_the_very_file(mirror: Server, home: Path, tmp_path: Path) -> None:
    cache_file(tmp_path, BODY[::-1], "aaaa")  # the same size, another digest
    cache_file(tmp_path, BODY + b"more", "bbbb")
    mirror.files = {f"/hf{PATH}": BODY}
    entry(tmp_path, row(URL))
    assert not download.pull("m")[0].is_symlink()
    (home / "models/m/w.bin").unlink()
    right = cache_file(tmp_path, BODY, "cccc")
    assert download.pull("m")[0].resolve() == right
    assert len(mirror.asked) == 1


def test_without_a_recorded_digest_the_cache_is_not_used(mirror: Server, tmp_path: Path) -> None:
    cache_file(tmp_path, BODY)
    mirror.files = {f"/hf{PATH}": BODY}
    entry(tmp_path, row(URL, None))
    assert not download.pull("m")[0].is_symlink()


@pytest.mark.parametrize("path", ["/x/y/resolve/main/..%2F..%2Fw.bin", "/x/y/resolve/main/%2Fetc%2Fhosts", "/x/y"])
def test_addresses_do_not_lead_out_of_the_cache(path: str) -> None:
    assert list(hub.cached(hub.HUB + path, None)) == []


def test_size_time_and_licences_of_a_download(tmp_path: Path) -> None:
    entry(tmp_path, f'licence = "MIT"\n[[files]]\npath = "b"\nurl = "{URL}"\nbytes = 1500000000\n', "base")
    entry(tmp_path, f'licence = "BSD"\nneeds = ["base"]\n[[files]]\npath = "w"\nurl = "{URL}"\nbytes = 300000000\n')
    found = catalogue.download_of(["m", "base"])
    assert (found.files, found.bytes) == (2, 1_800_000_000)
    assert found.size == "2 files, 1.8 GB, 3 min at 10 MB/s"
    assert found.terms.startswith("licences: m BSD, base MIT (")
    assert found.command == "`sa models pull m base`"
    (catalogue.model_cache_dir("base")).mkdir(parents=True)
    (catalogue.model_cache_dir("base") / "b").write_bytes(b"here")
    assert catalogue.download_of(["m"]).size == "1 file, 300 MB, 1 min at 10 MB/s"


def test_sizes_that_are_not_recorded_are_stated_as_far_as_they_are_known(tmp_path: Path) -> None:
    unknown = f'[[files]]\npath = "c"\nurl = "{URL}"\n'
    known = f'[[files]]\npath = "w"\nurl = "{URL}"\nbytes = 300000000\n'
    entry(tmp_path, unknown)
    assert catalogue.download_of(["m"]).size == "1 file of unknown size"
    entry(tmp_path, unknown + known)
    found = catalogue.download_of(["m"])
    assert (found.bytes, found.known) == (None, 300_000_000)
    assert found.size == "2 files, at least 300 MB, 1 min at 10 MB/s"
    entry(tmp_path, f"total_gb = 82.3\n{unknown}{known}")
    assert catalogue.download_of(["m"]).size == "2 files, at least 82.3 GB, 137 min at 10 MB/s"
    (catalogue.model_cache_dir("m")).mkdir(parents=True)
    (catalogue.model_cache_dir("m") / "c").write_bytes(b"here")  # the total is that of all files
    assert catalogue.download_of(["m"]).size == "1 file, 300 MB, 1 min at 10 MB/s"
