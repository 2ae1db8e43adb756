"""Options about what a rendering takes: memory, and what may be left out of the work. See ``options``."""

from __future__ import annotations

from typing import Annotated

import typer

from stableanimator_cli.cli.options import MACHINE, says
from stableanimator_cli.config import DeviceConfig

PiecesOpt = Annotated[
    int | None,
    typer.Option(
        "--ff-pieces",
        metavar="N",
        min=1,
        max=256,
        rich_help_panel=MACHINE,
        help=says(
            "Parts that feed-forward layers are computed in: more need less memory, equal within rounding.",
            DeviceConfig,
            "pieces",
        ),
    ),
]
