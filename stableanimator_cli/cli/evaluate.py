"""``sa evaluate``: videos to scores, tables, a report; benches, ablations and a study of preference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import options_from
from stableanimator_cli.cli.downloads import with_download
from stableanimator_cli.config.evaluate import EvaluateConfig


@options_from(EvaluateConfig)
def evaluate(
    flags: dict[str, Any],
    config: options.ConfigOpt = None,
    yes: options.YesOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa evaluate out.mp4 truth.mp4 -o scores
    sa evaluate made/ truth/ -o scores --protocol disco256 --model puppet
    sa evaluate out.mp4 --reference-picture person.png --min-csim 0.6
    sa evaluate --bench puppet -o scores

    Score videos against their ground truth, or without one: pixels, perception, identity, motion, flicker, seams. Every
    number with its protocol, network and interval; what needs weights that are not here is named with the command that
    gets them. Prints the path of scores.json.
    """
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.evaluate import run  # numpy starts loading here, not earlier; torch with the task

    def work() -> run.Result:
        return run.run(flags=flags, animate=_animate, config_file=config, reporter=reporter)

    report = with_download(work, reporter, yes=yes)
    for title, columns, rows in report.shown():
        reporter.table(title, columns, rows)
    reporter.result(report.to_json(), report.summary())
    if report.failure is not None and not json:  # the JSON has it
        raise report.failure
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _animate(flags: Mapping[str, Any], settings: Path | None) -> None:
    """``sa animate`` as benches call it: verbs are blind to one another, the command line is not."""
    from stableanimator_cli.animate import run

    run.run(flags=flags, config_file=settings, reporter=console.get())
