"""One alias a concept: the same name, range, unit, default and help for an option on every verb that has it.

Every alias means "not given" by ``None``, so that flags, config file, model and class can be merged in that order
(``config.resolve``). The default that the help prints is read from the config classes. Typer and the standard
library only, because the shell's completion waits for this import at every TAB.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stableanimator_cli.config.animate import AnimateConfig, DecodeConfig, DeviceConfig, SamplingConfig, WindowConfig

SAMPLING = "Sampling"
LONG = "Long videos"
FACE = "Face"
OUTPUT = "Output"
MACHINE = "Machine"


def says(text: str, config: type, name: str, *, model: bool = False) -> str:
    """Help text that ends with the default of a config's field; ``model``: the model's own default goes before it."""
    default: Any = next(item.default for item in dataclasses.fields(config) if item.name == name)
    if isinstance(default, tuple):
        default = default[0] if len(set(default)) == 1 else ":".join(map(str, default))
    if isinstance(default, float):
        default = f"{default:g}"
    if isinstance(default, bool):
        default = "on" if default else "off"
    owner = "the model's own, else " if model else ""
    return f"{text} Default: {owner}{default}."


def complete_model(incomplete: str) -> list[str]:
    """Catalogue names for the shell."""
    from stableanimator_cli import catalogue
    from stableanimator_cli.errors import SaError

    try:
        return [name for name in catalogue.names() if name.startswith(incomplete)]
    except SaError:  # SA_HOME names no folder: the command itself reports it
        return []


# What every verb has.

JsonOpt = Annotated[
    bool, typer.Option("--json", help="Print the result, or the error, on stdout as one JSON object. Default: off.")
]
QuietOpt = Annotated[
    bool, typer.Option("--quiet", "-q", help="No talk and no bars on stderr; warnings and errors stay. Default: off.")
]
ProgressOpt = Annotated[
    Literal["bar", "json", "none"],
    typer.Option(
        "--progress",
        show_default=False,
        help="How far the work is, on stderr: a bar, or one JSON object a line. Default: bar.",
    ),
]
PlanOpt = Annotated[
    bool, typer.Option("--plan", help="Print what would be done and what it costs, and stop. Default: off.")
]
RestartOpt = Annotated[
    bool,
    typer.Option("--restart", help="Begin anew where a run was broken off, instead of going on with it. Default: off."),
]
ConfigOpt = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="RUN.toml", help="Settings as TOML; flags win over it. The run record holds such a file."
    ),
]

# What is made, and from what.

ReferenceArg = Annotated[
    Path | None, typer.Argument(metavar="REFERENCE", help="The picture of the person: PNG, JPEG or WebP.")
]
MotionArg = Annotated[
    Path | None,
    typer.Argument(
        metavar="MOTION",
        help="What the person does: a skeleton video, a motion .npz, a folder of pictures or of OpenPose JSON, "
        "or any video of a person.",
    ),
]
OutputOpt = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="OUT.mp4", help="The video to write; its record goes beside it as OUT.json."
    ),
]
ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|FOLDER",
        autocompletion=complete_model,
        help="A name of the catalogue (sa models list) or a model folder. Default: $SA_MODEL, else stableanimator.",
    ),
]
MotionKindOpt = Annotated[
    Literal["auto", "skeleton", "video"] | None,
    typer.Option(
        "--motion-kind",
        help=says("What MOTION shows: drawn skeletons, or people to detect.", AnimateConfig, "motion_kind"),
    ),
]
SizeOpt = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        rich_help_panel=OUTPUT,
        help="Width and height in pixels, as 576x1024. Default: the model's own.",
    ),
]
ResizeOpt = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    typer.Option(
        "--resize",
        rich_help_panel=OUTPUT,
        help=says("How pictures of another shape are fitted to the size.", AnimateConfig, "resize"),
    ),
]
FramesOpt = Annotated[
    str | None,
    typer.Option(
        "--frames",
        metavar="A:B",
        rich_help_panel=OUTPUT,
        help="Frames A to B of the motion, B not included, as a Python slice: 0:48, 10:, :100. Default: all.",
    ),
]
FpsOpt = Annotated[
    str | None,
    typer.Option(
        "--fps",
        metavar="RATE",
        rich_help_panel=OUTPUT,
        help="Frames a second to resample the motion to, more than 0 and at most 1000, as 25 or 30000/1001 "
        "(29.97 means that). Default: the motion's own.",
    ),
]
AudioOpt = Annotated[
    Literal["keep", "none"] | None,
    typer.Option("--audio", rich_help_panel=OUTPUT, help=says("The sound of a motion video.", AnimateConfig, "audio")),
]
PreviewOpt = Annotated[
    bool | None,
    typer.Option(
        "--preview",
        rich_help_panel=OUTPUT,
        help=says("Also write OUT.preview.mp4: reference, skeleton and result side by side.", AnimateConfig, "preview"),
    ),
]

# Sampling.

StepsOpt = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        min=1,
        max=1000,
        rich_help_panel=SAMPLING,
        help=says("Denoising steps.", SamplingConfig, "steps", model=True),
    ),
]
GuidanceOpt = Annotated[
    str | None,
    typer.Option(
        "--guidance",
        metavar="G|FIRST:LAST",
        rich_help_panel=SAMPLING,
        help=says(
            "Classifier-free guidance, 0 or more: one number, or a rise from the first frame to the last as 1:3.",
            SamplingConfig,
            "guidance",
            model=True,
        ),
    ),
]
SamplerOpt = Annotated[
    Literal["euler", "heun"] | None,
    typer.Option(
        "--sampler",
        rich_help_panel=SAMPLING,
        help=says("How a step is taken; heun evaluates twice a step.", SamplingConfig, "sampler"),
    ),
]
ChurnOpt = Annotated[
    float | None,
    typer.Option(
        "--churn",
        metavar="S",
        min=0.0,
        rich_help_panel=SAMPLING,
        help=says("Noise added back over the run, EDM's S_churn.", SamplingConfig, "churn"),
    ),
]
NoiseOpt = Annotated[
    Literal["repeat", "fresh"] | None,
    typer.Option(
        "--noise",
        rich_help_panel=SAMPLING,
        help=says("First noise: drawn for each frame, or one window's repeated.", SamplingConfig, "noise"),
    ),
]
NoiseAugOpt = Annotated[
    float | None,
    typer.Option(
        "--noise-aug",
        metavar="SIGMA",
        min=0.0,
        rich_help_panel=SAMPLING,
        help=says("Standard deviation of noise on the reference picture.", SamplingConfig, "noise_aug", model=True),
    ),
]
MotionBucketOpt = Annotated[
    float | None,
    typer.Option(
        "--motion-bucket",
        metavar="ID",
        min=0.0,
        rich_help_panel=SAMPLING,
        help=says("How much motion the network is told to expect.", SamplingConfig, "motion_bucket", model=True),
    ),
]
SeedOpt = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        min=0,
        max=2**63 - 1,
        rich_help_panel=SAMPLING,
        help=says("Seed of the noise; the same seed gives the same frames.", SamplingConfig, "seed"),
    ),
]

# Long videos.

WindowOpt = Annotated[
    int | None,
    typer.Option(
        "--window",
        metavar="FRAMES",
        min=1,
        rich_help_panel=LONG,
        help=says("Frames that the network sees at once.", WindowConfig, "length", model=True),
    ),
]
OverlapOpt = Annotated[
    int | None,
    typer.Option(
        "--overlap",
        metavar="FRAMES",
        min=0,
        rich_help_panel=LONG,
        help=says("Frames shared by two windows, less than --window.", WindowConfig, "overlap", model=True),
    ),
]
BlendOpt = Annotated[
    Literal["upstream", "smooth", "shifted"] | None,
    typer.Option(
        "--blend",
        rich_help_panel=LONG,
        help=says(
            "How windows are joined: upstream as the reference implementation does, smooth by cross-fades, shifted by "
            "these and elsewhere in every step (one window more; seams show least).",
            WindowConfig,
            "blend",
        ),
    ),
]
AnchorOpt = Annotated[
    Literal["first", "reference"] | None,
    typer.Option(
        "--anchor",
        rich_help_panel=LONG,
        help=says("What every window's first frame is tied to.", WindowConfig, "anchor"),
    ),
]
DecodeChunkOpt = Annotated[
    int | None,
    typer.Option(
        "--decode-chunk",
        metavar="FRAMES",
        min=1,
        rich_help_panel=LONG,
        help=says("Frames decoded at once; fewer need less memory.", DecodeConfig, "chunk", model=True),
    ),
]
DecodeOverlapOpt = Annotated[
    int | None,
    typer.Option(
        "--decode-overlap",
        metavar="FRAMES",
        min=0,
        rich_help_panel=LONG,
        help=says("Frames shared by two decoded chunks, less than --decode-chunk.", DecodeConfig, "overlap"),
    ),
]

# Face.

IdAdapterOpt = Annotated[
    Literal["distribution", "addition", "norm", "off"] | None,
    typer.Option(
        "--id-adapter",
        rich_help_panel=FACE,
        help="How face and picture features are joined. Default: the model's own.",
    ),
]
ForceAblationOpt = Annotated[
    bool | None,
    typer.Option(
        "--force-ablation",
        rich_help_panel=FACE,
        help=says(
            "Allow another --id-adapter, or a face, than the model was trained with.", AnimateConfig, "force_ablation"
        ),
    ),
]
FaceEmbeddingOpt = Annotated[
    Path | None,
    typer.Option(
        "--face-embedding",
        metavar="FACE.npy",
        rich_help_panel=FACE,
        help="A face embedding (512 numbers, as ArcFace gives it) to use in place of the one found in REFERENCE. "
        "Default: the largest face of REFERENCE.",
    ),
]
AllowNoFaceOpt = Annotated[
    bool | None,
    typer.Option(
        "--allow-no-face",
        rich_help_panel=FACE,
        help=says("Go on without an identity where REFERENCE shows no face.", AnimateConfig, "allow_no_face"),
    ),
]

# Machine.

DeviceOpt = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        rich_help_panel=MACHINE,
        help=says("Where to compute: auto, cpu, cuda, cuda:N or mps.", DeviceConfig, "device"),
    ),
]
GpusOpt = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        min=1,
        max=1024,
        rich_help_panel=MACHINE,
        help=says(
            "Cards that share one video's windows and guidance branches; on a CPU, processes. torchrun does it too.",
            DeviceConfig,
            "gpus",
        ),
    ),
]
DtypeOpt = Annotated[
    Literal["auto", "float16", "bfloat16", "float32"] | None,
    typer.Option(
        "--dtype", rich_help_panel=MACHINE, help=says("Type of number of the networks.", DeviceConfig, "dtype")
    ),
]
OffloadOpt = Annotated[
    Literal["none", "model", "group"] | None,
    typer.Option(
        "--offload",
        rich_help_panel=MACHINE,
        help=says(
            "model keeps one network on the device at a time, group of the UNet one block.", DeviceConfig, "offload"
        ),
    ),
]
