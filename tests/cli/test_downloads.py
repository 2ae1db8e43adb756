"""The offer to download what is missing: on a terminal alone, and the command continues with it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.cli import console
from stableanimator_cli.cli.downloads import with_download
from stableanimator_cli.errors import ModelMissing
from tests.catalogue.test_download import BODY, entry, home, row, server
from tests.model_server import Server

__all__ = ["home", "server"]  # fixtures that pytest uses by name


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def model(server: Server, tmp_path: Path) -> None:
    """A model ``m`` that may be downloaded."""
    server.files = {"/w": BODY}
    entry(tmp_path, 'licence = "MIT"\n' + row(f"{server.url}/w") + '[components.unet]\nfile = "w.bin"\n')


def terminal(monkeypatch: pytest.MonkeyPatch, answer: str = "y\n") -> Terminal:
    """Make input and messages those of a terminal; pytest's own replacements change between fixtures and tests."""
    stderr = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", stderr)
    return stderr


def work() -> str:
    return catalogue.open_model("m", ("unet",)).files["unet"].name


def test_yes_downloads_and_the_command_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    assert with_download(work, console.configure(progress="none"), yes=False) == "w.bin"
    shown = stderr.getvalue()
    assert "Download 1 file, 0 MB, 1 min at 10 MB/s, and continue? [y/N] " in shown
    assert "licences: m MIT" in shown
    assert "model 'm' lacks unet (m/w.bin)" in shown


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "maybe\n"])
def test_any_other_answer_is_no(server: Server, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, answer)
    with pytest.raises(ModelMissing, match="lacks unet"):
        with_download(work, console.configure(progress="none"), yes=False)
    assert server.asked == []


def test_the_flag_answers_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, "")
    assert with_download(work, console.configure(progress="none"), yes=True) == "w.bin"


def test_an_optional_file_that_is_needed_is_downloaded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the UNet of svd-xt, which only training reads."""
    server.files = {"/v": b"vae", "/u": b"unet"}
    rows = row(f"{server.url}/v", b"vae", "v.bin") + row(f"{server.url}/u", b"unet", "u.bin", "optional = true")
    entry(tmp_path, rows + '[components.unet]\nfile = "u.bin"\n[components.vae]\nfile = "v.bin"\n', "base")

    def work() -> Path:
        return catalogue.open_model("base", ("unet",)).files["unet"]

    with pytest.raises(ModelMissing) as caught:
        work()
    assert "download 2 files" in str(caught.value.hint)
    assert "`sa models pull base --all`" in str(caught.value.hint)
    stderr = terminal(monkeypatch)
    assert with_download(work, console.configure(progress="none"), yes=False).read_bytes() == b"unet"
    assert "Download 2 files, " in stderr.getvalue()


@pytest.mark.parametrize("case", ["stdin", "stderr", "json", "quiet", "ranks"])
def test_nothing_is_offered_without_a_terminal_or_to_programs(
    server: Server, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = terminal(monkeypatch)
    if case in ("stdin", "stderr"):
        monkeypatch.setattr(sys, case, io.StringIO("y\n"))
    if case == "ranks":
        for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
            monkeypatch.setenv(name, value)
    out = console.configure(json=case == "json", quiet=case == "quiet", progress="none")
    with pytest.raises(ModelMissing, match="lacks unet"):
        with_download(work, out, yes=True)
    assert "?" not in stderr.getvalue()
    assert server.asked == []


def test_what_no_download_mends_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)

    def lost() -> None:
        raise ModelMissing("no model named 'x' in the catalogue")

    with pytest.raises(ModelMissing):
        with_download(lost, console.configure(), yes=True)
    assert stderr.getvalue() == ""
