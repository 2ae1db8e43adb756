"""A truth and predictions of it, drawn once; what is remembered of videos goes into a folder of the test run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluate.samples import changed, drawn, noisy, write


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two videos of two figures, 12 frames of 64x64."""
    folder = tmp_path_factory.mktemp("truth")
    for figure in range(2):
        write(folder / f"figure_{figure}.mp4", drawn(figure))
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, truth: Path) -> Path:
    """Predictions of them: the truth with noise, more in the second."""
    folder = tmp_path_factory.mktemp("made")
    for figure, amount in enumerate((4, 16)):
        changed(truth / f"figure_{figure}.mp4", folder / f"figure_{figure}.mp4", noisy(amount))
    return folder


@pytest.fixture(scope="session")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, remembered: Path) -> None:
    monkeypatch.setenv("SA_HOME", str(remembered))
    monkeypatch.delenv("SA_MODEL", raising=False)
