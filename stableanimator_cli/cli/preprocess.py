"""``sa preprocess``: videos become clips, skeleton videos and motions."""

from __future__ import annotations

from typing import Any

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import options_from
from stableanimator_cli.cli.downloads import with_download
from stableanimator_cli.config.preprocess import PreprocessConfig


@options_from(PreprocessConfig)
def preprocess(
    flags: dict[str, Any],
    config: options.ConfigOpt = None,
    plan: options.PlanOpt = False,
    yes: options.YesOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa preprocess videos/ -o dataset
    sa preprocess dance.mp4 --poses poses.mp4 --align affine --reference person.png

    Detect people, keypoints and faces in videos. Writes one clip folder per video for training, or a skeleton video
    for sa animate, or converts a motion from one format to another. Finished clips are skipped. Prints the path.
    """
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.preprocess import run  # imports OpenCV and ONNX Runtime

    def work() -> run.Result:
        return run.run(flags=flags, config_file=config, plan_only=plan, reporter=reporter)

    report = with_download(work, reporter, yes=yes)
    reporter.result(report.to_json(), report.summary())
    if report.exit_code:
        if report.message and not json:
            reporter.warning(report.message)
        raise typer.Exit(report.exit_code)
