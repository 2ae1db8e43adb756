"""``sa demo``: three drawn people, one motion, and whose face each of them has; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stableanimator_cli.cli import console, options

if TYPE_CHECKING:
    import numpy as np

    from stableanimator_cli.puppets.demo_sheet import PersonRow
    from stableanimator_cli.puppets.scene import Scene
    from stableanimator_cli.records import ModelFolder

FolderArg = Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write demo.mp4 and the other files to.")]
FigureOpt = Annotated[
    int, typer.Option("--figure", metavar="N", min=0, max=99_999, help="First of the people; the model never saw any.")
]
FramesOpt = Annotated[int, typer.Option("--frames", metavar="T", min=1, max=1000, help="Frames of the motion.")]

MODEL = "puppet"
PEOPLE = 3
SUFFIXES = ("png", "npz", "face.npy", "mp4", "json", "other-face.mp4", "other-face.json")
_MOTION = "wave"
_QUICK = {"steps": 8, "decode_chunk": 2}  # six renderings within a minute of two cores


def demo(
    folder: FolderArg = Path(),
    figure: FigureOpt = 10,
    frames: FramesOpt = 6,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa demo
    sa demo demo-folder --figure 7 --frames 24

    Animate three drawn people after one motion with the small model `puppet`, and each of them again with another
    person's face vector. Writes demo.mp4, demo.gif and demo.png (reference, motion, result, other face, and the
    similarity of faces below), and the files of each person to demo/. Prints the path of the video.
    """
    out = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.files import check_replaceable, locked_output

    parts = [folder / "demo" / f"person-{n}.{suffix}" for n in range(1, PEOPLE + 1) for suffix in SUFFIXES]
    check_replaceable(*(folder / f"demo.{suffix}" for suffix in ("mp4", "gif", "png")), *parts)
    with locked_output(folder, "sa demo", folder=True):
        _demo(folder, figure, frames, out)


def _demo(folder: Path, figure: int, frames: int, out: console.Console) -> None:
    from stableanimator_cli import catalogue
    from stableanimator_cli.media import VideoWriter, write_gif, write_picture
    from stableanimator_cli.puppets.demo_sheet import draw_demo, halve
    from stableanimator_cli.puppets.scene import sample_scene

    model = catalogue.open_model(MODEL)
    width, height = (int(side) for side in str(model.defaults["size"]).split("x"))
    scenes = [
        sample_scene("test", figure + n, size=(width, height), frames=frames, framing="portrait", behaviour=_MOTION)
        for n in range(PEOPLE)
    ]
    scenes = [scene.with_movements_of(scenes[0]) for scene in scenes]
    (folder / "demo").mkdir(exist_ok=True)
    vectors = [_write_inputs(folder / "demo" / f"person-{n}", scene, model) for n, scene in enumerate(scenes, 1)]
    people = [_animate_person(folder / "demo", n, scenes, vectors, model, out) for n in range(PEOPLE)]
    images = list(draw_demo(people))
    images += images[-2:0:-1]  # back to the first frame, so that the GIF repeats without a jump
    sides = images[0].shape[1], images[0].shape[0]
    with VideoWriter(folder / "demo.mp4", sides, scenes[0].fps) as video:
        for image in images:
            video.write(image)
    write_gif(folder / "demo.gif", [halve(image) for image in images], scenes[0].fps)
    write_picture(folder / "demo.png", images[frames - 1])
    result = {"output": str(folder / "demo.mp4"), "gif": str(folder / "demo.gif"), "sheet": str(folder / "demo.png")}
    similarities = {
        "similarity": [_mean(person.similarity) for person in people],
        "swapped_similarity": [_mean(person.swapped_similarity) for person in people],
    }
    out.result(result | similarities, result["output"])


def _write_inputs(stem: Path, scene: Scene, model: ModelFolder) -> np.ndarray:
    """Write a person's reference, motion and face vector; returns the vector float32[512]."""
    import numpy as np

    from stableanimator_cli.detect.face import FaceReader
    from stableanimator_cli.errors import NoFace
    from stableanimator_cli.media import write_picture
    from stableanimator_cli.motion.motion_file import save_motion, write_array

    width, height = scene.size
    image = scene.reference((2 * width, 2 * height)).image
    write_picture(_file(stem, "png"), image)
    save_motion(_file(stem, "npz"), scene.motion())
    faces = FaceReader(model.files["face"], model.face_channel_order, "cpu").faces(image)
    if not faces or faces[0].embedding is None:
        raise NoFace(f"{stem}.png: no face found", hint="choose another --figure")
    vector = np.asarray(faces[0].embedding)
    write_array(_file(stem, "face.npy"), vector)
    return vector


def _animate_person(
    folder: Path, n: int, scenes: list[Scene], vectors: list[np.ndarray], model: ModelFolder, out: console.Console
) -> PersonRow:
    """Animate person ``n`` with the own and with the next person's face vector, and measure both videos."""
    from stableanimator_cli.motion.skeleton import draw_frame
    from stableanimator_cli.puppets.demo_sheet import PersonRow

    stem, other = folder / f"person-{n + 1}", (n + 1) % PEOPLE
    result = _animate(stem, _file(stem, "mp4"), None, out)
    swapped = _animate(stem, _file(stem, "other-face.mp4"), _file(folder / f"person-{other + 1}", "face.npy"), out)
    motion = scenes[n].motion()
    return PersonRow(
        reference=scenes[n].reference().image,
        skeletons=[draw_frame(motion, index) for index in range(len(motion))],
        result=result,
        swapped=swapped,
        other=scenes[other].portrait().image,
        similarity=_similarity(result, vectors[n], model),
        swapped_similarity=_similarity(swapped, vectors[n], model),
    )


def _animate(stem: Path, output: Path, face: Path | None, out: console.Console) -> list[np.ndarray]:
    from stableanimator_cli.animate.run import run
    from stableanimator_cli.media import open_clip

    flags = {"reference": _file(stem, "png"), "motion": _file(stem, "npz"), "output": output, "model": MODEL}
    # Not resumed: an interrupted demo may have shown other people.
    run(flags=flags | _QUICK | {"face_embedding": face}, restart=True, reporter=out)
    return [frame.copy() for _, frame in open_clip(output).frames()]


def _similarity(frames: list[np.ndarray], vector: np.ndarray, model: ModelFolder) -> list[float]:
    """Cosine of the largest face of each frame with ``vector``; NaN where no face is found."""
    import numpy as np

    from stableanimator_cli.detect.face import FaceReader

    reader = FaceReader(model.files["face"], model.face_channel_order, "cpu")
    values = []
    for frame in frames:
        faces = reader.faces(frame)
        found = faces[0].embedding if faces else None
        norm = None if found is None else np.linalg.norm(found) * np.linalg.norm(vector)
        values.append(float("nan") if found is None else float(found @ vector / norm))
    return values


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if value == value]
    return round(sum(known) / len(known), 4) if known else None


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")
