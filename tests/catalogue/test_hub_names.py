"""Models by their names at the hub: the catalogue's entry, or a folder in the hub's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.errors import ModelMissing
from tests.tiny_wan import write_pipeline


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


def snapshot_of(tmp_path: Path, name: str, revision: str = "feed") -> Path:
    """A pipeline in diffusers' layout as the hub's library keeps it."""
    folder = tmp_path / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    return write_pipeline(folder / "snapshots" / revision)


def test_a_model_of_the_hub_opens_by_its_name(tmp_path: Path) -> None:
    """Before it is fetched it is the catalogue's entry with that source, then its folder in the hub's cache."""
    name = "Wan-AI/Wan2.2-Animate-14B-Diffusers"
    with pytest.raises(ModelMissing, match="lacks transformer") as caught:
        catalogue.open_animator(name)
    assert "`sa models pull wan-animate`" in str(caught.value.hint)
    assert catalogue.plan_model(name).name == "wan-animate"
    folder = snapshot_of(tmp_path, name)
    found = catalogue.open_animator(name)
    assert (found.name, found.path) == ("wan-animate", folder)
    assert found.files["transformer"] == folder / "transformer"


def test_any_owner_s_model_opens_from_the_hub_s_cache(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="no such model folder") as caught:
        catalogue.open_animator("somebody/finetuned")
    assert "hf download somebody/finetuned" in str(caught.value.hint)
    old = snapshot_of(tmp_path, "somebody/finetuned", "feed")
    assert catalogue.open_animator("somebody/finetuned").path == old
    new = snapshot_of(tmp_path, "somebody/finetuned", "beef")  # and main is now here
    assert catalogue.open_animator("somebody/finetuned").path == new


def test_a_folder_of_that_name_comes_before_the_hub_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot_of(tmp_path, "somebody/finetuned")
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "somebody" / "finetuned")
    assert catalogue.open_animator("somebody/finetuned").path == Path("somebody/finetuned")


def test_a_local_folder_that_does_not_exist_is_not_sought_at_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "model" / "model.toml").touch()
    (tmp_path / "runs" / "lost").symlink_to("away")
    for name, hint in (
        ("runs/nothing", "look with: ls runs"),
        ("runs/mina", "did you mean runs/mine/model?"),
        ("runs/mina/model", "did you mean runs/mine/model?"),
        ("runs/mine/modle", "did you mean runs/mine/model?"),
        ("run/mine/model", "did you mean runs/mine/model?"),
        ("other/mine/model", "the folder other does not exist either"),
        ("runs/lost", "it is a link to away, which leads to no folder: mend the link, or name another folder"),
    ):
        with pytest.raises(ModelMissing, match=f"^{name}: no such model folder$") as caught:
            catalogue.open_model(name)
        first, *others = str(caught.value.hint).splitlines()
        assert first == hint
        assert len(others) == 1
        assert others[0].startswith("known names: antelopev2, ")


def test_an_entry_of_a_folder_that_does_not_exist_is_no_name_of_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sa models show runs/mina`` listed the catalogue's names alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(ModelMissing, match=r"^runs/mina: no such model folder$") as caught:
        catalogue.load_entry("runs/mina")
    assert str(caught.value.hint).startswith("did you mean runs/mine?")
    with pytest.raises(ModelMissing, match=r"^runs/mine/model\.toml: not found$"):
        catalogue.load_entry("runs/mine")
    with pytest.raises(ModelMissing, match="no model named 'mina' in the catalogue"):
        catalogue.load_entry("mina")
