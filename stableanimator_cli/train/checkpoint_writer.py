"""Write checkpoints when they are due, validate them and delete old ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stableanimator_cli.config.animate import SamplingConfig
from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.training import export_configs
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train import base_model, checkpoint, resume
from stableanimator_cli.train.checkpoint import State, TrainPosition
from stableanimator_cli.train.curves import CURVES, draw_curves
from stableanimator_cli.train.dataset import Dataset
from stableanimator_cli.train.metrics_log import read_metrics
from stableanimator_cli.train.stage import training_settings
from stableanimator_cli.train.validation import validate

Scores = dict[str, float | None]
"""``csim`` and ``keypoint_error`` of a validation, for the metrics."""


class CheckpointWriter:
    """Checkpoints of one run. ``needs`` is the base model as seen from a checkpoint, ``dataset`` a digest,
    ``base`` those of its networks by role.

    ``held_out`` are the clips of validation, None without.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelFolder,
        needs: str,
        dataset: str,
        base: Mapping[str, str],
        held_out: Dataset | None,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.config, self.model, self.needs, self.dataset = config, model, needs, dataset
        self.base = base
        self.held_out, self.device, self.reporter = held_out, device, reporter
        self.total = sum(stage.steps or 0 for stage in config.stage or ())

    def is_due(self, position: TrainPosition, stage_ends: bool) -> bool:
        """Whether to save: every ``saving.every`` steps, at the end of a stage, and for a validation."""
        return stage_ends or self._validates(position) or position.step % self.config.saving.every == 0

    def _stage(self, position: TrainPosition) -> StageConfig:
        return (self.config.stage or ())[position.stage]

    def _validates(self, position: TrainPosition) -> bool:
        """Every ``validation.every`` steps and at the end, except in image-only stages."""
        due = position.step % self.config.validation.every == 0 or position.step == self.total
        return self.held_out is not None and due and not self._stage(position).image_only

    def save(self, tensors: Mapping[str, Mapping[str, Tensor]], state: State) -> Scores | None:
        """Write a checkpoint, validate it if due, and delete old ones. Returns the scores, None without validation."""
        config, stage, step = self.config, self._stage(state.position), state.position.step
        folder = checkpoint.save(
            config.output,
            tensors,
            state,
            config=resume.as_json(config),
            dataset=self.dataset,
            base=self.base,
            network_configs=export_configs(self.model, training_settings(config, stage)),
            model_toml=partial(
                base_model.model_toml,
                name=base_model.plain_name(f"{base_model.plain_name(config.output.resolve().name)}-step-{step}"),
                summary=f"{self.model.name}, trained {step} steps",
                model=self.model,
                needs=[self.needs],
                defaults=_defaults(config, self.model),
                training=_training_table(config, stage, state.position),
            ),
        )
        scores = self._validate(state.position, folder)
        checkpoint.prune(config.output, config.saving.keep)
        draw_curves(read_metrics(config.output), config.output / CURVES)
        return scores

    def complete(self, position: TrainPosition, folder: Path) -> Scores | None:
        """Do what follows the last checkpoint of a killed run: validate it, and delete old ones."""
        rows = [row for row in checkpoint.read_scores(self.config.output) if row["step"] == position.step]
        scores = _scores(rows[-1]) if rows else self._validate(position, folder)
        checkpoint.prune(self.config.output, self.config.saving.keep)
        return scores

    def _validate(self, position: TrainPosition, folder: Path) -> Scores | None:
        if self.held_out is None or not self._validates(position):
            return None
        step, reporter = position.step, self.reporter
        row = validate(self.config, self._stage(position), folder, step, self.held_out, self.device, reporter)
        scores = _scores(row)
        csim, error = ("none" if value is None else f"{value:.3f}" for value in scores.values())
        reporter.info(f"step {step}: csim {csim}, keypoint error {error} of the image's longer side")
        if row["score"] is None:
            reporter.warning(f"step {step}: validation measured nothing, so this checkpoint is not deleted")
        elif row["absent"]:
            reporter.warning(f"step {step}: no frame shows a person and a face; the checkpoint ranks last")
        return scores


def _scores(row: Mapping[str, Any]) -> Scores:
    return {name: row.get(name) for name in ("csim", "keypoint_error")}


def _defaults(config: TrainConfig, model: ModelFolder) -> dict[str, Any]:
    """``[defaults]`` of ``model.toml``: how the face is joined, and conditioning inputs other than the base model's."""
    loss, usual = config.loss, SamplingConfig()
    inputs = {"noise_aug": loss.noise_aug, "motion_bucket": loss.motion_bucket, "conditioning_fps": loss.fps}
    changed = {
        name: value
        for name, value in inputs.items()
        if value != model.defaults.get(name, getattr(usual, name)) and f"sampling.{name}" not in model.facts.refused
    }
    return {"id_adapter": config.ablation.id_adapter, **changed}


def _training_table(config: TrainConfig, stage: StageConfig, position: TrainPosition) -> dict[str, Any]:
    """``[training]`` of ``model.toml``: how the weights were trained, ablations included."""
    ablation = config.ablation
    return {
        "recipe": config.preset or "own",
        "steps": position.step,
        "samples": position.samples,
        "stage": stage.name,
        "train": stage.train,
        "seed": config.seed,
        "face_mask": config.loss.face_mask,
        "face_encoder": ablation.face_encoder,
        "id_adapter": ablation.id_adapter,
        "face": ablation.face,
        "ema": config.optimizer.ema,
    }
