"""``sa train``: clips and a model become a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import options_from
from stableanimator_cli.cli.downloads import with_download
from stableanimator_cli.config.train import TrainConfig

ResumeOpt = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        rich_help_panel=options.RUN,
        help="Resume a run where it was interrupted; --steps N extends a finished one to N steps.",
    ),
]
ExportOpt = Annotated[
    Literal["model", "upstream"] | None,
    typer.Option(
        "--export", rich_help_panel=options.RUN,
        help="Train nothing: write the best or last checkpoint of --resume RUN to -o FOLDER, as a self-contained "
        "model folder, or as unet.pth, pose_net.pth and face_encoder.pth.",
    ),
]  # fmt: skip


@options_from(TrainConfig)
def train(
    flags: dict[str, Any],
    config: options.ConfigOpt = None,
    resume: ResumeOpt = None,
    export: ExportOpt = None,
    plan: options.PlanOpt = False,
    yes: options.YesOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa train dataset/ -o runs/mine --preset finetune-24gb
    sa train --resume runs/mine

    Train or fine-tune a model on clips. The run folder holds checkpoints that are model folders, metrics and curves;
    RUN/model is the one to use. Interrupt at any time; --resume continues. Prints the path of the model.
    """
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.train import run  # imports torch

    def work() -> Any:
        return run.run(
            flags=flags, config_file=config, resumed=resume, export=export, plan_only=plan, reporter=reporter
        )

    report = with_download(work, reporter, yes=yes)
    if report is not None:  # rank 0 only
        reporter.result(report.to_json(), report.summary())
