"""Estimate the device memory of a training before anything is loaded, for ``--plan`` and ``--max-memory``.

Weights and EMA follow from the number of parameters. Activations and the optimiser are counted, not modelled: the
module runs forward and backward, and the optimiser steps, on the ``meta`` device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from stableanimator_cli.engine.backbones import backbone_of
from stableanimator_cli.engine.device import DTYPES
from stableanimator_cli.engine.group_offload import bytes_of
from stableanimator_cli.engine.memory.train_step import BuildOptimizer, meta_step_bytes, optimizer_bytes
from stableanimator_cli.engine.training.fsdp import units
from stableanimator_cli.engine.training.model import TrainingModel, TrainingSettings
from stableanimator_cli.engine.training.trainable import with_lora
from stableanimator_cli.engine.weights import build_on_meta, builders
from stableanimator_cli.errors import OutOfMemory
from stableanimator_cli.nets.unet_blocks import Checkpointing
from stableanimator_cli.records import ModelFolder

FRAGMENTED = 0.06  # of the total: fragmentation of torch's allocator
CONTEXT = 600 << 20  # the CUDA context and workspaces of libraries
FASTEST_FIRST: tuple[Checkpointing, ...] = ("off", "diffusers", "blocks")  # 1, 1.2 and 1.3 times the compute


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes on one device.

    ``weights``, trained and frozen; ``optimizer``, its state; ``average`` (EMA); ``encoders`` (VAE and image
    encoder unless cached); ``step``: peak of gradients, casts and activations; ``reserve`` for allocator and CUDA.
    """

    settings: TrainingSettings
    micro_batch: int
    weights: int
    optimizer: int
    average: int
    encoders: int
    step: int
    reserve: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.average + self.encoders + self.step + self.reserve

    def describe(self) -> str:
        """One line with the total and its parts, in GiB or MiB."""
        parts = {
            "weights": self.weights,
            "optimiser": self.optimizer,
            "average": self.average,
            "encoders": self.encoders,
            "step": self.step,
            "reserve": self.reserve,
        }
        named = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        how = f"checkpointing {self.settings.checkpointing}, {self.settings.dtype}, micro-batch {self.micro_batch}"
        return f"{format_bytes(self.total)} ({named}) with {how}"


def predict(
    model: ModelFolder,
    settings: TrainingSettings,
    *,
    size: tuple[int, int],
    frames: int,
    micro_batch: int = 1,
    people: int = 1,
    cached: bool = True,
    ema: bool = False,
    ranks: int = 1,
    sharded: bool = False,
    on_cpu: bool = False,
    optimizer: BuildOptimizer | None = None,
) -> MemoryPlan:
    """Memory on each of ``ranks`` devices to train ``micro_batch`` samples of ``frames`` at ``size`` (width, height).

    ``people``: the most of a sample that have a face vector and a region of their own.

    With DDP each rank holds everything, and buckets hold the gradients once more. ``sharded`` ranks hold a shard and
    what ``fsdp`` gathers: parameters outside units, and for the largest unit its weights twice (prefetching) and its
    gradients. ``optimizer`` builds it for parameters, AdamW if None. Only configs are read; fused attention is assumed;
    ``on_cpu`` leaves out the CUDA context.
    """
    network = meta_model(model, settings)
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    learning = sum(parameter.numel() for parameter in learned)
    gradients = 4 * learning
    shards = ranks if sharded else 1
    full = bytes_of(network)
    update = optimizer_bytes(learned, optimizer or torch.optim.AdamW, multi_tensor=not on_cpu)
    weights, state, average = (part // shards for part in (full, update.state, 4 * learning * ema))
    step = meta_step_bytes(network, micro_batch, frames, size, people=people, sharded=sharded)
    if sharded:
        in_units = [bytes_of(unit) for unit in units(network)]
        step += gradients // shards + full - sum(in_units) + 3 * max(in_units)
    step = max(step, (gradients + update.step) // shards)
    if sharded:
        step = max(step, full - weights - state - average)  # each rank loads the full model before sharding
    elif ranks > 1:
        step += gradients
    encoders = 0 if cached else _encoders(model, settings)
    used = weights + state + average + encoders + step
    return MemoryPlan(
        settings=settings,
        micro_batch=micro_batch,
        weights=weights,
        optimizer=state,
        average=average,
        encoders=encoders,
        step=step,
        reserve=int(FRAGMENTED * used) + (0 if on_cpu else CONTEXT),
    )


def choose(
    limit: int, model: ModelFolder, settings: TrainingSettings, *, batch: int = 1, cached: bool = True, **workload: Any
) -> MemoryPlan:
    """The fastest way to run the same training in ``limit`` bytes; ``workload`` are other arguments of ``predict``.

    Only checkpointing and the micro-batch change, a divisor of this rank's ``batch``. Accumulation is cheap while
    checkpointing costs a third of the time, so a smaller micro-batch comes first. Raises ``OutOfMemory`` with the
    minimum and the settings that need less.
    """

    def plan_for(checkpointing: Checkpointing, micro_batch: int) -> MemoryPlan:
        changed = replace(settings, checkpointing=checkpointing)
        return predict(model, changed, micro_batch=micro_batch, cached=cached, **workload)

    plans = []
    for checkpointing in FASTEST_FIRST:
        one = plan_for(checkpointing, 1)
        if one.total <= limit:
            # n samples need at most n times the step of one: its gradients and casts exist once
            step = one.step * (1 + FRAGMENTED)
            micro = max(n for n in range(1, batch + 1) if batch % n == 0 and one.total + (n - 1) * step <= limit)
            return one if micro == 1 else plan_for(checkpointing, micro)
        plans.append(one)
    minimum = min(plans, key=lambda plan: plan.total)
    raise OutOfMemory(
        f"training needs at least {minimum.describe()}; {format_bytes(limit)} were given",
        hint=_how_to_save(settings, cached=cached),
    )


def format_bytes(size: int) -> str:
    """Bytes in GiB, or in MiB below one GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _how_to_save(settings: TrainingSettings, *, cached: bool) -> str:
    """Options that need less memory, the most effective first."""
    ways = ["a smaller --sizes or fewer --frames"]
    if not cached:
        ways.insert(0, "--cache latents,embeddings")
    if settings.train in ("all", "attentions"):
        ways.insert(0, "--train adapters or --train lora")
    if settings.dtype == "float32":
        ways.insert(0, "--dtype bfloat16")
    return "; ".join(ways)


def meta_model(model: ModelFolder, settings: TrainingSettings) -> TrainingModel:
    """The module that would be trained, on the ``meta`` device."""
    configs = model.configs
    if not settings.face_encoder:
        configs = {**configs, "face_encoder": {**configs.get("face_encoder", {}), "fusion": False}}
    build = builders(replace(model, configs=configs), settings.id_adapter)
    networks = {role: build_on_meta(build[role]) for role in ("unet", "pose_net", "face_encoder")}
    if settings.train == "lora":
        with_lora(networks["unet"], settings.lora_rank, (), seed=0)
    return TrainingModel(**networks, settings=settings, backbone=backbone_of(model)).train()


def _encoders(model: ModelFolder, settings: TrainingSettings) -> int:
    """Weights of VAE and image encoder; their activations are freed before the step."""
    build: Mapping[str, Callable[[], nn.Module]] = builders(model, "distribution")
    width = DTYPES["bfloat16" if settings.dtype == "bfloat16" else "float32"].itemsize
    return sum(
        width * sum(p.numel() for p in build_on_meta(build[role]).parameters()) for role in ("vae", "image_encoder")
    )
