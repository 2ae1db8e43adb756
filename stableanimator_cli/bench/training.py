"""Training steps with and without caches, and with each kind of checkpointing, on drawn figures."""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stableanimator_cli.bench.context import BenchRun, ClipShape
from stableanimator_cli.bench.counters import count_all, count_flops
from stableanimator_cli.bench.networks import FULL, load_network, open_bench_model
from stableanimator_cli.bench.results import Table
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.config.train import StageConfig, TrainConfig, preset_tables
from stableanimator_cli.engine.device import DevicePlan, Networks, dtype_name, memory_guard
from stableanimator_cli.engine.memory.profile import FlopCounter
from stableanimator_cli.engine.memory.train import meta_model, predict
from stableanimator_cli.engine.memory.train_step import random_inputs
from stableanimator_cli.engine.training import (
    StepInputs,
    TrainingModel,
    TrainingParts,
    TrainingSettings,
    open_training,
    step_inputs,
    trainable_parameters,
)
from stableanimator_cli.engine.training.model import Dtype
from stableanimator_cli.nets.mixed_norms import with_mixed_norms
from stableanimator_cli.nets.unet_blocks import Checkpointing
from stableanimator_cli.preprocess import run as preprocess
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train.dataset import Dataset, open_dataset
from stableanimator_cli.train.latent_cache import Encoders, build_cache, latent_encoder, token_encoder
from stableanimator_cli.train.loader import Loader, LoaderSettings

SEED = 0
CLIPS = 2
UNCACHED, CACHED = "videos, encoded in each step", "cached latents and embeddings"
CHECKPOINTING: tuple[Checkpointing, ...] = ("off", "diffusers", "blocks")
_NETWORK = "this run's own"  # instead of a digest: the caches are deleted after the run
_HINT = "use a smaller --size or --frames, or --dtype bfloat16"


def preset_stage(preset: str, device: torch.device, *, small: bool) -> tuple[TrainConfig, StageConfig, ClipShape]:
    """A preset of ``sa train`` with its dtype resolved, its last stage, and that stage's largest size (``small``: 2
    frames of 64x64)."""
    flags = {"dataset": (Path("dataset"),), "output": Path("run")}
    config = resolve(TrainConfig, flags, preset=preset_tables(preset)).resolve_stages((512, 512))
    if config.memory.dtype == "auto":
        dtype = dtype_name(DevicePlan.of(DeviceConfig(device=str(device))).dtype)
        config = replace(config, memory=replace(config.memory, dtype=dtype))  # type: ignore[arg-type]
    assert config.stage
    stage = config.stage[-1]
    size = max(stage.sizes or (), key=lambda s: s[0] * s[1])
    shape = ClipShape(size=(64, 64), frames=2) if small else ClipShape(size=size, frames=stage.frames)
    return config, stage, shape


