"""``sa doctor``: problems of this machine that would break a run, and whether it can animate with a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import complete_model

if TYPE_CHECKING:
    from stableanimator_cli.animate.capacity import Capacity
    from stableanimator_cli.doctor import Diagnosis

FRAMES = 72

ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME|FOLDER", autocompletion=complete_model,
        help="Print instead whether this machine can animate with this model, with which settings, and how long it "
        "takes. The model need not be downloaded.",
    ),
]  # fmt: skip
SizeOpt = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Size of the video, with --model. Default: the model's own.")
]
FramesOpt = Annotated[
    int | None,
    typer.Option(
        "--frames", metavar="N", min=1, max=1_000_000, help=f"Length of the video, with --model. Default: {FRAMES}."
    ),
]
DeviceOpt = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps, with --model. Default: auto."),
]


def doctor(
    model: ModelOpt = None,
    size: SizeOpt = None,
    frames: FramesOpt = None,
    device: DeviceOpt = None,
    card: options.CardOpt = None,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """\b
    sa doctor
    sa doctor --model stableanimator --size 576x1024 --card 4090

    Check what a run needs: compatible packages, encoders, the GPU, complete models, free space on disks. Each finding
    has the command that mends it. Exits with code 8 if a check fails, or if the model does not fit.
    """
    reporter = console.configure(json=json, quiet=quiet)
    diagnosis: Diagnosis | Capacity
    if all(option is None for option in (model, size, frames, device, card)):
        from stableanimator_cli.doctor import examine

        diagnosis = examine()
    else:
        from stableanimator_cli.config.parse import check_device
        from stableanimator_cli.devices import check_device_exists

        device = device or "auto"
        check_device(device)
        check_device_exists(device)
        from stableanimator_cli.animate.capacity import examine_model  # imports torch

        diagnosis = examine_model(model=model, size=size, frames=frames or FRAMES, device=device, card=card)
    reporter.result(diagnosis.to_json(), diagnosis.summary())
    if diagnosis.exit_code:
        if not json:
            reporter.warning(diagnosis.message)
        raise typer.Exit(diagnosis.exit_code)
