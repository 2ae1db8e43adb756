"""Options about what a rendering takes: memory, and what may be left out of the work. See ``options``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from stableanimator_cli.cli.options import MACHINE, SAMPLING, says
from stableanimator_cli.config.animate import DeviceConfig

FitOpt = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="6GB",
        rich_help_panel=MACHINE,
        help="Choose offload, pieces, chunks, weights and windows so that the predicted peak stays below so much "
        "memory, exact ways before approximate ones, and say what was chosen. Default: as given.",
    ),
]
WeightsOpt = Annotated[
    Literal["plain", "int8", "fp8"] | None,
    typer.Option(
        "--weights",
        rich_help_panel=MACHINE,
        help=says(
            "How the UNet's weights lie in memory: int8 and fp8 take one byte each and are approximate.",
            DeviceConfig,
            "quantization",
        ),
    ),
]
IntervalOpt = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval",
        metavar="LO:HI",
        rich_help_panel=SAMPLING,
        help="Approximate: guide only while the noise level is above LO and at most HI, of 700 down to 0.002; half the "
        "network calls outside. Default: off, guidance throughout.",
    ),
]
CacheOpt = Annotated[
    str | None,
    typer.Option(
        "--cache-features",
        metavar="off|N",
        rich_help_panel=SAMPLING,
        help="Approximate: compute the whole network in every N-th step only, and in those between take its deep "
        "features again. Default: off, every step.",
    ),
]
CompileOpt = Annotated[
    Literal["off", "blocks"] | None,
    typer.Option(
        "--compile",
        rich_help_panel=MACHINE,
        help=says(
            "blocks: the UNet's blocks become compiled code, equal within rounding; takes minutes, so it is for long "
            "runs, and a compiler.",
            DeviceConfig,
            "compile",
        ),
    ),
]
GraphsOpt = Annotated[
    bool | None,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs",
        rich_help_panel=MACHINE,
        help="Record the UNet's calls and replay them: for small frames on fast CUDA cards, and no --offload. "
        "Default: off.",
    ),
]
LastOpt = Annotated[
    bool | None,
    typer.Option(
        "--channels-last/--no-channels-last",
        rich_help_panel=MACHINE,
        help="Lay out kernels of convolutions channels last, equal within rounding; `sa bench unet vae` tells whether "
        "it pays. Default: off.",
    ),
]
Tf32Opt = Annotated[
    bool | None,
    typer.Option(
        "--tf32/--no-tf32",
        rich_help_panel=MACHINE,
        help="Approximate: compute float32 in TF32 on a CUDA card, with --dtype float32. Default: off, exact float32.",
    ),
]
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
            "ff_chunks",
        ),
    ),
]
