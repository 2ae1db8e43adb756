"""Trainings that are refused before anything is written: neither a run, which would be in the way, nor caches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.train import run


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
