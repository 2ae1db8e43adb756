"""Options of ``sa train`` that no other verb has: data, stages, loss, ablations, memory, checkpoints, validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stableanimator_cli.cli.options import MACHINE, OUTPUT, says
from stableanimator_cli.config.train import (
    AblationConfig,
    DataConfig,
    LossConfig,
    MemoryConfig,
    OptimizerConfig,
    SavingConfig,
    StageConfig,
    TrainConfig,
    ValidationConfig,
)

STAGES = "Stages (a flag holds for every stage)"
LOSS = "Noise and loss"
ABLATIONS = "Ablations (written into the checkpoint)"
MEMORY = "Memory"
DATA = "Data"
WATCH = "Checkpoints and validation"

DatasetArg = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DATASET...", help="Folders of sa preprocess, clip folders, or rec|vec with path lists."),
]
RunOpt = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="RUN", help="The folder of the run; with --export where to write to."),
]
ResumeOpt = Annotated[
    Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a run where it stopped. Default: a new run.")
]
ExportOpt = Annotated[
    Literal["model", "upstream"] | None,
    typer.Option(
        "--export",
        help="Train nothing: write the best or last checkpoint of --resume RUN to -o FOLDER, as a model folder that "
        "needs no other, or as unet.pth, pose_net.pth and face_encoder.pth. Default: none.",
    ),
]
PresetOpt = Annotated[
    Literal["paper", "finetune-24gb", "finetune-40gb", "puppet"] | None,
    typer.Option("--preset", help="A recipe: stages and settings; --config and flags win over it. Default: none."),
]
ScratchOpt = Annotated[
    str | None,
    typer.Option(
        "--from-scratch",
        metavar="ROLES",
        help="Networks that begin with random weights: some of unet,pose_net,face_encoder. Default: none.",
    ),
]

StepsOpt = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", min=1, rich_help_panel=STAGES, help="Optimiser steps. Default: the preset's."),
]
EpochsOpt = Annotated[
    float | None,
    typer.Option(
        "--epochs",
        metavar="N",
        rich_help_panel=STAGES,
        help="Passes over the clips, instead of --steps. Default: none.",
    ),
]
SizesOpt = Annotated[
    str | None,
    typer.Option(
        "--sizes",
        metavar="WxH,...",
        rich_help_panel=STAGES,
        help="Sizes in pixels, as 512x512,576x1024: a clip goes to the one nearest in shape. Default: the model's own.",
    ),
]
FramesOpt = Annotated[
    int | None,
    typer.Option(
        "--frames",
        metavar="N",
        min=1,
        max=1024,
        rich_help_panel=STAGES,
        help=says("Frames of a sample.", StageConfig, "frames"),
    ),
]
BatchOpt = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        min=1,
        rich_help_panel=STAGES,
        help=says("Samples of a step in all processes together.", StageConfig, "batch"),
    ),
]
RateOpt = Annotated[
    float | None,
    typer.Option("--rate", metavar="LR", rich_help_panel=STAGES, help=says("Learning rate.", StageConfig, "lr")),
]
WarmupOpt = Annotated[
    int | None,
    typer.Option(
        "--warmup",
        metavar="STEPS",
        min=0,
        rich_help_panel=STAGES,
        help=says("Steps of a linear rise to the rate.", StageConfig, "warmup"),
    ),
]
ScheduleOpt = Annotated[
    Literal["constant", "cosine"] | None,
    typer.Option("--schedule", rich_help_panel=STAGES, help=says("The rate after it.", StageConfig, "schedule")),
]
TrainOpt = Annotated[
    Literal["attentions", "all", "adapters", "pose+face", "lora"] | None,
    typer.Option(
        "--train",
        rich_help_panel=STAGES,
        help=says("What learns; attentions is the released choice.", StageConfig, "train"),
    ),
]

FaceMaskOpt = Annotated[
    Literal["released", "paper", "off"] | None,
    typer.Option(
        "--face-mask",
        rich_help_panel=LOSS,
        help=says("Weight of faces in the loss: 1+M, (1+M)^2, or as everything else.", LossConfig, "face_mask"),
    ),
]
SigmaOpt = Annotated[
    Literal["cosine", "lognormal"] | None,
    typer.Option("--sigma", rich_help_panel=LOSS, help=says("Distribution of noise levels.", LossConfig, "sigma")),
]
DropoutOpt = Annotated[
    Literal["released", "full"] | None,
    typer.Option(
        "--dropout",
        rich_help_panel=LOSS,
        help=says("What is left out at random; full drops pose and face too.", LossConfig, "dropout"),
    ),
]
DegradeOpt = Annotated[
    float | None,
    typer.Option(
        "--reference-degrade",
        metavar="SHARE",
        min=0.0,
        max=1.0,
        rich_help_panel=LOSS,
        help=says("Share of samples whose reference loses its face.", LossConfig, "reference_degrade"),
    ),
]

FaceEncoderOpt = Annotated[
    Literal["on", "off"] | None,
    typer.Option(
        "--face-encoder",
        rich_help_panel=ABLATIONS,
        help=says("off: the identity vector reaches the adapters unfused.", AblationConfig, "face_encoder"),
    ),
]
AdapterOpt = Annotated[
    Literal["distribution", "addition", "norm", "off"] | None,
    typer.Option(
        "--id-adapter", rich_help_panel=ABLATIONS, help=says("How the face is joined.", AblationConfig, "id_adapter")
    ),
]
FaceOpt = Annotated[
    Literal["on", "off"] | None,
    typer.Option("--face", rich_help_panel=ABLATIONS, help=says("off: no face tokens at all.", AblationConfig, "face")),
]

CheckpointingOpt = Annotated[
    Literal["off", "blocks", "diffusers"] | None,
    typer.Option(
        "--checkpointing",
        rich_help_panel=MEMORY,
        help=says("Which activations are computed again instead of kept.", MemoryConfig, "checkpointing"),
    ),
]
MicroOpt = Annotated[
    int | None,
    typer.Option(
        "--micro-batch",
        metavar="N",
        min=1,
        rich_help_panel=MEMORY,
        help="Samples that go through the networks at once; gradients add up to the batch. Default: all.",
    ),
]
LoraOpt = Annotated[
    int | None,
    typer.Option(
        "--lora-rank",
        metavar="N",
        min=1,
        rich_help_panel=MEMORY,
        help=says("Rank with --train lora.", MemoryConfig, "lora_rank"),
    ),
]
FitOpt = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="24GB",
        rich_help_panel=MEMORY,
        help="Choose checkpointing and micro-batch so that the plan fits into so much memory. Default: as given.",
    ),
]
ShardingOpt = Annotated[
    Literal["off", "full"] | None,
    typer.Option(
        "--sharding",
        rich_help_panel=MEMORY,
        help=says(
            "full: each process of torchrun holds a piece of weights, gradients and moments.", MemoryConfig, "sharding"
        ),
    ),
]

StrideOpt = Annotated[
    int | None,
    typer.Option(
        "--stride",
        metavar="N",
        min=1,
        rich_help_panel=DATA,
        help=says("Frames between two of a sample.", DataConfig, "stride"),
    ),
]
ReferenceOpt = Annotated[
    Literal["unchosen", "outside", "any", "first"] | None,
    typer.Option(
        "--reference-from",
        rich_help_panel=DATA,
        help=says(
            "The reference: none of the sample's frames, outside of their span, any, or the clip's first frame.",
            DataConfig,
            "reference",
        ),
    ),
]
ResizeOpt = Annotated[
    Literal["stretch", "crop", "pad"] | None,
    typer.Option(
        "--resize",
        rich_help_panel=DATA,
        help=says("How frames of another shape are fitted to the size.", DataConfig, "resize"),
    ),
]
CacheOpt = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="KINDS",
        rich_help_panel=DATA,
        help="Encode frames once and keep the answers: latents,embeddings; off reads none. Default: what is there.",
    ),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        max=256,
        rich_help_panel=DATA,
        help=says("Threads that load ahead; 0 for none.", DataConfig, "workers"),
    ),
]

ClipNormOpt = Annotated[
    float | None,
    typer.Option(
        "--clip-norm",
        metavar="NORM",
        min=0.0,
        rich_help_panel=STAGES,
        help=says("Largest gradient norm; 0 for no limit.", OptimizerConfig, "max_grad_norm"),
    ),
]
EmaOpt = Annotated[
    float | None,
    typer.Option(
        "--ema",
        metavar="KEEP",
        min=0.0,
        max=1.0,
        rich_help_panel=STAGES,
        help=says("Share that the moving average of the weights keeps a step; 0 for none.", OptimizerConfig, "ema"),
    ),
]
SpikeOpt = Annotated[
    float | None,
    typer.Option(
        "--spike",
        metavar="FACTOR",
        min=0.0,
        rich_help_panel=WATCH,
        help=says("Stop where a loss is so many times the median of late; 0 for never.", OptimizerConfig, "loss_spike_factor"),
    ),
]
SaveOpt = Annotated[
    int | None,
    typer.Option(
        "--save-every",
        metavar="STEPS",
        min=1,
        rich_help_panel=WATCH,
        help=says("Steps between two checkpoints.", SavingConfig, "every"),
    ),
]
KeepOpt = Annotated[
    int | None,
    typer.Option(
        "--keep",
        metavar="N",
        min=1,
        rich_help_panel=WATCH,
        help=says("Checkpoints that stay, besides the best.", SavingConfig, "keep"),
    ),
]
WeightsOpt = Annotated[
    Literal["float16", "float32"] | None,
    typer.Option(
        "--weights", rich_help_panel=WATCH, help=says("Type of a checkpoint's weights.", SavingConfig, "weights")
    ),
]
ValidateOpt = Annotated[
    list[Path] | None,
    typer.Option(
        "--validate",
        metavar="DATASET",
        rich_help_panel=WATCH,
        help="Held-out clips to animate now and then; may be given several times. Default: none.",
    ),
]
ValidateEveryOpt = Annotated[
    int | None,
    typer.Option(
        "--validate-every",
        metavar="STEPS",
        min=1,
        rich_help_panel=WATCH,
        help=says("Steps between two validations.", ValidationConfig, "every"),
    ),
]
ValidateClipsOpt = Annotated[
    int | None,
    typer.Option(
        "--validate-clips",
        metavar="N",
        min=1,
        max=64,
        rich_help_panel=WATCH,
        help=says("How many of the clips.", ValidationConfig, "clips"),
    ),
]
TrackOpt = Annotated[
    Literal["none", "tensorboard"] | None,
    typer.Option("--track", rich_help_panel=OUTPUT, help=says("Another place for the curves.", TrainConfig, "track")),
]
DtypeOpt = Annotated[
    Literal["auto", "float16", "bfloat16", "float32"] | None,
    typer.Option(
        "--dtype",
        rich_help_panel=MACHINE,
        help=says("What is computed in; weights that learn stay float32.", MemoryConfig, "dtype"),
    ),
]
