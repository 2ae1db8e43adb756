"""``SA_HOME`` that is none, models that cannot be read, and configs with wrong values: one clear line each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stableanimator_cli import catalogue, doctor
from stableanimator_cli.catalogue.configs import read_config
from stableanimator_cli.catalogue.download import pull
from stableanimator_cli.catalogue.register import import_folder
from stableanimator_cli.cli import command
from stableanimator_cli.cli.models import app
from stableanimator_cli.engine.weights import fill
from stableanimator_cli.errors import ConfigError, ModelDamaged, ModelMissing, SaError
from tests.catalogue.test_download import BODY, row, server
from tests.model_server import Server

__all__ = ["server"]  # a fixture that pytest uses by name


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SA_HOME", "home")
    monkeypatch.delenv("SA_MODEL", raising=False)
    return tmp_path


def _file() -> str:
    Path("file").write_text("x")
    return "file"


def _loop() -> str:
    Path("loop").symlink_to("loop")
    return "loop"


def _dangling() -> str:
    Path("link").symlink_to("nowhere")
    return "link"


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (_file, "it is a file"),
        (lambda: f"{_file()}/below", "not a directory"),
        (_loop, "too many levels of symbolic links"),
        (_dangling, "a link that leads nowhere"),
        (lambda: "h" * 300, "file name too long"),
        (lambda: "~no-such-user/models", "no such user"),
        (lambda: "/dev/null", "it is a file"),
    ],
)
def test_a_home_that_is_no_folder_is_reported_by_name(
    monkeypatch: pytest.MonkeyPatch, named: Callable[[], str], told: str
) -> None:
    monkeypatch.setenv("SA_HOME", named())
    for words in (["list"], ["pull", "i3d"], ["verify"], ["show", "i3d"]):
        error = CliRunner().invoke(app, words).exception
        assert isinstance(error, ConfigError)
        assert error.message.startswith("SA_HOME: found ")
        assert told in error.message
        assert len(error.message) < 300
    assert command.complete_model("pup") == []
    found = doctor.examine({"models": doctor.models, "disk": doctor.disk}).findings
    assert all(told in finding.found and finding.state == "broken" for finding in found)


def test_a_home_that_is_empty_relative_or_below_what_is_missing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert catalogue.cache_dir() == folder / "home"
    monkeypatch.setenv("SA_HOME", "a/b/c")
    (folder / "w").mkdir()
    (folder / "w/unet.pth").write_bytes(b"w")
    assert import_folder(folder / "w").taken[0].target == folder / "a/b/c/models/stableanimator/unet.pth"
    monkeypatch.setenv("SA_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    assert catalogue.cache_dir().parent in (folder / "cache", Path.home() / "Library" / "Caches")


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path, server: Server) -> None:
    (folder / "w").mkdir()
    (folder / "w/unet.pth").write_bytes(b"w")
    (folder / "home").mkdir()
    (folder / "home/models").write_text("a file")
    with pytest.raises(ModelMissing, match="home/models: it cannot be written") as caught:
        import_folder(folder / "w")
    assert "SA_HOME" in str(caught.value.hint)
    assert any("is not a folder" in finding.found for finding in doctor.models() if finding.state == "broken")
    (folder / "home/models").unlink()
    entry = folder / "home/models/m"
    entry.mkdir(parents=True)
    (entry / "model.toml").write_text(f'name = "m"\n{row(f"{server.url}/w")}', encoding="utf-8")
    server.files = {"/w": BODY}

    def refuse(path: Path, *rest: Any, **more: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelMissing, match="read-only file system"):
        pull("m")


JUNK = {
    "empty": b"",
    "words": b"{{{{",
    "bytes": bytes(range(128, 256)),
    "deep": b"a = " + b"[" * 5000 + b"]" * 5000,
    "digits": b'name = "digits"\n[[files]]\npath = "a"\nbytes = ' + b"9" * 5000,
    "sha": b'name = "sha"\n[[files]]\npath = "a"\nsha256 = 12345',
    "typed": b'name = "typed"\nlicence = 3',
    "escape": b'name = "escape"\nsummary = "\\u001b[31mred"',
    "long": b'name = "long"\n[components.unet]\nfile = "' + b"p" * 300 + b'"',
    "hidden": b'name = "hidden"\n[[files]]\npath = ".sa.part/x"',
    "other": b'name = "another"',
}


def test_entries_that_cannot_be_read_are_named_and_the_others_listed(folder: Path) -> None:
    for name, content in JUNK.items():
        place = folder / "home/models" / name / "model.toml"
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    done = CliRunner().invoke(app, ["list"])
    assert done.exit_code == 0
    assert "stableanimator" in done.stdout
    for name in JUNK:
        assert sum(f"models/{name}/model.toml" in line for line in done.stderr.splitlines()) == 1
    assert max(map(len, done.stderr.splitlines())) < 400 + len(str(folder))
    listed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert len(listed["damaged"]) == len(JUNK)
    done = CliRunner().invoke(app, ["verify"])
    assert isinstance(done.exception, ModelDamaged)
    assert f"({len(JUNK) - 1} more cannot be read either)" in done.exception.message
    assert all(f"models/{name}/" in done.stderr for name in JUNK)
    broken = [finding.found for finding in doctor.models() if finding.state == "broken"]
    assert all(any(f"models/{name}/" in line for line in broken) for name in JUNK)
    (folder / "w").mkdir()
    (folder / "w/unet.pth").write_bytes(b"w")
    assert import_folder(folder / "w").taken  # not stopped by what others left


def test_commands_of_doctor_name_one_path_whatever_is_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rm -r /data/my models/...` would delete another folder."""
    monkeypatch.setenv("SA_HOME", str(folder / "my home"))
    left = folder / "my home/models/.mine.part"
    left.mkdir(parents=True)
    assert f"rm -r '{left}'" in [finding.mend for finding in doctor.models()]


