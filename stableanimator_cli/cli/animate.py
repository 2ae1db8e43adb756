"""``sa animate``: an image, a motion and a model become a video."""

from __future__ import annotations

from typing import Any

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import options_from
from stableanimator_cli.cli.downloads import with_download
from stableanimator_cli.config.animate import AnimateConfig


@options_from(AnimateConfig)
def animate(
    flags: dict[str, Any],
    config: options.ConfigOpt = None,
    plan: options.PlanOpt = False,
    restart: options.RestartOpt = False,
    yes: options.YesOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa animate person.png poses.mp4 -o out.mp4
    sa animate person.png dance.mp4 -o out.mp4 --model puppet --size 128x128 --plan

    Animate the person in REFERENCE after MOTION and keep the face. Prints the path of the video.
    """
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.animate import run  # imports numpy; torch is imported after the checks

    def work() -> Any:
        return run.run(flags=flags, config_file=config, plan_only=plan, restart=restart, reporter=reporter)

    report = with_download(work, reporter, yes=yes)
    reporter.result(report.to_json(), report.summary())
