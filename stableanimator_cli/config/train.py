"""Config of ``sa train``. See ``config.schema`` for how flags, file, preset and defaults are merged.

A training is a list of stages, each a table ``[[stage]]``; flags of stages (``--steps``, ``--lr``) set all of them.
The resolved config is written to ``RUN/config.toml``. Standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli.backbone_facts import Trained
from stableanimator_cli.config.parse import (
    DEVICE,
    OUTPUT,
    SAMPLING,
    Size,
    check_device,
    device_option,
    dump_paths,
    dump_size,
    model_option,
    parse_bytes,
    parse_inputs,
    parse_size,
)
from stableanimator_cli.config.schema import check_fields, from_mapping, option, read_toml, require
from stableanimator_cli.errors import ConfigError

Train = Literal["attentions", "all", "adapters", "pose+face", "lora"]
Schedule = Literal["constant", "cosine"]
Preset = Literal["paper", "finetune-24gb", "finetune-40gb", "puppet"]
SCRATCH = ("unet", "pose_net", "face_encoder")
"""Roles that can start from random weights."""


def parse_sizes(value: Any, label: str = "--sizes") -> tuple[Size, ...]:
    """``"512x512,576x1024"`` -> ((512, 512), (576, 1024)): (width, height) in pixels, one bucket per size."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple) else ()
    if not parts:
        raise ConfigError(label, value, "sizes in pixels, as 512x512 or 512x512,576x1024")
    sizes = tuple(parse_size(part, label) for part in parts)
    for size in sizes:
        require(not any(side % 8 for side in size), label, dump_size(size), "sides that are multiples of 8")
    require(len(set(sizes)) == len(sizes), label, value, "each size once")
    return sizes


def parse_roles(value: Any, label: str = "--from-scratch") -> tuple[str, ...]:
    """``"unet,pose_net"`` -> ("unet", "pose_net")."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    roles = tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else ()
    known = bool(roles) and set(roles) <= set(SCRATCH) and len(set(roles)) == len(roles)
    require(known, label, value, f"some of {','.join(SCRATCH)}")
    return roles


def _dump_sizes(sizes: tuple[Size, ...]) -> str:
    return ",".join(map(dump_size, sizes))


# Panels of the help.
STAGES = "Stages (a flag holds for every stage)"
LOSS = "Noise and loss"
ABLATIONS = "Ablations (written into the checkpoint)"
MEMORY = "Memory"
DATA = "Data"
CHECKPOINTS = "Checkpoints and validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage: ``steps`` optimiser steps (or ``epochs`` passes over the clips) of ``batch`` samples in all ranks.

    ``image_only`` with ``frames`` 1 trains on images and skips the temporal layers. ``sizes`` None is the model's size.
    """

    # fmt: off
    name: str = option("stage.name", "train")
    steps: int | None = option("--steps", None, metavar="N", ge=1, le=10**8, panel=STAGES, default_text="the preset's",
        help="Optimizer steps.")
    epochs: float | None = option("--epochs", None, metavar="N", gt=0, panel=STAGES, default_text="none",
        help="Passes over the clips, instead of --steps.")
    sizes: tuple[Size, ...] | None = option("--sizes", None, parse=parse_sizes, dump=_dump_sizes, metavar="WxH,...",
        panel=STAGES, default_text="the model's own",
        help="Sizes in pixels, as 512x512,576x1024. A clip is trained at the size with the nearest aspect ratio.")
    frames: int = option("--frames", 16, metavar="N", ge=1, le=1024, panel=STAGES, help="Frames per sample.")
    batch: int = option("--batch", 1, metavar="N", ge=1, le=65536, panel=STAGES,
        help="Samples per step, over all processes.")
    lr: float = option("--lr", 1e-5, formerly="rate", old_flag="--rate", metavar="LR", gt=0, panel=STAGES,
        help="Learning rate.")
    warmup: int = option("--warmup", 500, metavar="STEPS", ge=0, panel=STAGES,
        help="Steps over which the learning rate rises linearly.")
    schedule: Schedule = option("--schedule", "constant", panel=STAGES, help="Learning rate after the warmup.")
    final_lr_factor: float = option("stage.final_lr_factor", 0.01, formerly="final", ge=0, le=1)
    train: Train = option("--train", "attentions", panel=STAGES,
        help="Weights that are trained; attentions is the released choice.")
    image_only: bool = option("stage.image_only", False)
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        named = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,40}", self.name) is not None
        require(named, "stage.name", self.name, "letters, digits, '-', '_' and '.'")
        require(self.steps is None or self.epochs is None, "--epochs", self.epochs, "--steps or --epochs alone")
        if self.image_only:
            require(self.frames == 1, "--frames", self.frames, "1 if image_only is set")


