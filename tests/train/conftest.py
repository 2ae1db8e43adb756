"""Clips that runs of ``sa train`` learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.clip_folders import write_clip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for index, frames in enumerate((4, 5)):
        write_clip(folder / f"clip{index}", frames)
    return folder
