"""Small valid files of every kind that ``sa`` reads: what the cases of the fuzz damage. Made once, by ``sa`` itself
where it writes such files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIZE = "64x64"
STEPS = ("--steps", "1", "--device", "cpu")


def build(folder: Path, sa: Callable[..., int]) -> Path:
    """Write the corpus; ``sa`` runs a command in ``folder`` and returns its exit code. Models go into ``models``."""
    from stableanimator_cli.config.animate import AnimateConfig
    from stableanimator_cli.config.schema import to_toml
    from stableanimator_cli.media import write_image
    from stableanimator_cli.motion.motion_file import load_motion
    from stableanimator_cli.puppets.scene import sample_scene
    from tests.evaluate.samples import changed, drawn, noisy, write
    from tests.train.clip_folders import write_clip, write_upstream

    folder.mkdir(parents=True)
    _models(folder / "models")
    frames = [frame.image for frame in sample_scene("test", 60_000, size=(64, 64), frames=6).clip()]
    for name in ("ref.png", "ref.jpg"):
        write_image(folder / name, frames[0])
    for index, frame in enumerate(frames[:4]):
        write_image(folder / "frames" / f"frame_{index}.png", frame)
    write(folder / "videos" / "dance.mp4", frames)
    shutil.copyfile(folder / "videos" / "dance.mp4", folder / "dance.mp4")
    (folder / "list.txt").write_text("videos/dance.mp4\n# a comment\nref.jpg\n")

    def run(*words: str) -> None:
        if (code := sa(*words)) != 0:
            raise RuntimeError(f"sa {' '.join(words)} left with {code} while the corpus was made")

    run("preprocess", "dance.mp4", "-o", "clips", "--model", "puppet")
    shutil.copyfile(next((folder / "clips").glob("*/motion.npz")), folder / "poses.npz")
    run("preprocess", "poses.npz", "-o", "poses.json")
    run("preprocess", "poses.npz", "-o", "skeletons.mp4")
    run("preprocess", "poses.npz", "-o", "json")
    run("preprocess", "poses.npz", "-o", "points.npy")
    (folder / "skeletons.npz").unlink(missing_ok=True)
    np.save(folder / "face.npy", np.linspace(-1, 1, 512, dtype=np.float32))
    config = AnimateConfig(reference=Path("ref.png"), motion=Path("poses.npz"), output=Path("out.mp4"))
    (folder / "animate.toml").write_text(to_toml(config))
    (folder / "preprocess.toml").write_text('gap = 3\nsmooth = 1.0\nlayout = "clips"\n')
    (folder / "train.toml").write_text("seed = 3\n[saving]\nkeep = 2\n[[stage]]\nname = 'a'\nsteps = 1\nframes = 1\n")
    (folder / "evaluate.toml").write_text("seed = 3\n")
    write_clip(folder / "data" / "clip0", 3)
    write_upstream(folder / "upstream" / "rec" / "00001", 3)
    (folder / "upstream" / "video_rec_path.txt").write_text("rec/00001\n")
    run("animate", "ref.png", "poses.npz", "-o", "made.mp4", "--model", "models/tiny", "--size", SIZE, *STEPS,
        "--frames", "0:2", "--allow-no-face")  # fmt: skip
    run("train", "data", "-o", "run", "--model", "models/tiny", *STEPS, "--frames", "1", "--train", "adapters",
        "--batch", "1", "--workers", "0", "--warmup", "0")  # fmt: skip
    truth = write(folder / "truth" / "figure.mp4", drawn(0, frames=4))
    changed(truth, folder / "predicted" / "figure.mp4", noisy(4))
    changed(truth, folder / "rivals" / "other" / "figure.mp4", noisy(9))
    study = {
        "format": 1,
        "study": "0123456789ab",
        "ours": "ours",
        "systems": ["ours", "other"],
        "cases": [{"name": "a"}],
    }
    answer = {"case": 0, "left": 0, "right": 1, "preferred": {"L1": 0, "CSIM": 1}}
    answer["preferred"] = dict.fromkeys(_questions(), 1)
    (folder / "study").mkdir()
    (folder / "study" / "study.json").write_text(json.dumps(study))
    answers = {"format": 1, "study": study["study"], "answers": [answer]}
    (folder / "study" / "answers.json").write_text(json.dumps(answers))
    run("puppets", "puppets", "--videos", "1", "--frames", "2", "--size", SIZE)
    assert len(load_motion(folder / "poses.npz")) == len(frames)
    return folder


def _questions() -> tuple[str, ...]:
    from stableanimator_cli.evaluate.study import QUESTIONS

    return tuple(QUESTIONS)


def _models(folder: Path) -> None:
    import torch

    from tests import onnx_samples
    from tests.random_model import TINY, write_model

    write_model(folder / "tiny", TINY, dtype=torch.float32)
    onnx_samples.faces(folder / "tiny" / "faces")
    file = folder / "tiny" / "model.toml"
    file.write_text(file.read_text() + '\n[components.face]\nfile = "faces"\n')
