"""The verbs as Python functions: the results and errors of the command line, and a model that is loaded once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stableanimator_cli
from stableanimator_cli import Animator, animate, evaluate, preprocess, train
from stableanimator_cli.animate import video
from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine.backbones import denoising
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.puppets.scene import sample_scene
from tests.animate.clips import plain_picture
from tests.conftest import ROOT
from tests.media_samples import make_video, noise
from tests.tiny import waving


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an image (96x96) and a motion of six frames."""
    plain_picture(tmp_path / "person.png")
    save_motion(tmp_path / "poses.npz", waving(6))
    return tmp_path


@pytest.fixture
def options(tiny_model: Path) -> dict[str, object]:
    return {"model": tiny_model, "window": 4, "steps": 1, "allow_no_face": True, "device": "cpu", "seed": 3}


def inputs(place: Path) -> tuple[Path, Path]:
    return place / "person.png", place / "poses.npz"


def test_a_function_writes_what_the_command_writes(place, options):
    animation = animate(*inputs(place), place / "out.mp4", **options)
    assert isinstance(animation, Animation)
    assert open_clip(animation.video).count == animation.frames == 6
    words = [f"--{name.replace('_', '-')}" for name in options]
    typed = [word for pair in zip(words, options.values(), strict=True) for word in pair if word is not True]
    command = [sys.executable, "-m", "stableanimator_cli", "animate", *inputs(place), "-o", place / "typed.mp4", *typed]
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env={**_threads(), "CUDA_VISIBLE_DEVICES": ""})
    assert (place / "typed.mp4").read_bytes() == (place / "out.mp4").read_bytes()


def test_a_program_receives_live_previews_and_nothing_is_written_for_them(place, options):
    received: list[tuple[tuple[int, int], int, int]] = []

    def receive(image: Image.Image, step: Step) -> None:
        received.append((image.size, step.index, step.total))

    seven = {**options, "steps": 7}
    with Animator(**seven) as animator:
        plain = animator.animate(*inputs(place), place / "plain.mp4")
        watched = animator.animate(*inputs(place), place / "watched.mp4", on_preview=receive, preview_every=3)
        assert received == [((4 * 64, 64), index, 7) for index in (2, 5, 6)]  # and the last step
        assert watched.video.read_bytes() == plain.video.read_bytes()
        received.clear()
        frames = list(animator.frames(*inputs(place), on_preview=receive, preview="live", preview_every=7))
        assert len(frames) == 6
        assert received == [((4 * 64, 64), 6, 7)]
    assert not list(place.glob("*.live.png"))


def test_faces_are_optimised_in_the_inference_mode_of_a_caller(tmp_path):
    """ComfyUI runs all nodes in it."""
    scene = sample_scene("test", 3, framing="portrait", size=(64, 64), frames=1)
    write_image(tmp_path / "person.png", scene.reference((128, 128)).image)
    save_motion(tmp_path / "poses.npz", scene.motion())
    settings = {"size": "64x64", "steps": 1, "preset": "released", "refine_iters": 1, "device": "cpu"}
    with Animator("puppet", **settings) as animator:
        expected = list(animator.frames(*inputs(tmp_path)))
    with Animator("puppet", **settings) as animator, torch.inference_mode():
        frames = list(animator.frames(*inputs(tmp_path)))
        animation = animator.animate(*inputs(tmp_path), tmp_path / "out.mp4")
    assert np.array_equal(frames, expected)
    assert animation.faces_refined is not None