def parse_stages(value: Any, label: str = "stage") -> tuple[StageConfig, ...]:
    """The tables ``[[stage]]`` of a file, in order. Names must be unique: metrics and checkpoints refer to them."""
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
    """Noise, weights and dropout.

    ``sigma``: upstream's interpolated cosine, log-normal with ``sigma_mean`` and ``sigma_std`` of its logarithm, or
    uniformly drawn timesteps.
    ``reference_degrade``: fraction of samples whose reference has noise in place of the face, so that identity must
    come from the face embedding.
    """

    # fmt: off
    face_mask: Literal["released", "paper", "off"] = option("--face-mask", "released", panel=LOSS,
        help="Weight of faces in the loss: 1+M as in the released code, (1+M)^2 as in the paper, or off: 1.")
    sigma: Literal["cosine", "lognormal", "timesteps"] = option("--sigma", "cosine", panel=LOSS,
        help="Distribution of noise levels; the backbone magic has its timesteps only.")
    sigma_mean: float = option("loss.sigma_mean", 0.7)
    sigma_std: float = option("loss.sigma_std", 1.6, formerly="sigma_deviation", gt=0)
    dropout: Literal["released", "full"] = option("--dropout", "released", panel=LOSS,
        help="Conditioning inputs dropped at random: those of the released code, or with full also pose and face.")
    dropout_prob: float = option("loss.dropout_prob", 0.1, formerly="dropout_share", ge=0, le=1 / 3)
    noise_aug: float = option("--noise-aug", 0.02, metavar="SIGMA", ge=0, panel=SAMPLING, model_default=True, le=10,
        help="Standard deviation of the noise on the reference image.")
    reference_degrade: float = option("--reference-degrade", 0.0, metavar="FRACTION", ge=0, le=1, panel=LOSS,
        help="Fraction of samples whose reference has noise in place of the face.")
    fps: int = option("loss.fps", 7, ge=1, le=1000)
    motion_bucket: float = option("--motion-bucket", 127.0, metavar="ID", ge=0, panel=SAMPLING, model_default=True,
        le=10**4,
        help="Amount of motion, a conditioning input of the UNet.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationConfig:
    """Ablations (Tables 3 and 4 of the paper), recorded in every checkpoint."""

    # fmt: off
    face_encoder: Literal["on", "off"] = option("--face-encoder", "on", panel=ABLATIONS, model_default=True,
        help="off: the face embedding is projected, but not fused with the image.")
    id_adapter: Literal["distribution", "addition", "norm", "off"] = option("--id-adapter", "distribution",
        panel=ABLATIONS, model_default=True, help="How face and image features are combined.")
    face: Literal["on", "off"] = option("--face", "on", panel=ABLATIONS, help="off: no face tokens.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """Memory options.

    ``micro_batch`` samples per rank go through the networks at once, None for all; gradients are accumulated.
    ``max_memory`` bytes: choose ``checkpointing`` and ``micro_batch`` so that the estimate fits. ``sharding`` full
    shards weights, gradients, moments and EMA over the processes (FSDP2).
    """

    # fmt: off
    checkpointing: Literal["off", "blocks", "diffusers"] = option("--checkpointing", "blocks", panel=MEMORY,
        help="Activations that are recomputed instead of stored.")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = option("--dtype", "auto", panel=DEVICE,
        help="Floating-point type of the computation; trained weights are float32.")
    micro_batch: int | None = option("--micro-batch", None, formerly="micro", metavar="N", ge=1, panel=MEMORY,
        default_text="all", help="Samples computed at once; their gradients are accumulated.")
    lora_rank: int = option("--lora-rank", 16, metavar="N", ge=1, panel=MEMORY, le=1024,
        help="Rank with --train lora.")
    max_memory: int | None = option("--max-memory", None, parse=parse_bytes, formerly="fit", old_flag="--fit",
        metavar="24GB", panel=MEMORY, default_text="as given",
        help="Choose checkpointing and micro-batch so that the predicted memory stays below this.")
    sharding: Literal["off", "full"] = option("--sharding", "off", panel=MEMORY,
        help="full: each process of torchrun holds a part of weights, gradients and moments (FSDP).")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW with upstream's settings, or ``muon`` for matrices and AdamW for the rest (``train.optimizer``).

    ``max_grad_norm`` 0 disables clipping. ``ema`` is the decay of the moving average, 0 for none. A loss of more than
    ``loss_spike_factor`` times the running median stops the run.
    """

    # fmt: off
    kind: Literal["adamw", "muon"] = option("optimizer.kind", "adamw")
    beta1: float = option("optimizer.beta1", 0.9, ge=0, lt=1)
    beta2: float = option("optimizer.beta2", 0.999, ge=0, lt=1)
    weight_decay: float = option("optimizer.weight_decay", 1e-2, formerly="decay", ge=0, le=1)
    epsilon: float = option("optimizer.epsilon", 1e-8, gt=0)
    max_grad_norm: float = option("--clip-norm", 1.0, formerly="clip", metavar="NORM", ge=0, panel=STAGES,
        help="Maximum gradient norm; 0 for no limit.")
    ema: float = option("--ema", 0.0, metavar="DECAY", ge=0, le=1, panel=STAGES, lt=1,
        help="Decay per step of the moving average of the weights; 0 for none.")
    loss_spike_factor: float = option("--spike", 50.0, formerly="spike", metavar="FACTOR", ge=0, panel=CHECKPOINTS,
        help="Stop if a loss exceeds the running median by this factor; 0 for never.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.loss_spike_factor == 0 or 1 < self.loss_spike_factor < math.inf,
            "--spike",
            self.loss_spike_factor,
            "0, or more than 1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavingConfig:
    """A checkpoint every ``every`` steps; the last ``keep`` and the best remain. ``weights`` is their dtype."""

    # fmt: off
    every: int = option("--save-every", 500, metavar="STEPS", ge=1, panel=CHECKPOINTS,
        help="Steps between checkpoints.")
    keep: int = option("--keep", 3, metavar="N", ge=1, panel=CHECKPOINTS,
        help="Number of last checkpoints to keep, beside the best one.")
    weights: Literal["float16", "float32"] = option("--weights", "float32", panel=CHECKPOINTS,
        help="Floating-point type of the trained weights in a checkpoint.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Videos of held-out clips: ``clips`` of the datasets ``of``, every ``every`` training steps."""

    # fmt: off
    of: tuple[Path, ...] | None = option("--validate", None, parse=parse_inputs, dump=dump_paths, metavar="DATASET",
        panel=CHECKPOINTS, default_text="none",
        help="Held-out clips to animate and score during training; may be given several times.")
    every: int = option("--validate-every", 1000, metavar="STEPS", ge=1, panel=CHECKPOINTS,
        help="Steps between validations.")
    clips: int = option("--validate-clips", 2, metavar="N", ge=1, le=64, panel=CHECKPOINTS,
        help="Number of clips per validation.")
    frames: int = option("--validate-frames", 8, metavar="N", ge=1, le=1024, panel=CHECKPOINTS,
        help="Frames per validation video.")
    steps: int = option("--validate-steps", 8, metavar="N", ge=1, le=1000, panel=CHECKPOINTS,
        help="Denoising steps of validation videos.")
    guidance: float = option("--validate-guidance", 1.0, metavar="G", ge=0, le=100, panel=CHECKPOINTS,
        help="Guidance of validation videos.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Sampling of clips. ``reference``: see ``train.sampling``. ``cache`` None reads existing caches."""

    # fmt: off
    stride: int = option("--stride", 4, metavar="N", ge=1, panel=DATA, le=1000,
        help="Distance between the frames of a sample, in frames of the clip.")
    reference: Literal["unchosen", "outside", "any", "first"] = option("--reference-from", "unchosen", panel=DATA,
        help="Reference frame. unchosen: none of the sample's frames; outside: outside of their span; any: any frame; "
        "first: the first of the clip.")
    people: int = option("--people", 1, metavar="N", ge=1, le=16, panel=DATA,
        help="People per clip with a face vector and a region of their own; 1: the largest, for the full frame.")
    resize: Literal["stretch", "crop", "pad"] = option("--resize", "stretch", panel=DATA,
        help="How frames of another aspect ratio are fitted to the size.")
    cache: str | None = option("--cache", None, metavar="KINDS", panel=DATA, default_text="existing caches are read",
        help="Encode each frame once and store the results: latents,embeddings; off ignores existing caches.")
    ram_mb: int = option("data.ram_mb", 2048, ge=0)
    workers: int = option("--workers", 2, metavar="N", ge=0, le=256, panel=DATA,
        help="Threads that load batches ahead; 0 for none.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        if self.cache is not None:
            known = {part.strip() for part in self.cache.split(",")} <= {"latents", "embeddings"} or self.cache == "off"
            require(known, "--cache", self.cache, "latents, embeddings, both with a comma, or off")

    def reads(self, kind: str) -> bool:
        """Whether caches of ``kind`` are read if they exist."""
        return self.cache is None or kind in [part.strip() for part in self.cache.split(",")]


def _for_all_stages(name: str) -> Any:
    """A field of ``StageConfig`` as an option for all stages; None leaves the stages unchanged."""
    item = next(item for item in fields(StageConfig) if item.name == name)
    default = f"{item.default:g}" if isinstance(item.default, float) else str(item.default)
    return field(default=None, metadata={**item.metadata, "default_text": item.metadata["default_text"] or default})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run of ``sa train``. Fields with a name of ``StageConfig`` set all stages unless they are None.

    ``from_scratch`` names networks that start from random weights drawn from ``seed``.
    """

    # fmt: off
    dataset: tuple[Path, ...] = option("DATASET", parse=parse_inputs, dump=dump_paths, metavar="DATASET...",
        help="Folders of sa preprocess, clip folders, or rec|vec with path lists.")
    output: Path = option("--output", short="-o", metavar="RUN",
        help="Folder of the run; with --export the folder to write.")
    model: str | None = model_option()
    backbone: Trained | None = option("--backbone", None, default_text="the model's",
        help="Backbone: svd, or magic (Stable Diffusion with AnimateDiff), from a folder of these or with "
        "--from-scratch unet.")
    preset: Preset | None = option("--preset", None, default_text="none",
        help="Stages and settings to start from; --config and flags override them.")
    from_scratch: tuple[str, ...] | None = option("--from-scratch", None, parse=parse_roles, dump=",".join,
        metavar="ROLES", default_text="none",
        help="Networks that start with random weights: some of unet,pose_net,face_encoder.")
    seed: int = option("--seed", 0, metavar="N", ge=0, le=2**63 - 1, panel=SAMPLING,
        help="Seed of random weights, the order of clips and the noise; the same seed gives the same weights.")
    device: str = device_option()
    track: Literal["none", "tensorboard"] = option("--track", "none", panel=OUTPUT,
        help="Also write the curves for TensorBoard.")
    stage: tuple[StageConfig, ...] | None = option("stage", None, parse=parse_stages)
    steps: int | None = _for_all_stages("steps")
    epochs: float | None = _for_all_stages("epochs")
    sizes: tuple[Size, ...] | None = _for_all_stages("sizes")
    frames: int | None = _for_all_stages("frames")
    batch: int | None = _for_all_stages("batch")
    lr: float | None = _for_all_stages("lr")
    warmup: int | None = _for_all_stages("warmup")
    schedule: Schedule | None = _for_all_stages("schedule")
    train: Train | None = _for_all_stages("train")
    loss: LossConfig = field(default_factory=LossConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.model != "", "--model", self.model, "a name of the catalogue or a folder")
        check_device(self.device)
        off = self.ablation.face == "off"
        alone = not off or self.ablation.face_encoder == "on"
        require(alone, "--face-encoder", "off", "on with --face off, which has no face to encode")
        require(self.data.people == 1 or not off, "--people", self.data.people, "1 with --face off")

    def resolve_stages(self, size: Size) -> TrainConfig:
        """Return the config with complete stages: flags of stages applied, ``size`` if a stage has no sizes."""
        given = {name: getattr(self, name) for name in _STAGE_FIELDS if getattr(self, name) is not None}
        if "steps" in given and "epochs" not in given:
            given["epochs"] = None
        if "epochs" in given and "steps" not in given:
            given["steps"] = None
        stages = [replace(stage, **given) for stage in self.stage or (StageConfig(),)]
        for index, stage in enumerate(stages):
            if stage.steps is None and stage.epochs is None:
                hint = "add --steps N, or choose a preset: --preset finetune-24gb"
                raise ConfigError("--steps", None, f"--steps or --epochs for stage {stage.name!r}", hint=hint)
            stages[index] = stage if stage.sizes is not None else replace(stage, sizes=(size,))
        kinds = {stage.train == "lora" for stage in stages}
        require(len(kinds) == 1, "--train", "lora", "lora in every stage or in none")
        return replace(self, stage=tuple(stages), **dict.fromkeys(_STAGE_FIELDS))


_STAGE_FIELDS = ("steps", "epochs", "sizes", "frames", "batch", "lr", "warmup", "schedule", "train")


def preset_tables(name: str) -> tuple[dict[str, Any], str]:
    """The tables of a preset and its name in errors. Raises ``ConfigError`` for an unknown name."""
    folder = Path(__file__).with_name("presets")
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        raise ConfigError("--preset", name, f"one of {', '.join(known)}")
    return read_toml(folder / f"{name}.toml"), f"preset {name}"
