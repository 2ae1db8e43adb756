"""Estimate the cost of a training before anything is loaded: memory, steps and time."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.parse import dump_size
from stableanimator_cli.config.schema import to_toml
from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.device import DTYPES, DevicePlan
from stableanimator_cli.engine.memory.profile import FlopCounter
from stableanimator_cli.engine.memory.train import FASTEST_FIRST, choose, predict
from stableanimator_cli.engine.throughput import MATRIX_TIME, throughput
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train.buckets import used_sizes
from stableanimator_cli.train.dataset import Dataset
from stableanimator_cli.train.optimizer import build_optimizer
from stableanimator_cli.train.stage import training_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """The result of ``--plan``."""

    data: Mapping[str, Any]

    @classmethod
    def of(cls, config: TrainConfig, model: ModelFolder, dataset: Dataset, *, ranks: int = 1) -> TrainPlan:
        """Estimate each stage at its largest size that has clips: its memory, and its FLOPs at the speed of its largest
        operators on this device."""
        plan = DevicePlan.of(DeviceConfig(device=config.device))
        people = config.data.people if dataset.several else 1
        stages = (replace(stage, sizes=used_sizes(dataset.clips, stage.sizes or ())) for stage in config.stage or ())
        rows = [_row(config, stage, model, ranks, people, plan.device) for stage in stages]
        return cls(
            data={
                "model": model.name,
                "device": str(plan.device),
                "clips": len(dataset.clips),
                "frames": dataset.frames,
                "stages": rows,
                "steps": sum(row["steps"] for row in rows),
                "hours": sum(row["hours"] for row in rows),
                "peak_bytes": max(row["bytes"] for row in rows),
                "config": tomllib.loads(to_toml(config)),
            }
        )

    def to_json(self) -> dict[str, Any]:
        return dict(self.data)

    def summary(self) -> str:
        data = self.data
        lines = [
            f"model      {data['model']} on {data['device']}",
            f"dataset    {data['clips']} clips, {data['frames']} frames",
        ]
        for row in data["stages"]:
            lines.append(
                f"stage      {row['name']}: {row['steps']} steps of {row['batch']} x {row['frames']} frames"
                f"{' of up to ' + row['largest_size'] if row['sizes'] > 1 else ''}, "
                f"{row['train']}, about {_hours(row['hours'])}"
            )
            lines.append(f"memory     {row['memory']}")
        return "\n".join([*lines, f"total      {data['steps']} steps, about {_hours(data['hours'])} (an estimate)"])


def fit_to_limit(config: TrainConfig, model: ModelFolder, *, ranks: int) -> TrainConfig:
    """``--max-memory``: choose checkpointing and micro-batch so that every stage fits. Raises ``OutOfMemory``."""
    limit = config.memory.max_memory
    if limit is None:
        return config
    on_cpu = DevicePlan.of(DeviceConfig(device=config.device)).device.type == "cpu"
    plans = [
        choose(
            limit,
            model,
            training_settings(config, stage),
            batch=stage.batch // ranks,
            on_cpu=on_cpu,
            **_workload(config, stage, ranks, config.data.people),
        )
        for stage in config.stage or ()
    ]
    checkpointing = max((plan.settings.checkpointing for plan in plans), key=FASTEST_FIRST.index)
    micro_batch = min(plan.micro_batch for plan in plans)
    return replace(config, memory=replace(config.memory, checkpointing=checkpointing, micro_batch=micro_batch))


def _workload(config: TrainConfig, stage: StageConfig, ranks: int, people: int) -> dict[str, Any]:
    """Arguments of ``engine.memory.train.predict`` for the largest size of a stage, of samples of ``people``."""
    data = config.data
    return {
        "size": max(stage.sizes or (), key=lambda size: size[0] * size[1]),
        "frames": stage.frames,
        "people": people,
        "cached": data.cache is not None and data.reads("latents") and data.reads("embeddings"),
        "ema": config.optimizer.ema > 0,
        "ranks": ranks,
        "sharded": config.memory.sharding == "full",
        "optimizer": functools.partial(build_optimizer, config.optimizer, 0.0),
    }


def _row(
    config: TrainConfig, stage: StageConfig, model: ModelFolder, ranks: int, people: int, device: torch.device
) -> dict[str, Any]:
    micro_batch = min(config.memory.micro_batch or stage.batch, max(1, stage.batch // ranks))
    settings, on_cpu = training_settings(config, stage), device.type == "cpu"
    with FlopCounter() as counter:
        workload = _workload(config, stage, ranks, people)
        memory = predict(model, settings, micro_batch=micro_batch, on_cpu=on_cpu, **workload)
    steps = stage.steps or 0
    work = counter.total * (stage.batch / ranks / micro_batch)
    dtype = DTYPES[config.memory.dtype]
    speed = throughput(counter.calls, device, dtype).flops_per_second
    return {
        "name": stage.name,
        "steps": steps,
        "batch": stage.batch,
        "frames": stage.frames,
        "sizes": len(stage.sizes or ()),
        "largest_size": dump_size(workload["size"]),
        "train": stage.train,
        "bytes": memory.total,
        "memory": memory.describe(),
        "flops_a_step": work,
        "flops_per_second": speed,
        "hours": steps * work / (speed * MATRIX_TIME) / 3600,
    }


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"
