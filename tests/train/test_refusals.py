"""Trainings that are refused before anything is written: neither a run, which would be in the way, nor caches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.errors import BadInput, ConfigError, NoFace
from stableanimator_cli.train import run
from tests.train.clip_folders import write_clip, write_upstream


def refused(kind: type[Exception], match: str, data: Path, model: Path, out: Path, **more: Any) -> None:
    """``more`` are flags of a training that raises ``kind`` and writes no file."""
    given = {
        "dataset": [data], "model": str(model), "output": out, "steps": 1, "frames": 1, "batch": 2, "workers": 0,
        "device": "cpu", "cache": "latents,embeddings",
    }  # fmt: skip
    before = sorted(data.rglob("*"))
    with pytest.raises(kind, match=match):
        run.run(flags=given | more)
    assert not out.exists()
    assert sorted(data.rglob("*")) == before


def test_low_rank_updates_of_random_networks(data, tiny_model, tmp_path):
    clips = shutil.copytree(data, tmp_path / "clips")
    given = {"train": "lora", "from_scratch": "pose_net"}
    refused(ConfigError, "--train: found 'lora', expected a model with pose_net", clips, tiny_model, tmp_path / "run",
            **given)  # fmt: skip
    with pytest.raises(ConfigError, match="expected a model with pose_net"):
        run.run(flags={"dataset": [data], "model": str(tiny_model), "output": tmp_path / "run", "steps": 1, **given},
                plan_only=True)  # fmt: skip


def test_clips_without_a_face(tiny_model, tmp_path):
    write_clip(tmp_path / "clips" / "clip", 4, faces=())
    refused(NoFace, "none of the 1 clips", tmp_path / "clips", tiny_model, tmp_path / "run")
    write_upstream(tmp_path / "rec" / "clip", 4)  # whose faces this model cannot detect
    refused(NoFace, "none of the 1 clips .* has no face detector", tmp_path / "rec", tiny_model, tmp_path / "run")


def test_validation_without_clips(data, tiny_model, tmp_path):
    clips, empty = shutil.copytree(data, tmp_path / "clips"), tmp_path / "empty"
    empty.mkdir()
    refused(BadInput, "empty: found no clips", clips, tiny_model, tmp_path / "run", validate=[empty])


def test_clips_of_another_channel_order(data, upstream_model, tmp_path):
    """A model in the reference implementation's layout gets a folder ``RUN/base``."""
    refused(BadInput, "face embeddings of bgr images", shutil.copytree(data, tmp_path / "clips"), upstream_model,
            tmp_path / "run")  # fmt: skip