def _threads() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def test_an_animator_loads_once_and_its_frames_are_those_of_the_video(place, options, monkeypatch):
    opened, written = [], []
    decode = video.decode
    monkeypatch.setattr(video, "decode", lambda *args: (written.append(f) or f for f in decode(*args)))
    original = denoising.loaders
    monkeypatch.setattr(denoising, "loaders", lambda *args: opened.append(args) or original(*args))
    with Animator(**options) as animator:
        frames = list(animator.frames(*inputs(place)))
        again = list(animator.frames(*inputs(place)))
        animation = animator.animate(*inputs(place), place / "out.mp4")
        other_seed = list(animator.frames(*inputs(place), seed=4))
        assert len(opened) == 1
        animator.animate(*inputs(place), place / "half.mp4", dtype="bfloat16")
        assert len(opened) == 2  # other settings of the device
    assert np.array_equal(frames, again)
    assert not np.array_equal(frames, other_seed)
    assert animation.calls["unet"] == 4  # of this call alone: two windows, guided
    assert np.array_equal(frames, written[: animation.frames])


def test_a_plan_writes_nothing(place, options):
    before = sorted(place.iterdir())
    plan = animate(*inputs(place), place / "out.mp4", plan=True, **options)
    assert isinstance(plan, AnimationPlan)
    assert plan.to_json()["frames"] == 6
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"stepz": 3}, ConfigError, "--stepz"),
        ({"steps": "many"}, ConfigError, "--steps"),
        ({"size": (100, 100)}, ConfigError, "100x100"),
    ],
)
def test_mistakes_are_those_of_the_command_line(place, options, changed, error, message):
    with pytest.raises(error, match=message):
        animate(*inputs(place), place / "out.mp4", **{**options, **changed})


def test_frames_refuse_what_needs_a_video_before_anything_is_loaded(place, options):
    with Animator(**options) as animator:
        with pytest.raises(ConfigError, match="--min-csim"):
            animator.frames(*inputs(place), min_csim=0.5)
        with pytest.raises(BadInput, match=r"nobody\.png"):
            animator.frames(place / "nobody.png", place / "poses.npz")
        assert list(animator.frames(*inputs(place), output=place / "ignored.txt"))  # the output is not written
    assert sorted(file.name for file in place.iterdir()) == ["person.png", "poses.npz"]


def test_the_other_verbs(place):
    make_video(place / "a.mp4", noise(4, (64, 64)))
    make_video(place / "b.mp4", noise(4, (64, 64)))
    scores = evaluate(place / "a.mp4", place / "b.mp4", output=place / "scores", model="puppet")
    assert scores.exit_code == 0
    assert json.loads((place / "scores" / "scores.json").read_text())["videos"]
    preprocess(place / "poses.npz", output=place / "points", to="json")
    assert len(list((place / "points").glob("*.json"))) == 6
    with pytest.raises(ConfigError, match="--output"):
        train(place, model="puppet", steps=1)


def test_packages_stay_packages():
    from stableanimator_cli.animate import run

    assert stableanimator_cli.animate is animate
    assert run.run.__module__ == "stableanimator_cli.animate.run"
    with pytest.raises(AttributeError, match="animator"):
        stableanimator_cli.animator  # noqa: B018


def test_importing_the_functions_loads_nothing_heavy():
    probe = "import sys; from stableanimator_cli import animate, preprocess, train, evaluate, Animator; Animator(); "
    probe += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"torch", "numpy", "diffusers", "typer", "rich", "cv2", "PIL"})


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler, numpy 2
def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    """``docs/python.md``, in an empty folder with a portrait and its motion."""
    scene = sample_scene("val", 0, framing="portrait", size=(256, 256), clip=0, frames=2)
    Image.fromarray(scene.reference().image).save(tmp_path / "person.png")
    save_motion(tmp_path / "poses.npz", scene.motion())
    for index, people in enumerate(scene.motion().keypoints):
        Image.fromarray(draw_skeleton(people, (256, 256))).save(tmp_path / f"pose-{index}.png")
    inputs = {file.name for file in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SA_MODEL", "puppet")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), {})
    names = {file.name for file in tmp_path.iterdir()}
    made = {"out.mp4", "out.json", "1-0.png", "1-1.png", "2-0.png", "2-1.png", "pipeline-0.png"}
    assert names == inputs | made
