"""What a run of ``sa train`` is asked to do. See ``config`` for how flags, file, preset and defaults are merged.

A training is a list of stages, each a table ``[[stage]]``; flags about stages (``--steps``, ``--lr``) hold for all
of them. The resolved config is written to ``RUN/config.toml``. Standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli.config.animate import Size, dump_size, parse_bytes, parse_size
from stableanimator_cli.config.preprocess import parse_inputs
from stableanimator_cli.config.schema import check_choices, current_names, from_mapping, option, read_toml, require
from stableanimator_cli.errors import ConfigError, cut

Train = Literal["attentions", "all", "adapters", "pose+face", "lora"]
Schedule = Literal["constant", "cosine"]
Preset = Literal["paper", "finetune-24gb", "finetune-40gb", "puppet"]
SCRATCH = ("unet", "pose_net", "face_encoder")
"""Roles that can start from random weights."""


def parse_sizes(value: Any, label: str = "--sizes") -> tuple[Size, ...]:
    """``"512x512,576x1024"`` -> ((512, 512), (576, 1024)): (width, height) in pixels, a bucket each."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, str):
        raise ConfigError(label, value, "sizes in pixels, as 512x512 or 512x512,576x1024")
    sizes = tuple(parse_size(part, label) for part in value.split(","))
    for size in sizes:
        require(not any(side % 8 for side in size), label, dump_size(size), "sides that are multiples of 8")
    require(len(set(sizes)) == len(sizes), label, value, "each size once")
    return sizes


def parse_roles(value: Any, label: str = "--from-scratch") -> tuple[str, ...]:
    """``"unet,pose_net"`` -> ("unet", "pose_net")."""
    if isinstance(value, tuple):
        return value
    roles = tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else ()
    known = bool(roles) and set(roles) <= set(SCRATCH) and len(set(roles)) == len(roles)
    require(known, label, value, f"some of {','.join(SCRATCH)}")
    return roles


def _dump_sizes(sizes: tuple[Size, ...]) -> str:
    return ",".join(map(dump_size, sizes))


def _dump_lines(paths: tuple[Path, ...]) -> str:
    return "\n".join(map(str, paths))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One part of a training: ``steps`` optimiser steps (or ``epochs`` passes over the clips) of ``batch`` samples in
    all ranks together, at ``lr`` after ``warmup`` steps of a linear rise. ``frames`` 1 with ``image_only`` trains on
    pictures and skips the temporal layers. ``sizes`` None is the model's own size."""

    name: str = option("stage.name", "train")
    steps: int | None = option("--steps", None)
    epochs: float | None = option("--epochs", None)
    sizes: tuple[Size, ...] | None = option("--sizes", None, parse=parse_sizes, dump=_dump_sizes)
    frames: int = option("--frames", 16)
    batch: int = option("--batch", 1)
    lr: float = option("--lr", 1e-5, formerly="rate", old_flag="--rate")
    warmup: int = option("--warmup", 500)
    schedule: Schedule = option("--schedule", "constant")
    final_lr_factor: float = option("stage.final_lr_factor", 0.01, formerly="final")
    train: Train = option("--train", "attentions")
    image_only: bool = option("stage.image_only", False)

    def __post_init__(self) -> None:
        check_choices(self)
        named = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,40}", self.name) is not None
        require(named, "stage.name", self.name, "letters, digits, '-', '_' and '.'")
        if self.steps is not None:
            require(1 <= self.steps <= 10**8, "--steps", self.steps, "1 or more")
        if self.epochs is not None:
            require(_positive(self.epochs), "--epochs", self.epochs, "more than 0")
        require(self.steps is None or self.epochs is None, "--epochs", self.epochs, "--steps or --epochs alone")
        require(1 <= self.frames <= 1024, "--frames", self.frames, "1 to 1024")
        require(1 <= self.batch <= 65536, "--batch", self.batch, "1 to 65536 samples")
        require(_positive(self.lr), "--lr", self.lr, "more than 0")
        require(self.warmup >= 0, "--warmup", self.warmup, "0 steps or more")
        require(
            0 <= self.final_lr_factor <= 1, "stage.final_lr_factor", self.final_lr_factor, "0 to 1, a share of the rate"
        )
        if self.image_only:
            require(self.frames == 1, "--frames", self.frames, "1 where image_only is set")


