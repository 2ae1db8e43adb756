"""``sa evaluate``: videos to scores, tables, a report; benches, ablations and a study of preference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.config.evaluate import EvaluateConfig

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
            "Leave out frames without a counterpart and list them; else they are an error.", _DEFAULTS, "truncate"
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
        "--bootstrap-samples", metavar="N", min=100, max=1_000_000,
        help=options.says("Draws of videos for the standard error of Frechet distances.", _DEFAULTS, "bootstrap_samples"),
    ),
]  # fmt: skip
SeedOpt = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", min=0, max=2**63 - 1,
        help=options.says("Seed of the intervals, and of the order of a study.", _DEFAULTS, "seed"),
    ),
]  # fmt: skip


BenchOpt = Annotated[
    str | None,
    typer.Option(
        "--bench",
        metavar="puppet|tiktok|unseen100|DIR",
        rich_help_panel=BENCH,
        help="Animate what is not animated yet, score it, and print our row under the published ones of Table 1. A "
        "folder holds videos/NAME.mp4, references/NAME.png, poses/NAME.npz. Default: none.",
    ),
]
DataOpt = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", rich_help_panel=BENCH, help="Where tiktok/ and unseen100/ lie. Default: $SA_DATA."
    ),
]
IdsOpt = Annotated[
    str | None,
    typer.Option(
        "--ids",
        metavar="NAME,NAME",
        rich_help_panel=BENCH,
        help="Only these videos of a bench. Default: 00335 to 00340 of tiktok, else all.",
    ),
]
FiguresOpt = Annotated[
    int | None,
    typer.Option(
        "--figures",
        metavar="N",
        min=1,
        max=10_000,
        rich_help_panel=BENCH,
        help=options.says("How many figures of the bench puppet.", _DEFAULTS, "figures"),
    ),
]
LengthOpt = Annotated[
    int | None,
    typer.Option(
        "--length",
        metavar="T",
        min=1,
        max=100_000,
        rich_help_panel=BENCH,
        help=options.says("Frames of each video of the bench puppet.", _DEFAULTS, "length"),
    ),
]
AnimateOpt = Annotated[
    Path | None,
    typer.Option(
        "--animate",
        metavar="SETTINGS.toml",
        rich_help_panel=BENCH,
        help="Settings of the animation, as sa animate --config takes them. Default: the model's own.",
    ),
]
RivalsOpt = Annotated[
    Path | None,
    typer.Option(
        "--baselines",
        metavar="DIR",
        rich_help_panel=BENCH,
        help="Videos of other systems, a folder each, scored as rows of the same table. Default: none.",
    ),
]
AblationOpt = Annotated[
    Literal["table2", "table3", "table4", "table5"] | None,
    typer.Option(
        "--ablation",
        rich_help_panel=BENCH,
        help="Score the variants of a table of the paper, on --bench. Default: none; the bench is puppet.",
    ),
]
VariantsOpt = Annotated[
    Path | None,
    typer.Option(
        "--variants",
        metavar="DIR",
        rich_help_panel=BENCH,
        help="A model folder a variant: ours, no-face-masks, no-face-encoder, addition, norm, ip-adapter, no-face ...",
    ),
]
SeedsOpt = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        metavar="N,N,N",
        rich_help_panel=BENCH,
        help="Seeds of sampling that an ablation is repeated with, three or more. Default: 0,1,2.",
    ),
]
StudyOpt = Annotated[
    bool | None,
    typer.Option(
        "--study",
        rich_help_panel=STUDY,
        help=options.says(
            "Write a page that asks people which of two videos is better; ours first, then the others.",
            _DEFAULTS,
            "study",
        ),
    ),
]
TallyOpt = Annotated[
    bool | None,
    typer.Option(
        "--tally",
        rich_help_panel=STUDY,
        help=options.says("Count answers of a study: files, or folders that hold them.", _DEFAULTS, "tally"),
    ),
]


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
    bench: BenchOpt = None,
    data: DataOpt = None,
    ids: IdsOpt = None,
    figures: FiguresOpt = None,
    length: LengthOpt = None,
    animate: AnimateOpt = None,
    rivals: RivalsOpt = None,
    ablation: AblationOpt = None,
    variants: VariantsOpt = None,
    seeds: SeedsOpt = None,
    study: StudyOpt = None,
    tally: TallyOpt = None,
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
    sa evaluate --bench puppet -o scores

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
        "bench": bench,
        "data": data,
        "ids": ids,
        "figures": figures,
        "length": length,
        "animate": animate,
        "rivals": rivals,
        "ablation": ablation,
        "variants": variants,
        "seeds": seeds,
        "study": study,
        "tally": tally,
        "draws": draws,
        "seed": seed,
        "device": device,
    }
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.evaluate import run  # numpy starts loading here, not earlier; torch with the task

    report = run.run(flags=flags, animate=_animate, config_file=config, reporter=reporter)
    for title, columns, rows in report.shown():
        reporter.table(title, columns, rows)
    reporter.result(report.to_json(), report.summary())
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _animate(flags: Mapping[str, Any], settings: Path | None) -> None:
    """``sa animate`` as benches call it: verbs are blind to one another, the command line is not."""
    from stableanimator_cli.animate import run

    run.run(flags=flags, config_file=settings, reporter=console.get())