def random_training_model(model: ModelFolder, settings: TrainingSettings, device: torch.device) -> TrainingModel:
    """The module with random weights of unit gain, initialised on their device in their dtype."""
    network = meta_model(model, settings)
    if settings.dtype != "float32" and device.type != "cpu":
        with_mixed_norms(network)
    nn.Module.to_empty(network, device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                bound = math.sqrt(3 / parameter[0].numel())
                parameter.uniform_(-bound, bound)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return network


def open_parts(model: ModelFolder, settings: TrainingSettings, plan: DevicePlan) -> TrainingParts:
    """Parts of a training, with random weights if ``model`` has none."""
    if "unet" in model.files:
        return open_training(model, settings, plan.device)
    encoders = {
        role: lambda role=role: load_network(model, role, plan.dtype).requires_grad_(False)
        for role in ("vae", "image_encoder")
    }
    return TrainingParts(
        model=random_training_model(model, settings, plan.device),
        networks=Networks(encoders, plan),
        device=plan.device,
        fresh=(),
        scaling=float(model.configs["vae"].get("scaling_factor", 0.18215)),
    )


def train_step(parts: TrainingParts, inputs: StepInputs, optimizer: torch.optim.Optimizer) -> Tensor:
    """One step with a batch of one, without logging. Returns the loss."""
    loss = parts.model(inputs).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def frozen_optimizer(parts: TrainingParts) -> torch.optim.Optimizer:
    """An optimiser with learning rate 0, so that every round has the same weights."""
    return torch.optim.AdamW(trainable_parameters(parts.model).values(), lr=0.0)


def draw_dataset(folder: Path, shape: ClipShape) -> Dataset:
    """Clip folders of drawn figures at the size that is trained, as `sa preprocess` writes them."""
    write_puppets(PuppetPlan(folder=folder / "figures", videos=CLIPS, frames=shape.frames + 2, size=shape.size))
    flags = {"input": (folder / "figures" / "videos",), "output": folder / "clips", "model": "puppet", "device": "cpu"}
    preprocess.run(flags=flags)
    return open_dataset([folder / "clips"], min_frames=shape.frames + 1)


def compare_caching(bench: BenchRun) -> Table:
    """Time a step from clip folders: with decoding and encoding, and from caches."""
    model, plan, shape = bench.model(), bench.plan, bench.shape((128, 128), 8)
    settings = TrainingSettings(noise_aug=0.0, checkpointing="blocks", dtype=cast(Dtype, bench.dtype))
    with tempfile.TemporaryDirectory() as temp, memory_guard("measuring training", _HINT):
        dataset = draw_dataset(Path(temp), shape)
        parts = open_parts(model, settings, plan)
        optimizer = frozen_optimizer(parts)
        plain = LoaderSettings(sizes=(shape.size,), frames=shape.frames, stride=1)
        loaders = {UNCACHED: Loader(dataset, plain, seed=SEED, batch=1)}
        with parts.networks.resident("vae", "image_encoder"):
            encoders = Encoders(
                latents=latent_encoder(parts.networks["vae"], plan.device),
                vae=_NETWORK,
                tokens=token_encoder(parts.networks["image_encoder"], plan.device),
                image_encoder=_NETWORK,
            )
            build_cache(loaders[UNCACHED].buckets, encoders, batch=4)
        cached = LoaderSettings(
            sizes=(shape.size,), frames=shape.frames, stride=1, vae=_NETWORK, image_encoder=_NETWORK
        )
        loaders[CACHED] = Loader(dataset, cached, seed=SEED, batch=1)
        done = dict.fromkeys(loaders, 0)
        losses: dict[str, list[float]] = {name: [] for name in loaders}

        def run_variant(name: str) -> None:
            batch = loaders[name].batch(done[name])
            done[name] += 1
            losses[name].append(float(train_step(parts, step_inputs(parts, batch, SEED, 1), optimizer)))

        work = {}
        for name in loaders:
            work[name] = count_flops(lambda name=name: run_variant(name))
            bench.tick()
        variants = {name: lambda name=name: run_variant(name) for name in loaders}
        timed = bench.time(variants)
    rows = []
    for name, loader in loaders.items():
        seconds = timed.median(name)
        apart = [abs(a - b) / b for a, b in zip(losses[name], losses[UNCACHED], strict=True)]
        row: dict[str, Any] = {"way": name, "s per step": seconds}
        row |= {"times faster than encoding": timed.ratio(UNCACHED, name) if name != UNCACHED else None}
        row |= {"TFLOP": work[name] / 1e12, "% of roof": bench.roof().percent(work[name], seconds)}
        row |= {"frames decoded per step": loader.calls["frames_decoded"] / done[name]}
        row |= {"greatest error of a loss / loss": max(apart)}
        rows.append(row)
    return Table(
        title=f"Training step of {model.name}, {shape}, {settings.train}, {settings.dtype}, by input",
        rows=rows,
        note=f"From clip folders to updated weights, batch size 1, checkpointing {settings.checkpointing}, no "
        f"prefetching. {bench.rounds} round(s), interleaved, both variants on the same clips, frames and noise.",
    )


def compare_checkpointing(bench: BenchRun) -> Table:
    """Time a step without checkpointing, with diffusers' and with ours."""
    model, plan, shape = bench.model(), bench.plan, bench.shape((128, 128), 8)
    with memory_guard("measuring checkpointing", _HINT):
        parts = open_parts(model, TrainingSettings(dtype=cast(Dtype, bench.dtype)), plan)
        optimizer = frozen_optimizer(parts)
        inputs = random_inputs(parts.model, 1, shape.frames, shape.size, plan.device)
        learning = list(trainable_parameters(parts.model).values())

        def ready(way: str) -> None:
            parts.model.unet.checkpointing = cast(Checkpointing, way)

        def gradients() -> Tensor:
            parts.model(inputs).mean().backward()
            found = torch.cat([p.grad.float().flatten() for p in learning if p.grad is not None])
            optimizer.zero_grad(set_to_none=True)
            return found

        def one() -> None:
            parts.model(inputs).mean().backward()
            optimizer.zero_grad(set_to_none=True)

        costs, errors = {}, {}
        ready("off")
        expected = gradients()
        for name in CHECKPOINTING:
            ready(name)
            errors[name] = float((gradients() - expected).abs().max() / expected.abs().max())
            gc.collect()
            costs[name] = count_all(one)
            bench.tick()
        del expected
        variants: dict[str, Callable[[], object]] = {
            name: lambda: train_step(parts, inputs, optimizer) for name in CHECKPOINTING
        }
        timed = bench.time(variants, setup=ready)
    rows = []
    for name in CHECKPOINTING:
        seconds, cost = timed.median(name), costs[name]
        row: dict[str, Any] = {"checkpointing": name, "s per step": seconds}
        row |= {"times faster than off": timed.ratio("off", name) if name != "off" else None}
        row |= {"TFLOP": cost.flops / 1e12, "% of roof": bench.roof().percent(cost.flops, seconds)}
        row |= {"MiB alive": cost.bytes / 2**20, "of diffusers'": cost.bytes / costs["diffusers"].bytes}
        row |= {"greatest error of a gradient / greatest gradient": errors[name]}
        rows.append(row)
    return Table(
        title=f"Checkpointing, {model.name}, {shape}, {parts.settings.train}, {parts.settings.dtype}",
        rows=rows,
        note="Counted bytes of all outputs of forward and backward, gradients included, without weights and inputs. "
        f"{bench.rounds} round(s), interleaved.",
    )


def count_full_size(bench: BenchRun) -> Table:
    """Memory of each kind of checkpointing at the released shapes, counted on the ``meta`` device."""
    model, shape, rows = open_bench_model(FULL), bench.shape((576, 1024), 16), []
    for name in CHECKPOINTING:
        settings = TrainingSettings(checkpointing=name, dtype="bfloat16")
        with FlopCounter() as work:
            planned = predict(model, settings, size=shape.size, frames=shape.frames)
        row: dict[str, Any] = {"checkpointing": name, "TFLOP": work.total / 1e12}
        row |= {"GiB alive": planned.step / 2**30}
        row |= {"GiB with weights and optimiser, on a GPU": planned.total / 2**30}
        rows.append(row)
        bench.tick()
    for row in rows:
        row["of diffusers'"] = row["GiB alive"] / rows[CHECKPOINTING.index("diffusers")]["GiB alive"]
    return Table(
        title=f"Checkpointing, released shapes, {shape}, attentions, bfloat16",
        rows=rows,
        note="Counted, not computed; a GPU's fused attention is assumed.",
    )
