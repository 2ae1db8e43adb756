"""``sa replay``: repeat a run from its record and compare the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stableanimator_cli.cli import console, options

VideoArg = Annotated[
    Path,
    typer.Argument(
        metavar="OUT.mp4", help="A video of sa animate, or its folder of frames, with its record OUT.json beside it."
    ),
]
AgainOpt = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="AGAIN.mp4", help="The video to write. Default: OUT.replay.mp4."),
]
DeviceOpt = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="DEVICE",
        help="Render on auto, cpu, cuda, cuda:N or mps; output may differ. Default: the record's.",
    ),
]  # fmt: skip


def replay(
    video: VideoArg,
    output: AgainOpt = None,
    device: DeviceOpt = None,
    restart: options.RestartOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa replay out.mp4
    sa replay out.mp4 -o again.mp4 --json

    Repeat the run that made OUT.mp4 and check that it gives the same bytes. Inputs and weights are compared with their
    digests first. Exits with code 8 and prints the differences if it does not repeat. Prints the path of the new video.
    """
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.animate.replay import replay  # imports numpy; torch is imported after the record is read

    report = replay(video, output=output, device=device, restart=restart, reporter=reporter)
    reporter.result(report.to_json(), report.summary())
    if not report.exit_code:
        reporter.info(report.message)
        return
    if not json:
        reporter.warning(report.message)
    raise typer.Exit(report.exit_code)
