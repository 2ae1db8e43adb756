"""``sa preprocess``: videos become clips, skeleton videos and motions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.config.preprocess import PreprocessConfig

PEOPLE = "People"
MANY = "Many videos"
CONVERT = "Conversion"
_DEFAULTS = PreprocessConfig

InputArg = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="INPUT...",
        help="Videos, pictures, folders of them, or a list (.txt); or one motion to convert: .npz, .npy, OpenPose JSON "
        "(a file or a folder), a skeleton video or folder.",
    ),
]
OutputOpt = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR|FILE",
        help="The folder of clips; for a motion the file (.npz, .json, .npy, .mp4) or folder to write. "
        "Default: INPUT.clips beside the input.",
    ),
]
PosesOpt = Annotated[
    Path | None,
    typer.Option(
        "--poses",
        metavar="OUT.mp4",
        help="Of one video: a lossless skeleton video, and OUT.npz beside it, ready for sa animate. Default: none.",
    ),
]
LayoutOpt = Annotated[
    Literal["clips", "upstream"] | None,
    typer.Option(
        "--layout",
        help=options.says(
            "Clip folders, or the reference implementation's rec|vec/NNNNN/{images,poses,faces}.", _DEFAULTS, "layout"
        ),
    ),
]
SourceOpt = Annotated[
    Literal["link", "copy"] | None,
    typer.Option(
        "--source", help=options.says("Whether a clip folder links to its video or holds a copy.", _DEFAULTS, "source")
    ),
]
PreviewOpt = Annotated[
    bool | None,
    typer.Option(
        "--preview",
        help=options.says("Also write OUT.preview.png: the motion over the reference picture.", _DEFAULTS, "preview"),
    ),
]
LintOpt = Annotated[
    bool | None,
    typer.Option(
        "--lint",
        help=options.says("Only look over the dataset INPUT; exit code 8 if training would break.", _DEFAULTS, "lint"),
    ),
]
PersonOpt = Annotated[
    str | None,
    typer.Option(
        "--person",
        metavar="largest|all|N|x0,y0,x1,y1",
        rich_help_panel=PEOPLE,
        help="Whose motion: who fills most, everybody, the N-th to appear (from 0), or who is in a box in pixels. "
        "Default: largest for videos, all for motions.",
    ),
]
AlignOpt = Annotated[
    Literal["upstream", "affine", "bones", "similarity", "none"] | None,
    typer.Option(
        "--align",
        rich_help_panel=PEOPLE,
        help=options.says(
            "How a motion is put where the person of --reference is: as the reference implementation does, by scale "
            "and shift, with that body's limbs, or by rotation too.",
            _DEFAULTS,
            "align",
        ),
    ),
]
ReferenceOpt = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="PICTURE",
        rich_help_panel=PEOPLE,
        help="The picture that will be animated; how far the motion is from it is always told. Default: none.",
    ),
]
SmoothOpt = Annotated[
    float | None,
    typer.Option(
        "--smooth",
        metavar="FRAMES",
        min=0.0,
        max=1000.0,
        rich_help_panel=PEOPLE,
        help=options.says("Width of the smoothing of points over time; 0 for none.", _DEFAULTS, "smooth"),
    ),
]
GapOpt = Annotated[
    int | None,
    typer.Option(
        "--gap",
        metavar="FRAMES",
        min=0,
        max=10_000,
        rich_help_panel=PEOPLE,
        help=options.says("The longest gap of detection that is closed.", _DEFAULTS, "gap"),
    ),
]
EveryOpt = Annotated[
    int | None,
    typer.Option(
        "--every",
        metavar="K",
        min=1,
        max=64,
        rich_help_panel=PEOPLE,
        help=options.says(
            "Detect people in every K-th frame and carry their boxes between; points are found in each frame.",
            _DEFAULTS,
            "every",
        ),
    ),
]
ThresholdOpt = Annotated[
    float | None,
    typer.Option(
        "--detect-threshold",
        metavar="SCORE",
        min=0.0,
        max=1.0,
        rich_help_panel=PEOPLE,
        help=options.says("The smallest score of a person, between 0 and 1.", _DEFAULTS, "detect_threshold"),
    ),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        max=256,
        rich_help_panel=MANY,
        help=options.says("Processes on this machine.", _DEFAULTS, "workers"),
    ),
]
ShardOpt = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        rich_help_panel=MANY,
        help="Only part I (from 0) of N of the list, for several machines with one -o. Default: all.",
    ),
]
RayOpt = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        rich_help_panel=MANY,
        help="A Ray cluster, local for one on this machine; needs the package ray. Default: none.",
    ),
]
ToOpt = Annotated[
    Literal["json", "png"] | None,
    typer.Option(
        "--to",
        rich_help_panel=CONVERT,
        help=options.says("What a folder is to hold: OpenPose JSON or skeleton pictures.", _DEFAULTS, "to"),
    ),
]
OrderOpt = Annotated[
    Literal["134", "133"] | None,
    typer.Option(
        "--order",
        rich_help_panel=CONVERT,
        help=options.says("Points of a .npy: 134 as here, or the 133 of COCO-WholeBody.", _DEFAULTS, "order"),
    ),
]
SizeOpt = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        rich_help_panel=CONVERT,
        help="Width and height in pixels of a motion whose file does not say. Default: what the file says.",
    ),
]


def preprocess(
    input: InputArg = None,
    output: OutputOpt = None,
    poses: PosesOpt = None,
    layout: LayoutOpt = None,
    source: SourceOpt = None,
    model: options.ModelOpt = None,
    frames: options.FramesOpt = None,
    fps: options.FpsOpt = None,
    preview: PreviewOpt = None,
    lint: LintOpt = None,
    person: PersonOpt = None,
    align: AlignOpt = None,
    reference: ReferenceOpt = None,
    smooth: SmoothOpt = None,
    gap: GapOpt = None,
    every: EveryOpt = None,
    detect_threshold: ThresholdOpt = None,
    workers: WorkersOpt = None,
    shard: ShardOpt = None,
    ray: RayOpt = None,
    to: ToOpt = None,
    order: OrderOpt = None,
    size: SizeOpt = None,
    device: options.DeviceOpt = None,
    config: options.ConfigOpt = None,
    plan: options.PlanOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa preprocess videos/ -o dataset
    sa preprocess dance.mp4 --poses poses.mp4 --align affine --reference person.png

    Find people, their points and faces in videos. Makes a clip folder of each video for training, or a skeleton video
    for sa animate, or converts a motion from one form to another. What was done is not done again. Prints the path.
    """
    flags = {
        "input": input or None,
        "output": output,
        "poses": poses,
        "layout": layout,
        "source": source,
        "model": model,
        "frames": frames,
        "fps": fps,
        "preview": preview,
        "lint": lint,
        "person": person,
        "align": align,
        "reference": reference,
        "smooth": smooth,
        "gap": gap,
        "every": every,
        "detect_threshold": detect_threshold,
        "workers": workers,
        "shard": shard,
        "ray": ray,
        "to": to,
        "order": order,
        "size": size,
        "device": device,
    }
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.preprocess import run  # OpenCV and ONNX Runtime start loading here, not earlier

    report = run.run(flags=flags, config_file=config, plan_only=plan, reporter=reporter)
    reporter.result(report.to_json(), report.summary())
    if report.exit_code:
        if report.message and not json:
            reporter.warning(report.message)
        raise typer.Exit(report.exit_code)
