"""Ours beside a clone: the same answers from the same weights, and folders that are none."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stableanimator_cli.bench import compare, compare_reference
from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.roofline import Roof
from stableanimator_cli.config.bench import BenchConfig
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.records import ModelFolder
from tests.bench.stand_in import write_clone
from tests.random_model import TINY
from tests.tiny import CPU


def tiny() -> ModelFolder:
    return replace(compare.model_to_compare("puppet"), configs=TINY, name="tiny")


def measured(folder: Path, python: Path | None = None):
    config = BenchConfig(
        names=("compare",),
        pairs=1,
        device="cpu",
        size=(64, 64),
        frames=2,
        steps=2,
        iterations=1,
        against=folder,
        python=python,
    )
    roofs = {torch.float32: Roof(torch.float32, 10.0, 10.0)}
    return compare.compare_networks(BenchRun(config=config, plan=CPU, roofs=roofs), tiny())


def test_both_sides_answer_alike(tmp_path: Path):
    clone = write_clone(tmp_path / "StableAnimator")
    before = sorted(clone.rglob("*"))
    table = measured(clone)
    names = ["Face Encoder", "PoseNet", "UNet with face and pose", "UNet, unconditional", "a guided step of one window"]
    names += ["a rendering", "decoding", "face optimisation, full"]
    names += [
        "face optimisation, full, no recomputation (theirs: recomputes)",
        "face optimisation, crop (theirs: full)",
    ]
    assert [row["what"] for row in table.rows] == names
    errors = {row["what"]: row["greatest error / greatest value"] for row in table.rows}
    assert max(errors[name] for name in names[:5] + names[6:7]) < 2e-5
    assert errors["a rendering"] < 1.1 * 0.5 / 255  # ours are levels of 255
    assert max(errors[name] for name in names[7:9]) < 1e-3
    for row in table.rows:  # weights are not counted
        assert 0 < row["ours, MiB alive"] <= row["theirs, MiB alive"] * 1.1 or row["what"] in names[-2:]
    full = next(row for row in table.rows if row["what"] == "face optimisation, full")
    assert full["ours, MiB alive"] < full["theirs, MiB alive"]
    assert all(row["ours, ms"] > 0 and row["theirs, ms"] > 0 for row in table.rows)
    assert "torch's scaled_dot_product_attention instead of xformers" in table.note
    assert "StableAnimator" in table.note
    assert str(tmp_path) not in table.note
    assert sorted(clone.rglob("*")) == before  # nothing is left in the clone


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"unet": "import os; os._exit(3)"}, r"its process ended at 'what it imports' \(exit code 3\)"),
        ({"id_encoder": "class Face: ..."}, "has no attribute 'FusionFaceId'"),
    ],
)
def test_a_clone_that_does_not_run_here(tmp_path: Path, changed: dict[str, str], what: str):
    with pytest.raises(BadInput, match=what) as told:
        measured(write_clone(tmp_path / "theirs", **changed))
    assert "--python" in str(told.value.hint)


def test_weights_that_theirs_does_not_have(tmp_path: Path):
    folder = write_clone(tmp_path / "theirs")
    file = folder / "animation/modules/pose_net.py"
    file.write_text(file.read_text().replace("self.scale", "self.factor"))
    with pytest.raises(BadInput, match=r"Missing key.*factor"):
        measured(folder)


def test_folders_that_are_no_clone(tmp_path: Path):
    with pytest.raises(BadInput, match="found no folder, expected a clone") as told:
        compare.check_clone(tmp_path / "nothing")
    assert "git clone" in str(told.value.hint)
    with pytest.raises(BadInput, match=r"found no animation/modules/unet\.py and 6 more missing"):
        compare.check_clone(tmp_path)
    clone = write_clone(tmp_path / "part")
    (clone / "animation/modules/id_encoder.py").unlink()
    with pytest.raises(BadInput, match=r"found no animation/modules/id_encoder\.py, expected"):
        compare.check_clone(clone)


def test_an_interpreter_that_is_not_there(tmp_path: Path):
    clone = write_clone(tmp_path / "theirs")
    with (
        pytest.raises(ConfigError, match="--python"),
        compare.start_clone(clone, tmp_path, tmp_path / "python"),
    ):
        pass
    with (
        pytest.raises(BadInput, match="FileNotFoundError"),  # no job lies there
        compare.start_clone(clone, tmp_path, Path(sys.executable)),
    ):
        pass


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_the_clone_runs_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, number: int):
    """``set_device`` of torch refuses a device without a number."""
    chosen: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(compare_reference, "provide_xformers", lambda: 1 / 0)  # the next thing that it does
    (tmp_path / "job.json").write_text(json.dumps({"device": device, "dtype": "float32", "threads": 1}))
    with pytest.raises(ZeroDivisionError):
        compare_reference.load_networks(tmp_path)
    assert chosen == [number]


def test_shapes_that_the_reference_has():
    assert compare.model_to_compare("full").configs["unet"]["block_out_channels"] == [320, 640, 1280, 1280]
    assert compare.model_to_compare("puppet").configs["unet"]["block_out_channels"] == [64, 128, 256, 256]
    with pytest.raises(ConfigError, match="--networks"):
        compare.model_to_compare("stableanimator")
