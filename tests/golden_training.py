"""Three recorded training steps, from files to a file: what ``python -m tests.regen training`` records.

A tiny network with documented weights learns from two clips of the reference implementation's layout. Recorded are the
inputs of each step, losses, gradient norms, the optimiser's moments, and how far weights, average and the checkpoint's
tensors are from where they began: numbers that rounding moves little, so the recording holds on every machine within
the tolerances of ``test_golden_training``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from stableanimator_cli.clip_folder import FACES, FaceTable, save_faces
from stableanimator_cli.engine.training.model import StepInputs
from stableanimator_cli.media import write_image
from stableanimator_cli.records import Face
from stableanimator_cli.train import checkpoint, run
from stableanimator_cli.train.metrics_log import read_metrics
from stableanimator_cli.train.stage import TrainingStage
from tests.random_model import TINY, write_model
from tests.train.clip_folders import SIZE, write_upstream

STEPS, BATCH, CLIP_NORM, DECAY = 3, 2, 0.5, 0.9
ROLES = ("unet", "pose_net", "face_encoder")
SHOWN = ("latents", "noise", "reference", "image", "face", "poses", "mask", "time_ids")
_RECIPE = f"""
[loss]
dropout_share = 0.2
[optimizer]
ema = {DECAY}
clip = {CLIP_NORM}
"""


def write_clips(folder: Path) -> Path:
    """Two clips of coloured noise with a face in each frame: no codec, so the pixels are the same everywhere."""
    for clip in range(2):
        path = write_upstream(folder / "rec" / f"{clip:05d}", 6)
        generator = np.random.default_rng(clip)
        found = []
        for frame, file in enumerate(sorted((path / "images").iterdir())):
            coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            write_image(file, np.ascontiguousarray(coarse.repeat(SIZE[0] // 8, 0).repeat(SIZE[1] // 8, 1)))
            vector = generator.standard_normal(512).astype(np.float32)
            box = np.array([16, 8, 40, 32], np.float32)
            found.append((frame, 0, Face(box=box, landmarks=np.zeros((5, 2)), score=0.9, embedding=vector)))
        save_faces(path / FACES, FaceTable.of(found, "bgr"))
    return folder


def run_steps(folder: Path) -> tuple[Path, list[StepInputs]]:
    """The run folder, and the inputs of every step."""
    torch.set_num_threads(1)
    model = folder / "tiny"
    write_model(model, TINY, dtype=torch.float32)
    recipe = folder / "recipe.toml"
    recipe.write_text(_RECIPE)
    seen: list[StepInputs] = []
    inputs = TrainingStage.inputs

    def watched(self: TrainingStage, batch: Any) -> Any:
        seen.append(inputs(self, batch))
        return seen[-1]

    TrainingStage.inputs = watched
    try:
        run.run(
            flags={
                "dataset": [write_clips(folder / "data")], "model": str(model), "output": folder / "run", "seed": 6,
                "steps": STEPS, "frames": 2, "batch": BATCH, "stride": 1, "warmup": 0, "rate": 1e-3, "workers": 0,
                "train": "attentions", "device": "cpu", "dtype": "float32", "checkpointing": "off", "save_every": 1,
                "keep": STEPS, "cache": "off",
            },
            config_file=recipe,
        )  # fmt: skip
    finally:
        TrainingStage.inputs = inputs
    return folder / "run", seen


def record(run_folder: Path, seen: list[StepInputs]) -> dict[str, Any]:
    """The recording: numbers by step, and of the last checkpoint by role."""
    rows = read_metrics(run_folder)
    steps = []
    for row, inputs in zip(rows, seen, strict=True):
        steps.append(
            {
                "loss": row["loss"],
                "gradient": row["gradient"],
                "sigma": inputs.sigma.tolist(),
                "keep": {name: getattr(inputs, f"keep_{name}").tolist() for name in ("image", "reference", "face")},
                "inputs": {name: _shape_of(getattr(inputs, name)) for name in SHOWN},
            }
        )
    return {"steps": steps, "checkpoints": [_checkpoint(run_folder, step) for step in range(1, STEPS + 1)]}


def _checkpoint(run_folder: Path, step: int) -> dict[str, Any]:
    folder = run_folder / "checkpoints" / f"step-{step}"
    state = checkpoint.read_state(folder)
    start = {role: load_file(run_folder.parent / "tiny" / f"{role}.safetensors") for role in ROLES}
    files = {role: load_file(folder / f"{role}.safetensors") for role in ROLES}
    moved: dict[str, Any] = {}
    for role in ROLES:
        names = [name for name in start[role] if f"{role}.{name}" in state.weights]
        at = {
            "weights": [state.weights[f"{role}.{name}"] for name in names],
            "average": [state.average[f"{role}.{name}"] for name in names],
            "file": [files[role][name] for name in names],
        }
        base = [start[role][name] for name in names]
        moved[role] = {key: distance(value, base) for key, value in at.items()}
    moments = list(state.optimizer["state"].values())
    return {
        "moved": moved,
        "first_moment": norm([value["exp_avg"] for value in moments]),
        "second_moment": sum(float(value["exp_avg_sq"].double().sum()) for value in moments),
    }


def norm(tensors: list[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    return norm([a.double() - b.double() for a, b in zip(left, right, strict=True)])


def _shape_of(tensor: Tensor) -> list[float]:
    """Mean, deviation, and four numbers of each sample, spread over it."""
    flat = tensor.double().flatten(1)
    picks = torch.linspace(0, flat.shape[1] - 1, 4).long()
    return [*flat.mean(1).tolist(), *flat.std(1).tolist(), *flat[:, picks].flatten().tolist()]
