"""``sa models``: stdout is data, the exit code says what happened, and the words help."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stableanimator_cli import catalogue
from stableanimator_cli.cli import console
from stableanimator_cli.cli.models import app
from stableanimator_cli.errors import ModelDamaged, ModelMissing

BODY = b"weights" * 1000


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    console.configure()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A catalogue of one entry whose file a server on the loopback has."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/w.bin").write_bytes(BODY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(BODY).hexdigest()
    (folder / "model.toml").write_text(
        'name = "tiny"\nsummary = "A small one"\nlicence = "research-only"\nlicence_note = "Not for shops."\n'
        '[components.unet]\nfile = "w.bin"\n'
        f'[[files]]\npath = "w.bin"\nurl = "http://127.0.0.1:{server.server_address[1]}/w.bin"\nsha256 = "{digest}"\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(catalogue, "builtin_dir", lambda: tmp_path / "models")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield digest
    server.shutdown()
    thread.join()
    server.server_close()


def sa(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_list_names_every_entry_on_stdout() -> None:
    result = sa("list")
    assert result.exit_code == 0
    for name in catalogue.names():
        assert name in result.stdout
    assert "research-only" in result.stdout
    assert "SA_HOME" in result.stderr
    listed = json.loads(sa("list", "--json").stdout)["models"]
    assert [m["name"] for m in listed] == catalogue.names()
    assert next(m for m in listed if m["name"] == "resnet3d")["bytes"] is None


def test_show_says_licence_files_and_what_is_unknown() -> None:
    result = sa("show", "stableanimator")
    assert "licence   Apache-2.0" in result.stdout
    assert "antelopev2 (research-only)" in result.stdout
    assert "guidance 3.0" in result.stdout
    result = sa("show", "resnet3d")
    assert "licence   unknown" in result.stdout
    assert "resnet-50-kinetics.pth  unknown  unknown  not here" in result.stdout
    shown = json.loads(sa("show", "dwpose", "--json").stdout)
    assert shown["files"][0]["bytes"] == 216746733


def test_pull_fetches_with_words_on_stderr_and_the_folder_on_stdout(tiny: str, home: Path) -> None:
    result = sa("pull", "tiny")
    assert result.exit_code == 0
    assert result.stdout == f"{home / 'models/tiny'}\n"
    assert "warning: tiny: licence research-only. Not for shops." in result.stderr
    assert "tiny/w.bin: 7000/7000 B" in result.stderr
    assert (home / "models/tiny/w.bin").read_bytes() == BODY
    again = sa("pull", "tiny", "--json", "--quiet")
    assert json.loads(again.stdout)["fetched"] == []
    assert again.stderr == ""


def test_verify(tiny: str, home: Path) -> None:
    assert "no files to verify" in sa("verify").stderr
    missing = sa("verify", "tiny")
    assert isinstance(missing.exception, ModelMissing)
    sa("pull", "tiny")
    good = sa("verify")
    assert good.exit_code == 0
    assert tiny in good.stdout
    assert json.loads(sa("verify", "tiny", "--json").stdout)["models"]["tiny"][0]["state"] == "ok"
    (home / "models/tiny/w.bin").write_bytes(BODY[::-1])
    bad = sa("verify", "tiny")
    assert isinstance(bad.exception, ModelDamaged)
    assert bad.exception.message == "tiny/w.bin: wrong digest"
    assert bad.exception.hint == "download it again: `sa models pull tiny`"
    assert "wrong digest" in bad.stdout


def test_import_says_what_was_taken_and_what_was_left(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "unet.pth").write_bytes(b"1")
    (folder / "other.pth").write_bytes(b"2")
    result = sa("import", str(folder))
    assert result.exit_code == 0
    assert "stableanimator  unet  linked" in result.stdout
    assert "left 1 file(s)" in result.stderr
    told = json.loads(sa("import", str(folder), "--json").stdout)
    assert told["taken"][0]["how"] == "already there"
    assert told["left"] == [str(folder / "other.pth")]
    assert sa("list").stdout.count("1 of 3") == 1


def test_a_wrong_name_is_answered_with_the_right_one() -> None:
    for verb in ("show", "pull", "verify"):
        result = sa(verb, "svdxt")
        assert isinstance(result.exception, ModelMissing)
        assert result.exception.hint == "did you mean svd-xt?"


def test_every_verb_opens_its_help_with_two_lines_that_run() -> None:
    for verb in ("list", "show", "pull", "verify", "import"):
        text = sa(verb, "--help").stdout
        assert text.count(f"sa models {verb}") >= 2


def test_the_folder_that_pull_prints_exists(tmp_path: Path) -> None:
    result = sa("pull", "puppet")  # complete in the program's catalogue: nothing is written to the cache
    assert result.exit_code == 0
    assert Path(result.stdout.strip()) == catalogue.builtin_dir() / "puppet"


def test_the_hint_for_a_damaged_folder_of_ones_own_is_no_download(tmp_path: Path) -> None:
    mine = Path(shutil.copytree(catalogue.builtin_dir() / "puppet", tmp_path / "mine"))
    (mine / "vae.safetensors").write_bytes(b"half")
    result = sa("verify", str(mine))
    assert isinstance(result.exception, ModelDamaged)
    assert result.exception.hint == "copy it again from where its folder comes from"
    (mine / "vae.safetensors").unlink()
    result = sa("verify", str(mine))
    assert isinstance(result.exception, ModelMissing)
    assert result.exception.hint == "copy it again from where its folder comes from"
