"""Memory that a training needs on its device, predicted before anything is loaded: ``--plan``, ``--max-memory``.

Weights, their optimiser and their average follow from the number of parameters. What a step keeps alive is not
modelled but counted: the very module that will be trained runs forward and backward on the ``meta`` device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from stableanimator_cli.engine.device import DTYPES
from stableanimator_cli.engine.memory.train_step import bytes_of, meta_step_bytes
from stableanimator_cli.engine.training.fsdp import units
from stableanimator_cli.engine.training.model import TrainingModel, TrainingSettings
from stableanimator_cli.engine.training.trainable import with_lora
from stableanimator_cli.engine.weights import builders
from stableanimator_cli.errors import OutOfMemory
from stableanimator_cli.nets.unet import AnimationUNet, Checkpointing
from stableanimator_cli.records import ModelFolder

FRAGMENTED = 0.06  # of everything: what torch's allocator cannot use
CONTEXT = 600 << 20  # CUDA's own, with the libraries' workspaces
_QUICKEST: tuple[Checkpointing, ...] = ("off", "diffusers", "blocks")  # 1, 1.2 and 1.3 times the work


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes on one device. ``weights`` that learn and that rest, ``optimizer`` (AdamW's two moments), ``average``
    (EMA), ``encoders`` (VAE and image encoder where latents are not cached), ``step`` the most that gradients, casts
    and activations hold at once; ``reserve`` is the allocator's and the card's own."""

    settings: TrainingSettings
    micro: int
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
        """One line, its parts named, in GiB or MiB."""
        parts = {
            "weights": self.weights,
            "optimiser": self.optimizer,
            "average": self.average,
            "encoders": self.encoders,
            "step": self.step,
            "reserve": self.reserve,
        }
        named = ", ".join(f"{name} {told(size)}" for name, size in parts.items() if size)
        how = f"checkpointing {self.settings.checkpointing}, {self.settings.dtype}, {self.micro} at once"
        return f"{told(self.total)} ({named}) with {how}"


def predict(
    model: ModelFolder,
    settings: TrainingSettings,
    *,
    size: tuple[int, int],
    frames: int,
    micro: int = 1,
    cached: bool = True,
    ema: bool = False,
    ranks: int = 1,
    sharded: bool = False,
    on_cpu: bool = False,
) -> MemoryPlan:
    """``micro`` samples of ``frames`` at ``size`` (width, height) go through the networks at once on each of ``ranks``
    devices (DDP: each holds everything, and its buckets hold the gradients once more; ``sharded``: each holds a piece,
    and beside it what ``training_shards`` gathers: what is in no unit, and of the largest unit the weights twice, as
    the next one is fetched ahead, and the gradients).

    Only the folder's configs are read. A card with a fused attention kernel is assumed; ``on_cpu`` leaves out what
    CUDA itself takes. Counting takes a few seconds at full size.
    """
    network = skeleton(model, settings)
    learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
    gradients = 4 * learning
    pieces = ranks if sharded else 1
    whole = bytes_of(network)
    weights, optimizer, average = (part // pieces for part in (whole, 8 * learning, 4 * learning * ema))
    step = meta_step_bytes(network, micro, frames, size, shared=sharded)
    if sharded:
        alone = [bytes_of(unit) for unit in units(network)]
        step += gradients // pieces + whole - sum(alone) + 3 * max(alone)
    # AdamW's step over all tensors at once needs as much again as the gradients
    step = max(step, 2 * gradients // pieces)
    if sharded:
        step = max(step, whole - weights - optimizer - average)  # each rank reads the whole before it keeps its piece
    elif ranks > 1:
        step += gradients
    encoders = 0 if cached else _encoders(model, settings)
    used = weights + optimizer + average + encoders + step
    return MemoryPlan(
        settings=settings,
        micro=micro,
        weights=weights,
        optimizer=optimizer,
        average=average,
        encoders=encoders,
        step=step,
        reserve=int(FRAGMENTED * used) + (0 if on_cpu else CONTEXT),
    )


def choose(
    limit: int,
    model: ModelFolder,
    settings: TrainingSettings,
    *,
    size: tuple[int, int],
    frames: int,
    batch: int = 1,
    cached: bool = True,
    ema: bool = False,
    ranks: int = 1,
    sharded: bool = False,
    on_cpu: bool = False,
) -> MemoryPlan:
    """The quickest way to make the same training fit into ``limit`` bytes.

    What is trained, on what and in which type stays; checkpointing and the number of samples at once (a divisor of
    ``batch``, a rank's share) change. Adding up the gradients of single samples costs a card little, computing blocks
    again costs a third: the former comes first.

    Raises ``OutOfMemory`` that says what the least would take and which settings are smaller.
    """

    def planned(checkpointing: Checkpointing, micro: int) -> MemoryPlan:
        again = replace(settings, checkpointing=checkpointing)
        return predict(
            model,
            again,
            size=size,
            frames=frames,
            micro=micro,
            cached=cached,
            ema=ema,
            ranks=ranks,
            sharded=sharded,
            on_cpu=on_cpu,
        )

    ones = []
    for checkpointing in _QUICKEST:
        one = planned(checkpointing, 1)
        if one.total <= limit:
            # n samples hold at most n times what one holds: gradients and casts among it are there once
            more = one.step * (1 + FRAGMENTED)
            micro = max(n for n in range(1, batch + 1) if batch % n == 0 and one.total + (n - 1) * more <= limit)
            return one if micro == 1 else planned(checkpointing, micro)
        ones.append(one)
    least = min(ones, key=lambda plan: plan.total)
    raise OutOfMemory(
        f"training needs at least {least.describe()}; {told(limit)} were given",
        hint=smaller(settings, cached=cached),
    )


def told(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def smaller(settings: TrainingSettings, *, cached: bool) -> str:
    """What a user can change to need less, the most helpful first."""
    ways = ["a smaller --sizes or fewer --frames"]
    if not cached:
        ways.insert(0, "--cache latents,embeddings")
    if settings.train in ("all", "attentions"):
        ways.insert(0, "--train adapters or --train lora")
    if settings.dtype == "float32":
        ways.insert(0, "--dtype bfloat16")
    return "; ".join(ways)


def skeleton(model: ModelFolder, settings: TrainingSettings) -> TrainingModel:
    """The module that would be trained, on the ``meta`` device: shapes and types without numbers."""
    configs = model.configs
    if not settings.face_encoder:
        configs = {**configs, "face_encoder": {**configs.get("face_encoder", {}), "fusion": False}}
    build = builders(replace(model, configs=configs), settings.id_adapter)
    networks = {role: _on_meta(build[role]) for role in ("unet", "pose_net", "face_encoder")}
    if settings.train == "lora":
        unet = networks["unet"]
        assert isinstance(unet, AnimationUNet)
        with_lora(unet, settings.lora_rank, (), seed=0)
    return TrainingModel(**networks, settings=settings).train()


def _encoders(model: ModelFolder, settings: TrainingSettings) -> int:
    """Weights of VAE encoder, decoder and image encoder; what they compute is gone before the step begins."""
    build: Mapping[str, Callable[[], nn.Module]] = builders(model, "distribution")
    width = DTYPES["bfloat16" if settings.dtype == "bfloat16" else "float32"].itemsize
    return sum(width * sum(p.numel() for p in _on_meta(build[role]).parameters()) for role in ("vae", "image_encoder"))


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        network = build()
    return network.to("meta")  # diffusers makes some parameters where it wants