def parse_stages(value: Any, label: str = "stage") -> tuple[StageConfig, ...]:
    """The tables ``[[stage]]`` of a file, in order. Names must differ: metrics and checkpoints are told by them."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(row, Mapping) for row in value):
        raise ConfigError(label, value, "tables [[stage]]")
    stages = tuple(from_mapping(StageConfig, row, f"{label}[{index}]") for index, row in enumerate(value))
    names = [stage.name for stage in stages]
    for name in names:
        require(names.count(name) == 1, f"{label}: name", name, "each name once")
    return stages


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Noise, weights and dropout. ``sigma``: upstream's interpolated cosine, or log-normal with ``sigma_mean`` and
    ``sigma_std`` of its logarithm. ``reference_degrade`` is the share of samples whose reference is made unclear
    inside the face, so that the face has to come through the identity vector."""

    face_mask: Literal["released", "paper", "off"] = option("--face-mask", "released")
    sigma: Literal["cosine", "lognormal"] = option("--sigma", "cosine")
    sigma_mean: float = option("loss.sigma_mean", 0.7)
    sigma_std: float = option("loss.sigma_std", 1.6, formerly="sigma_deviation")
    dropout: Literal["released", "full"] = option("--dropout", "released")
    dropout_prob: float = option("loss.dropout_prob", 0.1, formerly="dropout_share")
    noise_aug: float = option("--noise-aug", 0.02)
    reference_degrade: float = option("--reference-degrade", 0.0)
    fps: int = option("loss.fps", 7)
    motion_bucket: float = option("--motion-bucket", 127.0)

    def __post_init__(self) -> None:
        check_choices(self)
        require(math.isfinite(self.sigma_mean), "loss.sigma_mean", self.sigma_mean, "a number")
        require(_positive(self.sigma_std), "loss.sigma_std", self.sigma_std, "more than 0")
        require(0 <= self.dropout_prob <= 1 / 3, "loss.dropout_prob", self.dropout_prob, "0 to 1/3")
        require(0 <= self.noise_aug <= 10, "--noise-aug", self.noise_aug, "0 to 10")
        require(0 <= self.reference_degrade <= 1, "--reference-degrade", self.reference_degrade, "0 to 1")
        require(1 <= self.fps <= 1000, "loss.fps", self.fps, "1 to 1000")
        require(0 <= self.motion_bucket <= 10**4, "--motion-bucket", self.motion_bucket, "0 to 10000")


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationConfig:
    """What the network is trained without (Tables 3 and 4 of the paper); written into every checkpoint."""

    face_encoder: Literal["on", "off"] = option("--face-encoder", "on")
    id_adapter: Literal["distribution", "addition", "norm", "off"] = option("--id-adapter", "distribution")
    face: Literal["on", "off"] = option("--face", "on")

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """What makes it fit. ``micro_batch`` samples a rank go through the networks at once, their gradients are added up;
    None is all of them. ``max_memory`` bytes: choose ``checkpointing`` and ``micro_batch`` so that the plan stays
    below it. ``sharding`` full gives each of several processes a piece of weights, gradients, moments and average
    (FSDP2) instead of all."""

    checkpointing: Literal["off", "blocks", "diffusers"] = option("--checkpointing", "blocks")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = option("--dtype", "auto")
    micro_batch: int | None = option("--micro-batch", None, formerly="micro")
    lora_rank: int = option("--lora-rank", 16)
    max_memory: int | None = option("--max-memory", None, parse=parse_bytes, formerly="fit", old_flag="--fit")
    sharding: Literal["off", "full"] = option("--sharding", "off")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.micro_batch is not None:
            require(self.micro_batch >= 1, "--micro-batch", self.micro_batch, "1 sample or more")
        require(1 <= self.lora_rank <= 1024, "--lora-rank", self.lora_rank, "1 to 1024")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW as upstream sets it, or ``muon`` for matrices and AdamW for the rest (``train/optimizer``: learns in fewer
    steps where networks begin from nothing). ``max_grad_norm`` is the largest gradient norm, 0 for none; ``ema`` the
    share that the moving average keeps a step, 0 for no average; ``loss_spike_factor`` stops the run where a loss is
    so many times the running median."""

    kind: Literal["adamw", "muon"] = option("optimizer.kind", "adamw")
    beta1: float = option("optimizer.beta1", 0.9)
    beta2: float = option("optimizer.beta2", 0.999)
    weight_decay: float = option("optimizer.weight_decay", 1e-2, formerly="decay")
    epsilon: float = option("optimizer.epsilon", 1e-8)
    max_grad_norm: float = option("--clip-norm", 1.0, formerly="clip")
    ema: float = option("--ema", 0.0)
    loss_spike_factor: float = option("--spike", 50.0, formerly="spike")

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "0 to less than 1")
        require(0 <= self.weight_decay <= 1, "optimizer.weight_decay", self.weight_decay, "0 to 1")
        require(_positive(self.epsilon), "optimizer.epsilon", self.epsilon, "more than 0")
        require(0 <= self.max_grad_norm < math.inf, "--clip-norm", self.max_grad_norm, "0 or more")
        require(0 <= self.ema < 1, "--ema", self.ema, "0 to less than 1")
        require(
            self.loss_spike_factor == 0 or 1 < self.loss_spike_factor < math.inf,
            "--spike",
            self.loss_spike_factor,
            "0, or more than 1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavingConfig:
    """A checkpoint every so many steps, of which the last ``keep`` and the best stay; ``weights`` is their type."""

    every: int = option("--save-every", 500)
    keep: int = option("--keep", 3)
    weights: Literal["float16", "float32"] = option("--weights", "float32")

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.every >= 1, "--save-every", self.every, "1 step or more")
        require(self.keep >= 1, "--keep", self.keep, "1 checkpoint or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Videos of held-out clips every so many steps: ``clips`` of the datasets ``of``, ``frames`` each, denoised in
    ``steps`` with ``guidance``."""

    of: tuple[Path, ...] | None = option("--validate", None, parse=parse_inputs, dump=_dump_lines)
    every: int = option("--validate-every", 1000)
    clips: int = option("--validate-clips", 2)
    frames: int = option("--validate-frames", 8)
    steps: int = option("--validate-steps", 8)
    guidance: float = option("--validate-guidance", 1.0)

    def __post_init__(self) -> None:
        require(self.every >= 1, "--validate-every", self.every, "1 step or more")
        require(1 <= self.clips <= 64, "--validate-clips", self.clips, "1 to 64")
        require(1 <= self.frames <= 1024, "--validate-frames", self.frames, "1 to 1024")
        require(1 <= self.steps <= 1000, "--validate-steps", self.steps, "1 to 1000")
        require(0 <= self.guidance <= 100, "--validate-guidance", self.guidance, "0 to 100")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """How clips become samples: every ``stride``-th frame, and a reference that is none of them, lies outside of their
    span, is any frame, or is the clip's first frame and never drawn. ``cache`` None takes caches that are there."""

    stride: int = option("--stride", 4)
    reference: Literal["unchosen", "outside", "any", "first"] = option("--reference-from", "unchosen")
    resize: Literal["stretch", "crop", "pad"] = option("--resize", "stretch")
    cache: str | None = option("--cache", None)
    ram_mb: int = option("data.ram_mb", 2048)
    workers: int = option("--workers", 2)

    def __post_init__(self) -> None:
        check_choices(self)
        require(1 <= self.stride <= 1000, "--stride", self.stride, "1 to 1000")
        require(0 <= self.workers <= 256, "--workers", self.workers, "0 to 256")
        require(self.ram_mb >= 0, "data.ram_mb", self.ram_mb, "0 MiB or more")
        if self.cache is not None:
            known = {part.strip() for part in self.cache.split(",")} <= {"latents", "embeddings"} or self.cache == "off"
            require(known, "--cache", self.cache, "latents, embeddings, both with a comma, or off")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run of ``sa train``. What is None and has a name of ``StageConfig`` holds for every stage where it is given.

    ``from_scratch`` names the networks that begin with random weights drawn from ``seed``.
    """

    dataset: tuple[Path, ...] = option("DATASET", parse=parse_inputs, dump=_dump_lines)
    output: Path = option("--output")
    model: str | None = option("--model", None)
    preset: Preset | None = option("--preset", None)
    from_scratch: tuple[str, ...] | None = option("--from-scratch", None, parse=parse_roles, dump=",".join)
    seed: int = option("--seed", 0)
    device: str = option("--device", "auto")
    track: Literal["none", "tensorboard"] = option("--track", "none")
    stage: tuple[StageConfig, ...] | None = option("stage", None, parse=parse_stages)
    steps: int | None = option("--steps", None)
    epochs: float | None = option("--epochs", None)
    sizes: tuple[Size, ...] | None = option("--sizes", None, parse=parse_sizes, dump=_dump_sizes)
    frames: int | None = option("--frames", None)
    batch: int | None = option("--batch", None)
    lr: float | None = option("--lr", None, formerly="rate", old_flag="--rate")
    warmup: int | None = option("--warmup", None)
    schedule: Schedule | None = option("--schedule", None)
    train: Train | None = option("--train", None)
    loss: LossConfig = field(default_factory=LossConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.model != "", "--model", self.model, "a name of the catalogue or a folder")
        require(0 <= self.seed < 2**63, "--seed", self.seed, "0 to 2**63 - 1")
        known = re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device) is not None
        require(known, "--device", self.device, "auto, cpu, cuda, cuda:N or mps")
        off = self.ablation.face == "off"
        alone = not off or self.ablation.face_encoder == "on"
        require(alone, "--face-encoder", "off", "on with --face off, where nothing is left to encode")

    def resolve_stages(self, size: Size) -> TrainConfig:
        """The same with the stages written out: flags about stages are in them, ``size`` where none was given."""
        given = {name: getattr(self, name) for name in _OF_STAGES if getattr(self, name) is not None}
        if "steps" in given and "epochs" not in given:
            given["epochs"] = None
        if "epochs" in given and "steps" not in given:
            given["steps"] = None
        stages = [replace(stage, **given) for stage in self.stage or (StageConfig(),)]
        for index, stage in enumerate(stages):
            if stage.steps is None and stage.epochs is None:
                hint = "add --steps N, or take a recipe that says it: --preset finetune-24gb"
                raise ConfigError("--steps", None, f"--steps or --epochs for stage {stage.name!r}", hint=hint)
            stages[index] = stage if stage.sizes is not None else replace(stage, sizes=(size,))
        kinds = {stage.train == "lora" for stage in stages}
        require(len(kinds) == 1, "--train", "lora", "lora in every stage or in none")
        return replace(self, stage=tuple(stages), **dict.fromkeys(_OF_STAGES))


def tables_of_today(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a ``TrainConfig`` that an older version wrote, with the names of today."""
    current = current_names(TrainConfig, tables)
    if isinstance(current.get("stage"), list):
        current["stage"] = [current_names(StageConfig, row) for row in current["stage"]]
    return current


