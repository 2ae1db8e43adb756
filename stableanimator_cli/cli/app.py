"""The app: registers the verbs and does nothing else. A verb's heavy imports are inside its body."""

from __future__ import annotations

from typing import Annotated

import typer

from stableanimator_cli import __version__
from stableanimator_cli.cli import models
from stableanimator_cli.cli.animate import animate
from stableanimator_cli.cli.bench import bench
from stableanimator_cli.cli.demo import demo
from stableanimator_cli.cli.doctor import doctor
from stableanimator_cli.cli.evaluate import evaluate
from stableanimator_cli.cli.preprocess import preprocess
from stableanimator_cli.cli.puppets import puppets
from stableanimator_cli.cli.replay import replay
from stableanimator_cli.cli.train import train

PIPELINE = "Pipeline"
WORKSHOP = "Workshop"

app = typer.Typer(
    name="sa",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sa {__version__}")
        raise typer.Exit


@app.callback()
def sa(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Animate a person in a picture after a motion, and keep the face."""


app.command(rich_help_panel=PIPELINE, no_args_is_help=True, short_help="Videos become clips and motions.")(preprocess)
app.command(rich_help_panel=PIPELINE, no_args_is_help=True, short_help="A picture and a motion become a video.")(
    animate
)
app.command(rich_help_panel=PIPELINE, no_args_is_help=True, short_help="Clips and a model become a model.")(train)
app.command(rich_help_panel=PIPELINE, no_args_is_help=True, short_help="Videos become scores, tables and a report.")(
    evaluate
)
app.command(rich_help_panel=WORKSHOP, short_help="Draw a figure and animate it with the small model.")(demo)
app.add_typer(models.app, rich_help_panel=WORKSHOP)
app.command(rich_help_panel=WORKSHOP, short_help="Draw figures whose motion and faces are known exactly.")(puppets)
app.command(rich_help_panel=WORKSHOP, no_args_is_help=True, short_help="Repeat a run and compare its bytes.")(replay)
app.command(rich_help_panel=WORKSHOP, short_help="What would break a run here, and what mends it.")(doctor)
app.command(
    rich_help_panel=WORKSHOP, no_args_is_help=True, short_help="Measure: cost, speed and memory, side by side."
)(bench)
