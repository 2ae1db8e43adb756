"""An interrupted run of several people is resumed only with the same people and faces."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.animate.checkpoint import Checkpoint, CheckpointManager, SamplingState
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.media import write_picture
from stableanimator_cli.progress import NullReporter


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for level, name in enumerate(("ref.png", "a.png", "b.png")):
        write_picture(tmp_path / name, np.full((64, 64, 3), 50 * level, np.uint8))
    (tmp_path / "m.npz").write_bytes(b"a motion")  # only its digest counts here
    return tmp_path


def opened(**people: Any) -> CheckpointManager:
    flags = {"reference": "ref.png", "motion": "m.npz", "output": "o.mp4", "device": "cpu", "size": "64x64", **people}
    config = resolve(AnimateConfig, flags)
    model = catalogue.open_animator("puppet")
    return CheckpointManager(config, model, DevicePlan.of(config.device), NullReporter())


def interrupted(**people: Any) -> None:
    state = SamplingState(latents=torch.zeros(2, 4, 8, 8), step=1)
    opened(**people).save(Checkpoint(state=state, calls=Counter()))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"pair": "0:1,1:0"}),
        ({"pair": "0:1,1:0"}, {"pair": "0:0,1:1"}),
        ({"pair": "none"}, {}),
        ({"person": "0,1"}, {"person": "1,0"}),
        ({"face_of": ["0=a.png"]}, {"face_of": ["1=a.png"]}),
        ({"face_of": ["0=a.png"]}, {"face_of": ["0=b.png"]}),
        ({"face_of": ["0=a.png", "1=b.png"]}, {"face_of": ["0=b.png", "1=a.png"]}),
        ({"face_of": ["0=a.png"]}, {}),
    ],
)
def test_other_people_or_faces_are_refused(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    interrupted(**before)
    with pytest.raises(ConfigError, match=r"--output: found 'o.mp4', expected the settings of the unfinished run"):
        opened(**now)
    assert opened(**before).restored is not None


def test_an_image_of_a_face_may_move(folder: Path) -> None:
    interrupted(face_of=["1=a.png"])
    shutil.move("a.png", "moved.png")
    assert opened(face_of=["1=moved.png"]).restored is not None
