"""What an error advises where a model lacks a detector: the advice is followed here, and must help."""

from __future__ import annotations

from pathlib import Path

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.remedy import download_for, remedy
from stableanimator_cli.detect.roles import require_detectors
from stableanimator_cli.errors import ModelMissing
from stableanimator_cli.evaluate.detections import VideoDetector

CARD = 'name = "mine"\nsummary = "s"\ntask = "animate"\nlicence = "Apache-2.0"\nneeds = [{needs}]\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalogue, "check_size", lambda path, expected: None)
    return tmp_path / "home"


def folder(root: Path, *needs: str, more: str = "") -> Path:
    root.mkdir(exist_ok=True)
    (root / "model.toml").write_text(CARD.format(needs=", ".join(f'"{need}"' for need in needs)) + more)
    return root


def pull(name: str) -> None:
    """What a download of the catalogue leaves."""
    for row in catalogue.entry(name).files:
        path = catalogue.model_cache_dir(name) / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")


@pytest.mark.parametrize(("role", "provider"), [("face", "antelopev2"), ("pose_detector", "dwpose")])
def test_a_download_is_advised_where_it_helps(tmp_path: Path, role: str, provider: str) -> None:
    """A checkpoint needs its base by a path, which needs the detectors; a card without them is completed first."""
    base = folder(tmp_path / "base", provider)
    near = catalogue.open_model(folder(tmp_path / "near", str(base)))
    far = catalogue.open_model(folder(tmp_path / "far"))
    assert (download_for(near, role), remedy(near, role)) == (provider, f"`sa models pull {provider}`")
    advice = f'add "{provider}" to `needs` in {tmp_path}/far/model.toml and run `sa models pull {provider}`'
    assert (download_for(far, role), remedy(far, role)) == (None, advice)
    pull(provider)
    assert role in catalogue.open_model(near.path).files
    assert role not in catalogue.open_model(far.path).files
    folder(far.path, provider)
    assert role in catalogue.open_model(far.path).files


def test_files_of_an_own_detector_come_back_by_a_copy(tmp_path: Path) -> None:
    """Its component precedes those of ``needs``, so no download replaces it."""
    model = catalogue.open_model(folder(tmp_path / "own", "antelopev2", more='[components.face]\nfile = "face"\n'))
    assert remedy(model, "face") == f"copy {tmp_path}/own/face back to its place"
    pull("antelopev2")
    assert "face" not in catalogue.open_model(model.path).files


def test_no_download_is_offered_that_does_not_help(tmp_path: Path) -> None:
    far = catalogue.open_model(folder(tmp_path / "far"))
    with pytest.raises(ModelMissing) as caught:
        require_detectors(far)
    assert caught.value.downloads == ()
    assert 'add "dwpose" to `needs`' in str(caught.value.hint)
    with pytest.raises(ModelMissing) as caught:
        require_detectors(catalogue.open_model("stableanimator"))
    assert caught.value.downloads == ("dwpose",)


def test_what_helps_a_metric_without_its_detector(tmp_path: Path) -> None:
    far = VideoDetector(catalogue.open_model(folder(tmp_path / "far"))).unavailable
    assert far["faces"][1].startswith('add "antelopev2" to `needs`')
    assert far["points"][1].startswith('add "dwpose" to `needs`')
    near = VideoDetector(catalogue.open_model("stableanimator")).unavailable
    assert (near["faces"][1], near["points"][1]) == ("sa models pull antelopev2", "sa models pull dwpose")