def test_doctor_names_what_interrupted_commands_left(folder: Path) -> None:
    models = folder / "home/models"
    for place in (".mine.part/model.toml", "half/unet.bin", "i3d/i3d_pretrained_400.pt.part"):
        (models / place).parent.mkdir(parents=True)
        (models / place).write_bytes(b"part")
    found = {finding.found: finding.mend for finding in doctor.models() if finding.state == "note"}
    assert found[f"{models}/.mine.part was left by an interrupted import"] == f"rm -r {models}/.mine.part"
    assert f"{models}/half holds files and no model.toml: no name opens them" in found
    part = f"{models}/i3d/i3d_pretrained_400.pt.part"
    assert found[f"{part}: 4 bytes of an interrupted download"] == "sa models pull i3d --all"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", -1), ("hidden_size", 1.5), ("hidden_size", "64"), ("hidden_size", True), ("hidden_size", []),
        ("num_hidden_layers", 10**9), ("layers_per_block", [1, [0]]), ("layers_per_block", [[[[1]]]]),
        ("block_out_channels", [1] * 100), ("block_out_channels", [64, "x"]), ("scaling_factor", 0),
        ("scaling_factor", "x"), ("force_upcast", 1), ("hidden_act", 3), ("down_block_types", [{}]),
    ],
)  # fmt: skip
def test_a_config_with_a_wrong_value_names_file_and_key(folder: Path, key: str, value: Any) -> None:
    (folder / "c.json").write_text(json.dumps({key: value, "_note": "x"}))
    with pytest.raises(ModelDamaged, match=rf"c\.json: '{key}': found .*, expected ") as caught:
        read_config(folder / "c.json")
    assert "compare the config" in str(caught.value.hint)


def test_configs_of_the_released_shapes_pass_and_keys_of_libraries_are_left_to_them(folder: Path) -> None:
    for name in catalogue.names():
        for component in catalogue.entry(name).components.values():
            if component.config is not None:
                assert read_config(catalogue.entry(name).folder / component.config)
    config = {"transformer_layers_per_block": [[1, 2], [1]], "sample_size": None, "dropout": -3, "_x": 1}
    (folder / "c.json").write_text(json.dumps(config))
    assert read_config(folder / "c.json") == {key: value for key, value in config.items() if key != "_x"}


@pytest.mark.parametrize("error", [ZeroDivisionError, AttributeError, OverflowError, AssertionError])
def test_whatever_a_library_raises_of_a_config_is_the_configs_fault(error: type[Exception]) -> None:
    def build() -> torch.nn.Module:
        raise error("of a value")

    with pytest.raises(SaError, match="describes no network that can be built"):
        fill(build, {}, torch.float32, Path("w.safetensors"))


def test_names_of_all_kinds_end_in_one_line(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for name in ("a\nb", "n" * 300, "x/" * 3000, "~nobody/x", "\udcff", "pipe", "/dev/zero", ".", "..", "/", ""):
        for verb in ("show", "pull", "verify", "import"):
            done = CliRunner().invoke(app, [verb, name])
            assert isinstance(done.exception, SaError | SystemExit), (verb, name, done.exception)
            assert done.exit_code != 0
            assert "\n" not in str(done.exception)
