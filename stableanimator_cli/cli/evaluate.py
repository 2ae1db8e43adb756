"""``sa evaluate``: videos to scores, tables, a report; benches, ablations and a study of preference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.config_evaluate import EvaluateConfig

BENCH = "Benches and ablations"
STUDY = "Study of preference"
_DEFAULTS = EvaluateConfig

InputsArg = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[PREDICTED REFERENCE]",
        help="What was made, and the ground truth: a video or a folder of pictures, or a folder of such, paired "
        "by name. With --study: folders of videos, ours first. With --tally: answers.",
    ),
]
OutputOpt = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="SCORES",
        help="The folder to write: scores.json, scores.csv, scores.tex, curves.jsonl, report.html, videos/.",
    ),
]  # fmt: skip
ProtocolOpt = Annotated[
    Literal["disco256", "native"] | None,
    typer.Option(
        "--protocol",
        help="disco256: central square at 256x256, numbers as published tables have them; native: as the videos are. "
        "Default: disco256 for tiktok and unseen100, else native.",
    ),
]
TruncateOpt = Annotated[
    bool | None,
    typer.Option(
        "--truncate",
        help=options.says(
            "Let both videos end with the shorter; else unequal counts are an error.", _DEFAULTS, "truncate"
        ),
    ),
]
PictureOpt = Annotated[
    Path | None,
    typer.Option(
        "--reference-picture", metavar="PICTURE|DIR",
        help="The picture that was animated, or a folder with one a video, for CSIM. Default: frame 0 of REFERENCE.",
    ),
]  # fmt: skip
PosesOpt = Annotated[
    Path | None,
    typer.Option(
        "--poses", metavar="MOTION|DIR",
        help="The motion that drove it (.npz, OpenPose .json), or a folder with one a video. "
        "Default: read from REFERENCE by the detectors.",
    ),
]  # fmt: skip
BordersOpt = Annotated[
    str | None,
    typer.Option(
        "--borders", metavar="N,N",
        help="First frames of windows and decoded chunks, for the seam score. Default: what the run record tells.",
    ),
]  # fmt: skip
JudgeOpt = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="FILE.onnx|NAME|FOLDER",
        help="The independent face recogniser. Default: the model's judge, else buffalo_l.",
    ),
]  # fmt: skip
DrawsOpt = Annotated[
    int | None,
    typer.Option(
        "--draws", metavar="N", min=100, max=1_000_000,
        help=options.says("How often videos are drawn anew for the intervals.", _DEFAULTS, "draws"),
    ),
]  # fmt: skip
SeedOpt = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", min=0, max=2**63 - 1,
        help=options.says("Seed of the intervals, and of the order of a study.", _DEFAULTS, "seed"),
    ),
]  # fmt: skip


def evaluate(
    inputs: InputsArg = None,
    output: OutputOpt = None,
    protocol: ProtocolOpt = None,
    truncate: TruncateOpt = None,
    reference_picture: PictureOpt = None,
    poses: PosesOpt = None,
    borders: BordersOpt = None,
    model: options.ModelOpt = None,
    judge: JudgeOpt = None,
    draws: DrawsOpt = None,
    seed: SeedOpt = None,
    device: options.DeviceOpt = None,
    config: options.ConfigOpt = None,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa evaluate out.mp4 truth.mp4 -o scores
    sa evaluate made/ truth/ -o scores --protocol disco256 --model puppet

    Score videos against their ground truth: pixels, perception, identity, motion, flicker, seams. Every number with its
    protocol, network and interval; what needs weights that are not here is named with the command that gets them.
    Prints the path of scores.json.
    """
    flags = {
        "inputs": inputs or None,
        "output": output,
        "protocol": protocol,
        "truncate": truncate,
        "reference_picture": reference_picture,
        "poses": poses,
        "borders": borders,
        "model": model,
        "judge": judge,
        "draws": draws,
        "seed": seed,
        "device": device,
    }
    talk = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.evaluate import run  # numpy, OpenCV and torch start loading here, not earlier

    report = run.run(flags=flags, animate=_animate, config_file=config, talk=talk)
    for title, columns, rows in report.shown():
        talk.table(title, columns, rows)
    talk.result(report.to_json(), report.summary())
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _animate(flags: Mapping[str, Any]) -> None:
    """``sa animate`` as benches call it: verbs are blind to one another, the command line is not."""
    from stableanimator_cli.animate import run

    run.run(flags=flags, talk=console.get())