_OF_STAGES = ("steps", "epochs", "sizes", "frames", "batch", "lr", "warmup", "schedule", "train")

ALLOWED_ON_RESUME = (
    "output",
    "device",
    "track",
    "saving",
    "validation",
    "data.workers",
    "data.ram_mb",
    "optimizer.loss_spike_factor",
    "memory.sharding",
)
"""What may differ where a run is gone on with: it decides no number of the training."""


def preset_tables(name: str) -> tuple[dict[str, Any], str]:
    """A preset's tables and how an error names them. Raises ``ConfigError`` for a name that is none."""
    folder = Path(__file__).with_name("presets")
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        raise ConfigError("--preset", name, f"one of {', '.join(known)}")
    return read_toml(folder / f"{name}.toml"), f"preset {name}"


def diff(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two configs as tables, one line a key, but for what is ``FREE``."""
    found: list[str] = []
    for key in dict.fromkeys((*before, *now)):
        dotted = f"{path}{key}"
        old, new = before.get(key), now.get(key)
        if dotted in ALLOWED_ON_RESUME or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += diff(old, new, f"{dotted}.")
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for index, pair in enumerate(zip(old, new, strict=True)):
                left, right = (item if isinstance(item, Mapping) else {"": item} for item in pair)
                found += diff(left, right, f"{dotted}[{index}].")
        else:
            found.append(f"{dotted}: was {cut(repr(old))}, now {cut(repr(new))}")
    return found


def _positive(value: float) -> bool:
    return 0 < value < math.inf
