"""One stage of a training: its networks in memory and its batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.training import (
    StepInputs,
    TrainingSettings,
    export_tensors,
    frozen_tensors,
    open_training,
    step_inputs,
)
from stableanimator_cli.engine.training.batch import Batch
from stableanimator_cli.nets.lora import is_lora
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train.dataset import Dataset
from stableanimator_cli.train.loader import Loader, loader_settings

if TYPE_CHECKING:
    from accelerate import Accelerator


def training_settings(config: TrainConfig, stage: StageConfig) -> TrainingSettings:
    """The engine's settings of a stage."""
    ablation, memory = config.ablation, config.memory
    return TrainingSettings(
        **asdict(config.loss),
        train=stage.train,
        lora_rank=memory.lora_rank,
        face_encoder=ablation.face_encoder == "on",
        id_adapter=ablation.id_adapter,
        face=ablation.face == "on",
        checkpointing=memory.checkpointing,
        dtype=cast(Any, memory.dtype),
        image_only=stage.image_only,
        float32_frozen=len(config.stage or ()) > 1,  # another stage may train these weights
    )


def stage_seed(seed: int, stage: int) -> int:
    """The seed of stage number ``stage``: samples are numbered from 0 in each stage."""
    return int.from_bytes(hashlib.sha256(f"stage/{seed}/{stage}".encode()).digest()[:6], "little")


class TrainingStage:
    """Stage number ``index`` of ``config``, with its networks loaded. ``model(inputs(batch))`` is the loss, [b]."""

    def __init__(
        self, config: TrainConfig, index: int, model: ModelFolder, dataset: Dataset, accelerator: Accelerator
    ) -> None:
        self.config = stage = (config.stage or ())[index]
        self._base, self._initial_seed = model, config.seed
        self._seed = stage_seed(config.seed, index)
        self._parts = open_training(
            model,
            training_settings(config, stage),
            torch.device(accelerator.device),
            fresh=config.from_scratch or (),
            seed=config.seed,
        )
        self.model = self._parts.model
        self._loader = Loader(
            dataset,
            loader_settings(config, stage, dataset, model),
            seed=self._seed,
            batch=stage.batch,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=config.data.workers,
        )

    def stream(self, first: int, last: int) -> Iterator[Batch]:
        """This rank's share of the batches of the steps ``first:last``."""
        return self._loader.stream(first, last)

    def inputs(self, batch: Batch) -> StepInputs:
        return step_inputs(self._parts, batch, self._seed, self.config.batch)

    def export(self, trained: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
        """Weights by role: ``trained`` ones in ``dtype``, all others like in the files of the base model."""
        names = [name for name in self.model.state_dict() if name not in trained and not is_lora(name)]
        parts = self._parts
        frozen = frozen_tensors(self._base, parts.settings, names, fresh=parts.fresh, seed=self._initial_seed)
        return export_tensors(self.model, trained, frozen=frozen, dtype=dtype)
