"""A stage with its networks and its batches: what the loop asks for, made of the engine's parts and the loader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.training import (
    TrainingSettings,
    export_tensors,
    frozen_tensors,
    open_training,
    step_inputs,
)
from stableanimator_cli.engine.training.batch import Batch
from stableanimator_cli.nets.lora import is_lora
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train.caching import loader_settings
from stableanimator_cli.train.dataset import Dataset
from stableanimator_cli.train.loader import Loader

if TYPE_CHECKING:
    from accelerate import Accelerator


def settings_of(config: TrainConfig, stage: StageConfig) -> TrainingSettings:
    """What the engine is to build for a stage."""
    loss, ablation, memory = config.loss, config.ablation, config.memory
    return TrainingSettings(
        train=stage.train,
        lora_rank=memory.lora_rank,
        face_mask=loss.face_mask,
        face_encoder=ablation.face_encoder == "on",
        id_adapter=ablation.id_adapter,
        face=ablation.face == "on",
        dropout=loss.dropout,
        dropout_prob=loss.dropout_prob,
        sigma=loss.sigma,
        sigma_mean=loss.sigma_mean,
        sigma_std=loss.sigma_std,
        noise_aug=loss.noise_aug,
        fps=loss.fps,
        motion_bucket=loss.motion_bucket,
        reference_degrade=loss.reference_degrade,
        checkpointing=memory.checkpointing,
        dtype=cast(Any, memory.dtype),
        image_only=stage.image_only,
        float32_frozen=len(config.stage or ()) > 1,  # what rests in one stage may learn in the next
    )


def seed_of(seed: int, stage: int) -> int:
    """Every stage draws its own numbers: samples are numbered from 0 in each."""
    return int.from_bytes(hashlib.sha256(f"stage/{seed}/{stage}".encode()).digest()[:6], "little")


class TrainingStage:
    """Stage number ``index`` of ``config``, open."""

    def __init__(
        self, config: TrainConfig, index: int, model: ModelFolder, dataset: Dataset, accelerator: Accelerator
    ) -> None:
        stage = (config.stage or ())[index]
        self.stage = stage
        self.source, self.initial_seed = model, config.seed
        self.seed = seed_of(config.seed, index)
        self.parts = open_training(
            model,
            settings_of(config, stage),
            torch.device(accelerator.device),
            fresh=config.from_scratch or (),
            seed=config.seed,
        )
        self.model: nn.Module = self.parts.model
        self.loader = Loader(
            dataset,
            loader_settings(config, stage, dataset, model),
            seed=self.seed,
            batch=stage.batch,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=config.data.workers,
        )

    def stream(self, first: int, last: int) -> Iterator[Batch]:
        return self.loader.stream(first, last)

    def inputs(self, batch: Batch) -> Any:
        return step_inputs(self.parts, batch, self.seed, self.stage.batch)

    def export(self, trained: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
        resting = [name for name in self.model.state_dict() if name not in trained and not is_lora(name)]
        frozen = frozen_tensors(
            self.source, self.parts.settings, resting, fresh=self.parts.fresh, seed=self.initial_seed
        )
        return export_tensors(self.model, trained, frozen=frozen, dtype=dtype)
