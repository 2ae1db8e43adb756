"""``sa demo``: the whole way from a drawn figure and a motion to a video, with nothing downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stableanimator_cli.cli import console, options

FolderArg = Annotated[Path, typer.Argument(metavar="DIR", help="Where demo.mp4 and the other files go.")]
FigureOpt = Annotated[
    int, typer.Option("--figure", metavar="N", min=0, max=99_999, help="Which figure; none was ever trained on.")
]
FramesOpt = Annotated[int, typer.Option("--frames", metavar="T", min=1, max=1000, help="Frames of the motion.")]

MODEL = "puppet"
SHOWN = 5  # moments of the motion in demo.png


def demo(
    folder: FolderArg = Path(),
    figure: FigureOpt = 0,
    frames: FramesOpt = 16,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa demo
    sa demo demo-folder --figure 7 --frames 24

    Draw a figure and a motion of it, and let the small model `puppet` animate the figure's picture after the motion.
    Writes demo.reference.png, demo.poses.npz, demo.mp4, demo.json and demo.png (the figure, then moments of the motion:
    the truth above, its skeletons, what the model made below). Prints the video's path.
    """
    out = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.files import check_replaceable, locked_output

    names = ("reference.png", "poses.npz", "mp4", "json", "png")
    check_replaceable(*(folder / f"demo.{name}" for name in names))
    with locked_output(folder, "sa demo", folder=True):
        _demo(folder, figure, frames, out)


def _demo(folder: Path, figure: int, frames: int, out: console.Console) -> None:
    import numpy as np

    from stableanimator_cli import catalogue
    from stableanimator_cli.animate.run import run
    from stableanimator_cli.media import open_clip, write_picture
    from stableanimator_cli.motion.motion_file import save_motion
    from stableanimator_cli.motion.skeleton import draw_frame
    from stableanimator_cli.puppets.scene import sample_scene

    card = catalogue.entry(MODEL)
    model = catalogue.open_model(MODEL)
    width, height = (int(side) for side in str(model.defaults["size"]).split("x"))
    scene = sample_scene("test", figure, size=(width, height), frames=frames)
    truth, motion = [frame.image for frame in scene.clip()], scene.motion()
    reference, poses = folder / "demo.reference.png", folder / "demo.poses.npz"
    write_picture(reference, scene.reference((4 * width, 4 * height)).image)
    save_motion(poses, motion)
    if not card.training:
        out.warning(f"the weights of {MODEL} are not trained yet: its video is coloured noise, the way to it is real")
    flags = {"reference": reference, "motion": poses, "output": folder / "demo.mp4", "model": MODEL}
    flags["allow_no_face"] = "face" not in model.files or None
    report = run(flags=flags, restart=True, reporter=out)  # a killed demo may have shown another figure

    shown = np.linspace(0, frames - 1, min(SHOWN, frames)).round().astype(int)
    made = [frame for _, frame in open_clip(folder / "demo.mp4").frames()]
    rows = (truth, [draw_frame(motion, index) for index in range(frames)], made)
    first = np.asarray(scene.reference((width, height)).image)
    blank = np.zeros_like(first)
    sides = (first, blank, blank)
    sheet = [np.concatenate([side, *(row[i] for i in shown)], 1) for side, row in zip(sides, rows, strict=True)]
    write_picture(folder / "demo.png", np.concatenate(sheet, 0))
    out.result(report.to_json() | {"sheet": str(folder / "demo.png")}, report.summary())
