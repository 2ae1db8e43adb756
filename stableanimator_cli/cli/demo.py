"""``sa demo``: three drawn people, one motion, and whose face each of them has; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stableanimator_cli.cli import console, options

if TYPE_CHECKING:
    import numpy as np

    from stableanimator_cli.detect.face import FaceReader
    from stableanimator_cli.engine.engine import EngineCache
    from stableanimator_cli.puppets.demo_sheet import PersonRow
    from stableanimator_cli.puppets.scene import Scene
    from stableanimator_cli.records import Motion

FolderArg = Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write demo.mp4 and the other files to.")]
FigureOpt = Annotated[
    int,
    typer.Option(
        "--figure", metavar="N", min=0, max=99_999, help="First of the people, none of whom the model was trained on."
    ),
]
FramesOpt = Annotated[int, typer.Option("--frames", metavar="T", min=1, max=1000, help="Frames of the motion.")]

MODEL = "puppet"
PEOPLE = 3
SUFFIXES = ("png", "npz", "face.npy", "mp4", "json", "other-face.mp4", "other-face.json")
_MOTION = "wave"
_QUICK = {"preset": "quick", "decode_chunk": 2}  # six renderings within a minute of two cores


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

    Animate three drawn people with one motion by the small model `puppet`, and each of them again with another
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
    from stableanimator_cli.config.parse import parse_size
    from stableanimator_cli.detect.face import FaceReader
    from stableanimator_cli.engine.engine import EngineCache
    from stableanimator_cli.files import translate_os_errors
    from stableanimator_cli.media import VideoWriter, write_animation, write_image
    from stableanimator_cli.puppets.demo_sheet import draw_demo, halve
    from stableanimator_cli.puppets.scene import sample_scene

    model = catalogue.open_model(MODEL, ("face",))
    size = parse_size(model.defaults["size"])
    scenes = [
        sample_scene("test", figure + n, size=size, frames=frames, framing="portrait", behaviour=_MOTION)
        for n in range(PEOPLE)
    ]
    # the second person's clip: with the default --figure it begins with open eyes and shows both hands
    scenes = [scene.with_movements_of(scenes[1]) for scene in scenes]
    parts = folder / "demo"
    with translate_os_errors(parts):
        parts.mkdir(exist_ok=True)
    reader = FaceReader(model.files["face"], model.face_channel_order, "cpu")
    inputs = [_write_inputs(parts / f"person-{n}", scene, reader) for n, scene in enumerate(scenes, 1)]
    with EngineCache() as engines:
        people = [_animate_person(n, scenes, inputs, reader, engines, out) for n in range(PEOPLE)]
    images = list(draw_demo(people))
    order = [*range(frames), *range(frames - 2, 0, -1)]  # and back, so that the GIF repeats without a jump
    sides = images[0].shape[1], images[0].shape[0]
    with VideoWriter(folder / "demo.mp4", sides, scenes[0].fps) as video:
        for index in order:
            video.write(images[index])
    small = [halve(image) for image in images]
    write_animation(folder / "demo.gif", [small[index] for index in order], scenes[0].fps)
    write_image(folder / "demo.png", images[-1])
    result = {"output": str(folder / "demo.mp4"), "gif": str(folder / "demo.gif"), "sheet": str(folder / "demo.png")}
    similarities = {
        "similarity": [_mean(person.similarity) for person in people],
        "swapped_similarity": [_mean(person.swapped_similarity) for person in people],
    }
    out.result(result | similarities, result["output"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """The files of one person, ``stem`` and a suffix, and what they hold: motion and face vector float32[512]."""

    stem: Path
    motion: Motion
    vector: np.ndarray

    def file(self, suffix: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{suffix}")


def _write_inputs(stem: Path, scene: Scene, reader: FaceReader) -> _Inputs:
    """Write a person's reference, motion and face vector. Raises ``NoFace`` if the reference shows none."""
    from stableanimator_cli.errors import NoFace
    from stableanimator_cli.media import write_image
    from stableanimator_cli.motion.motion_file import save_motion, write_array

    width, height = scene.size
    image = scene.reference((2 * width, 2 * height)).image
    faces = reader.faces(image)
    if not faces or faces[0].embedding is None:
        raise NoFace(f"{stem}.png: no face found", hint="choose another --figure")
    inputs = _Inputs(stem=stem, motion=scene.motion(), vector=faces[0].embedding)
    write_image(inputs.file("png"), image)
    save_motion(inputs.file("npz"), inputs.motion)
    write_array(inputs.file("face.npy"), inputs.vector)
    return inputs


def _animate_person(
    n: int,
    scenes: list[Scene],
    inputs: list[_Inputs],
    reader: FaceReader,
    engines: EngineCache,
    out: console.Console,
) -> PersonRow:
    """Animate person ``n`` with the own and with the next person's face vector, and measure both videos."""
    from stableanimator_cli.motion.skeleton import draw_frame
    from stableanimator_cli.puppets.demo_sheet import PersonRow

    person, other = inputs[n], (n + 1) % PEOPLE
    out.info(f"person {n + 1} of {PEOPLE}")
    result = _animate(person, person.file("mp4"), None, engines, out)
    out.info(f"person {n + 1} of {PEOPLE}, with the face vector of person {other + 1}")
    swapped = _animate(person, person.file("other-face.mp4"), inputs[other].file("face.npy"), engines, out)
    return PersonRow(
        reference=scenes[n].reference().image,
        skeletons=[draw_frame(person.motion, index) for index in range(len(person.motion))],
        result=result,
        swapped=swapped,
        other=scenes[other].portrait().image,
        similarity=_similarity(result, person.vector, reader),
        swapped_similarity=_similarity(swapped, person.vector, reader),
    )


def _animate(
    person: _Inputs, output: Path, face: Path | None, engines: EngineCache, out: console.Console
) -> list[np.ndarray]:
    from stableanimator_cli.animate.run import run
    from stableanimator_cli.media import open_clip

    flags = {"reference": person.file("png"), "motion": person.file("npz"), "output": output, "model": MODEL}
    flags["dtype"] = _dtype()
    # Not resumed: an interrupted demo may have shown other people.
    other = {"face_embedding": face, "hide_reference_face": face is not None}
    run(flags=flags | _QUICK | other, restart=True, reporter=out, engines=lambda: engines)
    return [frame.copy() for _, frame in open_clip(output).frames()]


def _dtype() -> str:
    """bfloat16 on a CPU that computes in it, which takes two thirds of the time; else the usual type of the device."""
    from stableanimator_cli.config.animate import DeviceConfig
    from stableanimator_cli.engine.device import DevicePlan, has_bfloat16

    device = DevicePlan.of(DeviceConfig()).device
    return "bfloat16" if device.type == "cpu" and has_bfloat16(device) else "auto"


def _similarity(frames: list[np.ndarray], vector: np.ndarray, reader: FaceReader) -> np.ndarray:
    """Cosine per frame of the largest face with ``vector``, float[t]; NaN if a frame shows no face."""
    from stableanimator_cli.animate.identity_gate import IdentityMeter

    meter = IdentityMeter(reader, vector)
    for frame in frames:
        meter.add(frame)
    return meter.result().similarity


def _mean(similarity: np.ndarray) -> object:
    """Mean over the frames that show a face; None if none does."""
    from stableanimator_cli.animate.identity_gate import FaceSimilarity

    return FaceSimilarity(similarity=similarity).to_json()["mean"]
