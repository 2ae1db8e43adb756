"""Options of face optimisation (``--preset`` and ``--refine-...``)."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from stableanimator_cli.cli.options import says
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.refine import RefineConfig

PANEL = "Keeping the face (HJB optimisation)"

PresetOpt = Annotated[
    Literal["fast", "standard", "released", "paper"] | None,
    typer.Option(
        "--preset",
        rich_help_panel=PANEL,
        help=says(
            "fast: no optimisation. standard: crop, 3 iterations, where a recogniser and a face are there. released: "
            "full, 3 iterations, rate 0.1 falling, Euler, as the authors' code. paper: Algorithm 1 as printed, 10 "
            "iterations, constant rate, each of 25 steps (few steps leave noise), Heun and churn (S_churn 40, S_min "
            "0.05, S_max 50, S_noise 1.003: EDM's values, the paper names none).",
            AnimateConfig,
            "preset",
        ),
    ),
]
FaceOpt = Annotated[
    Literal["auto", "off", "full", "crop"] | None,
    typer.Option(
        "--refine-face",
        rich_help_panel=PANEL,
        help=says(
            "full: decode whole frames; Adam then moves the whole picture a little, background too. crop: decode the "
            "face and what is near it only; the background is left alone.",
            RefineConfig,
            "face",
        ),
    ),
]
StepsOpt = Annotated[
    str | None,
    typer.Option(
        "--refine-steps",
        metavar="A:B",
        rich_help_panel=PANEL,
        help="Denoising steps that are refined, half-open. Default: 0:21 of 25, in proportion.",
    ),
]
ItersOpt = Annotated[
    int | None,
    typer.Option(
        "--refine-iters",
        metavar="K",
        rich_help_panel=PANEL,
        help=says("Adam iterations a step, 0 to 1000.", RefineConfig, "iterations"),
    ),
]
RateOpt = Annotated[
    float | None,
    typer.Option(
        "--refine-lr", metavar="X", rich_help_panel=PANEL, help=says("Adam's rate, above 0.", RefineConfig, "lr")
    ),
]
ScheduleOpt = Annotated[
    Literal["linear", "constant"] | None,
    typer.Option(
        "--refine-schedule",
        rich_help_panel=PANEL,
        help=says("The rate falls as 1 - step/steps, or stays.", RefineConfig, "schedule"),
    ),
]
AnchorOpt = Annotated[
    Literal["none", "background"] | None,
    typer.Option(
        "--refine-anchor",
        rich_help_panel=PANEL,
        help=says("background: what is not near a face stays as it is, in full mode too.", RefineConfig, "anchor"),
    ),
]
RegionOpt = Annotated[
    Literal["box", "frame"] | None,
    typer.Option(
        "--refine-region",
        rich_help_panel=PANEL,
        help=says("What is compared with the reference's face: its box, or the whole frame.", RefineConfig, "region"),
    ),
]
MinCsimOpt = Annotated[
    float | None,
    typer.Option(
        "--min-csim",
        metavar="X",
        rich_help_panel=PANEL,
        help="Least similarity (cosine, -1 to 1) of each window's faces to the reference; exit code 8 below it. "
        "Default: no gate.",
    ),
]
RedrawOpt = Annotated[
    int | None,
    typer.Option(
        "--redraw",
        metavar="N",
        rich_help_panel=PANEL,
        help=says("Draw windows that fail --min-csim again with other noise, N times at most.", RefineConfig, "gate_retries"),
    ),
]
