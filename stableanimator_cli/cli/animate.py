"""``sa animate``: an image, a motion and a model become a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import options_from
from stableanimator_cli.cli.downloads import with_download
from stableanimator_cli.config.animate import AnimateConfig

MoreMotions = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[MOTION...]", show_default=False, help="More motions: one video each, in the folder -o. Default: none."
    ),
]
JobsOpt = Annotated[
    Path | None,
    typer.Option(
        "--jobs", metavar="JOBS.toml", rich_help_panel=options.RUN,
        help="Animate a list: jobs = [{ reference = ..., motion = ..., output = ... }, ...], with options by name. "
        "Failed ones are named at the end; the same command resumes. Default: none.",
    ),
]  # fmt: skip


@options_from(AnimateConfig)
def animate(
    flags: dict[str, Any],
    more: MoreMotions = None,
    jobs: JobsOpt = None,
    config: options.ConfigOpt = None,
    plan: options.PlanOpt = False,
    card: options.CardOpt = None,
    restart: options.RestartOpt = False,
    yes: options.YesOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa animate person.png poses.mp4 -o out.mp4
    sa animate person.png dance.mp4 -o out.mp4 --model puppet --size 128x128 --plan

    Animate the person in REFERENCE with MOTION and keep the face. Prints the path of the video.
    """
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    if jobs is not None or more:
        from stableanimator_cli.animate.jobs import JobsReport, run_list

        def work_on_list() -> JobsReport:
            return run_list(
                flags=flags, more=more or [], file=jobs, config_file=config, plan=plan, card=card,
                restart=restart, reporter=reporter,
            )  # fmt: skip

        listed = with_download(work_on_list, reporter, yes=yes)
        reporter.result(listed.to_json(), listed.summary())
        if listed.message and not json:
            reporter.warning(listed.message)
        raise typer.Exit(listed.exit_code)
    from stableanimator_cli.animate import run  # imports numpy; torch is imported after the checks

    def work() -> Any:
        return run.run(flags=flags, config_file=config, plan_only=plan, restart=restart, reporter=reporter, card=card)

    report = with_download(work, reporter, yes=yes)
    reporter.result(report.to_json(), report.summary())
