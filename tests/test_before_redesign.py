"""Files that commit fdde7c9, the last before the redesign, wrote still open: clip folder, record, checkpoints.

``data/before_redesign.zip`` holds them: 4 frames of ``small`` at 128x128, finished (``out.mp4``) and stopped after 2 of
4 steps, and a LoRA training that was interrupted after 1 of 2 steps. Weights are left out: tests write those of
``small`` again, which are random numbers of a seed.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stableanimator_cli.animate import fingerprint, pipeline, replay
from stableanimator_cli.animate.run import run as animate
from stableanimator_cli.clip_folder import open_folder
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.engine import face_optimization
from stableanimator_cli.media import open_clip
from stableanimator_cli.train import run as train
from tests.animate.clips import Heard
from tests.conftest import ROOT
from tests.random_model import TINY, write_model

FILES = ROOT / "tests" / "data" / "before_redesign.zip"
FLAGS: dict[str, Any] = {
    "reference": Path("reference.png"), "motion": Path("clips/waving"), "model": "./small", "steps": 4, "frames": "0:4",
    "seed": 3, "refine_face": "full", "refine_iters": 1, "refine_steps": "0:3", "size": "128x128", "ff_pieces": 2,
    "guidance": 1.0, "guidance_interval": "off",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with zipfile.ZipFile(FILES) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "small", TINY, dtype=torch.float32)
    card = tmp_path / "small" / "model.toml"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace("\n[defaults]", 'needs = ["puppet"]\n\n[defaults]', 1), encoding="utf-8")
    return tmp_path


def frames(path: Path) -> np.ndarray:
    return np.stack([frame for _, frame in open_clip(path).frames()]).astype(np.int16)


def test_a_clip_folder_opens(folder: Path) -> None:
    clip = open_folder(folder / "clips" / "waving")
    assert (clip.frames, clip.size) == (6, (64, 64))
    assert clip.motion().keypoints.shape == (6, 1, 134, 3)
    assert np.isfinite(clip.faces().embeddings).all()


def test_a_record_is_replayed_with_the_present_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[AnimateConfig] = []

    def rendered(config: AnimateConfig, *_: Any, **__: Any) -> None:
        configs.append(config)
        shutil.copy(folder / "out.mp4", config.output)

    monkeypatch.setattr(pipeline, "run_pipeline", rendered)
    report = replay.replay(folder / "out.mp4")
    assert report.differences == ()
    config = configs[0]
    assert (config.device.ff_chunks, config.device.quantization) == (2, "plain")
    assert (config.refine.lr, config.refine.schedule, config.refine.gate_retries) == (0.1, "linear", 0)
    assert (config.refine.mask_dilation, config.refine.crop_margin) == (4, 8)


def test_an_interrupted_video_is_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = folder / ".interrupted.mp4.state"
    with safe_open(state, "pt") as file:
        facts = json.loads(file.metadata()["state"])["facts"]
    machine = {name: value for name, value in facts.items() if name == "device" or name.startswith("version of ")}
    monkeypatch.setattr(fingerprint, "machine", lambda device: machine)  # libraries of that time
    boxes = face_optimization.pixel_boxes  # rounded at that time, and truncated now, as in the reference implementation
    monkeypatch.setattr(face_optimization, "pixel_boxes", lambda found, size: boxes(np.round(found), size))
    heard = Heard()
    animate(flags=FLAGS | {"output": Path("interrupted.mp4")}, reporter=heard)
    assert any("resuming after 2 of 4 steps" in note for note in heard.notes)
    assert not state.exists()
    # Equal bytes on the machine that made the files. Other CPUs round otherwise, and face optimisation divides small
    # gradients by their size (docs/log.md, 2026-11-22): single pixels differ, not the image
    difference = np.abs(frames(folder / "interrupted.mp4") - frames(folder / "out.mp4"))
    assert difference.mean() < 1, np.percentile(difference, (50, 99, 100))
    assert np.percentile(difference, 99) <= 8


def test_an_interrupted_training_is_resumed(folder: Path) -> None:
    configs = json.loads(json.dumps(TINY))
    configs["unet"] |= {
        "block_out_channels": [32, 32], "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
    }  # fmt: skip
    configs["image_encoder"] |= {"hidden_size": 16, "intermediate_size": 16}
    write_model(folder / "mini", configs, dtype=torch.float32)
    for role in ("unet", "pose_net", "face_encoder"):
        shutil.copy(folder / "mini" / f"{role}.safetensors", folder / "run" / "checkpoints" / "step-1")
    report = train.run(flags={}, resumed=Path("run"))
    assert report is not None
    assert report.to_json()["steps"] == 2
    assert (folder / "run" / "model" / "state" / "progress.json").is_file()
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
