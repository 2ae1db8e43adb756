"""``sa puppets``: drawn characters with known ground truth, as videos, images and files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stableanimator_cli.cli import console, options

FolderArg = Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write or to complete.")]
VideosOpt = Annotated[int, typer.Option("--videos", metavar="N", min=1, max=100_000, help="Number of videos.")]
FramesOpt = Annotated[int, typer.Option("--frames", metavar="T", min=1, help="Frames per video.")]
SizeOpt = Annotated[str, typer.Option("--size", metavar="WxH", help="Width and height in pixels, both even.")]
FpsOpt = Annotated[str, typer.Option("--fps", metavar="RATE", help="Frames per second, as 25 or 30000/1001.")]
PeopleOpt = Annotated[int, typer.Option("--people", metavar="1|2|3", min=1, max=3, help="People per video.")]
SeedOpt = Annotated[
    int,
    typer.Option(
        "--seed", metavar="K", min=0, max=1_000_000, help="Seed of characters and movements; two seeds share none."
    ),
]
SplitOpt = Annotated[
    Literal["train", "val", "test"],
    typer.Option("--split", help="Split of characters and movements; two splits share none."),
]
FramingOpt = Annotated[
    Literal["half", "whole", "mixed", "portrait"],
    typer.Option(
        "--framing", help="Head and trunk, head to foot, a mix of both, or a large head that faces the viewer."
    ),
]
ReferenceFirstOpt = Annotated[
    bool,
    typer.Option("--reference-first", help="Begin each video with its reference drawing, one frame more."),
]


def puppets(
    folder: FolderArg,
    videos: VideosOpt = 8,
    frames: FramesOpt = 16,
    size: SizeOpt = "128x128",
    fps: FpsOpt = "8",
    people: PeopleOpt = 1,
    seed: SeedOpt = 0,
    split: SplitOpt = "train",
    framing: FramingOpt = "half",
    reference_first: ReferenceFirstOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa puppets figures
    sa puppets figures-test --videos 4 --size 256x256 --people 2 --split test

    Draw moving characters: videos, reference images, and the ground truth of every keypoint and face in them. Run the
    same command to resume an interrupted run. Prints the folder.
    """
    out = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.config.parse import parse_fps, parse_size
    from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets

    plan = PuppetPlan(
        folder=folder,
        videos=videos,
        frames=frames,
        size=parse_size(size),
        fps=parse_fps(fps),
        people=people,
        seed=seed,
        split=split,
        framing=framing,
        reference_first=reference_first,
    )
    report = write_puppets(plan, out)
    out.result(report.to_json(), report.summary())
