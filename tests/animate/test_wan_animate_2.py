"""``sa animate`` with Wan-Animate-2: driven by a video, resumed and replayed, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stableanimator_cli import catalogue
from stableanimator_cli.animate import pipeline
from stableanimator_cli.animate.driving import open_driving
from stableanimator_cli.animate.driving_pixels import letterboxed
from stableanimator_cli.animate.identity_gate import FaceSimilarity
from stableanimator_cli.animate.people_faces import with_people
from stableanimator_cli.animate.reference_face import ReferenceFace
from stableanimator_cli.animate.replay import replay
from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.animate.run import run
from stableanimator_cli.backbone_facts import BACKBONES
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.engine.backbones.wan_animate_2 import BACKBONE
from stableanimator_cli.errors import BadInput, ModelDamaged
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.records import Face
from tests.animate.clips import Heard, clip_of, face_picture, skeleton_video
from tests.animate.segment_runs import OF_SEGMENTS, check_refused, checkpoint_every_step, run_interrupted
from tests.animate.test_wan_animate import digest, person_video, record
from tests.tiny import waving
from tests.tiny_wan import copied
from tests.tiny_wan_2 import ROLES, write_model, write_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
FRAMES = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "TINY-WAN-2")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A picture with a face, and a video of twelve frames (128x96)."""
    face_picture(tmp_path / "ref.png")
    person_video(tmp_path / "person.mp4", FRAMES)
    return tmp_path


@pytest.fixture
def animate(place: Path, model: Path):
    def go(reporter: Any = None, plan_only: bool = False, **flags: Any) -> Any:
        usual = {
            "reference": place / "ref.png", "motion": place / "person.mp4", "output": place / "out.mp4",
            "model": str(model), "device": "cpu", "refine_face": "off",
        }  # fmt: skip
        return run(flags=usual | flags, reporter=reporter, plan_only=plan_only)

    return go


@pytest.fixture
def faces_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A face in every frame: random networks draw nothing in which the tests' detector sees one."""
    face = Face(
        box=np.float32([12, 12, 51, 51]), landmarks=np.zeros((5, 2), np.float32), score=1.0, embedding=None
    )  # fmt: skip
    monkeypatch.setattr(FaceReader, "boxes", lambda self, image: (face,))


def test_a_video_drives_without_detectors_of_people(place, animate, model, tmp_path):
    folder = copied(model, tmp_path / "seeing-faces-only")
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text[: text.index("[components.person_detector]")])
    report = animate(model=str(folder))
    assert isinstance(report, Animation)
    clip = open_clip(report.video)
    assert (clip.count, clip.size, clip.fps) == (FRAMES, (64, 64), 30)
    told = record(report.video)
    assert told["windows"] == [list(range(9)), [8, 9, 10, 11]]
    assert told["calls"]["driving_pass"] == 2
    assert set(told["model"]["sha256"]) >= set(ROLES)


def test_frames_are_letterboxed_as_by_diffusers_processor():
    from diffusers.modular_pipelines.wan_animate_2.video_processor import WanAnimate2VideoProcessor

    processor = WanAnimate2VideoProcessor(resample="bilinear")
    for height, width in ((96, 128), (131, 57), (63, 65), (64, 64), (7, 300)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = processor._resize_and_fill(Image.fromarray(image), 64, 80)
        assert np.array_equal(letterboxed(image, (64, 80)), np.asarray(theirs)), (height, width)


def test_the_video_is_read_at_the_rate_of_the_run(place):
    config = AnimateConfig(
        reference=place / "ref.png", motion=place / "person.mp4", output=Path("o.mp4"), size=(64, 64), fps=15,
        frames=(2, 10),
    )  # fmt: skip
    driving = open_driving(config, NullReporter(), facts=BACKBONES["wan-animate-2"])
    images = [image for _, image in open_clip(place / "person.mp4").frames()]
    assert driving.motion_frames == (2, 4, 6, 8)
    assert driving.fps == 15
    for index, frame in enumerate(driving.motion_frames):
        assert np.array_equal(driving.skeletons.frame(index), letterboxed(images[frame], (64, 64)))


@pytest.mark.parametrize("mode", ["off", "crop", "full"])
def test_interrupted_after_any_step_it_resumes_to_the_same_bytes(place, animate, monkeypatch, faces_everywhere, mode):
    flags = {"refine_face": mode, "refine_steps": "0:", "steps": 2}
    expected = animate(output=place / "whole.mp4", **flags)
    # within a segment, at its end, within the next
    report, seen = run_interrupted(animate, monkeypatch, (1, 2, 3), **flags)
    assert seen == [1, 2, 3, 4]
    assert digest(report.video) == digest(expected.video)
    whole, resumed = record(expected.video), record(report.video)
    assert whole["refined"] == resumed["refined"]
    assert resumed["resumed"] == 3
    assert whole["calls"]["transformer"] == resumed["calls"]["transformer"] == 4
    if mode != "off":
        assert whole["faces_refined"] == {"frames": FRAMES, "total": FRAMES, "steps": 4, "requested": 4}


def test_a_run_replays(animate, faces_everywhere):
    report = animate(refine_face="crop", seed=4, steps=2)
    assert replay(report.video).exit_code == 0


def test_a_clip_folder_drives_by_its_video(place, animate):
    folder = clip_of(place / "clip", place / "person.mp4", FRAMES, fps=30)
    animate(output=place / "a.mp4", audio="none", steps=1)
    animate(output=place / "b.mp4", audio="none", steps=1, motion=folder)
    assert digest(place / "a.mp4") == digest(place / "b.mp4")


def test_faces_are_searched_in_the_denoised_estimates(place, animate, faces_everywhere):
    """Where the driver's face is says nothing about the output's: no option moves boxes there."""
    told = record(animate(refine_face="crop", refine_steps="0:", refine_iters=4, steps=2).video)
    assert [entry["faces"] for entry in told["refined"]] == [9, 9, 3, 3]  # of two segments, which share one frame
    assert all(entry["after"] > entry["before"] for entry in told["refined"])


def test_a_reference_with_two_faces_does_not_call_the_video_drawn(place):
    embedding, landmarks = np.ones(512, np.float32), np.zeros((5, 2), np.float32)
    boxes = np.array([[10, 10, 40, 40], [50, 10, 70, 30]], np.float32)
    faces = tuple(Face(box=box, landmarks=landmarks, score=1.0, embedding=embedding) for box in boxes)
    config = AnimateConfig(
        reference=place / "ref.png", motion=place / "person.mp4", output=Path("o.mp4"), size=(64, 64)
    )  # fmt: skip
    driving = open_driving(config, NullReporter(), facts=BACKBONES["wan-animate-2"])
    heard, image = Heard(), np.zeros((96, 96, 3), np.uint8)
    with_people(ReferenceFace(vector=embedding, faces=faces), config, image, driving, {}, heard)
    assert heard.notes == ["ref.png: 2 faces, the largest is used: person.mp4 does not contain the positions of people"]


def test_an_estimate_without_a_face_is_left_as_it_is(animate):
    heard = Heard()
    report = animate(reporter=heard, refine_face="crop", refine_steps="0:", steps=1)
    (warning,) = (warning for warning in heard.warnings if "no face was optimised" in warning)
    assert "keypoints" not in warning  # which it does not take
    assert record(report.video)["refined"] == []
    assert digest(report.video) == digest(animate(steps=1, output=report.video.with_name("plain.mp4")).video)


def test_the_gate_samples_a_segment_again_and_keeps_those_before_it(place, animate, monkeypatch):
    """With a checkpoint after each step, also of the second sampling, which shares what it keeps with the first."""
    checkpoint_every_step(monkeypatch)
    values = iter([0.9] * 9 + [0.1] * 3 + [0.9] * 12)
    monkeypatch.setattr(
        pipeline, "_measure_identity",
        lambda job, latents: FaceSimilarity(similarity=np.array([next(values) for _ in range(FRAMES)])),
    )  # fmt: skip
    told = record(animate(min_csim=0.5, gate_retries=1, steps=2).video)
    assert told["redrawn_windows"] == [[1]]
    assert told["gate"]["result"] == "passed"
    assert told["calls"]["transformer"] == 4 + 2
    assert told["calls"]["driving_pass"] == 2 + 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"person": "0,1"}, ("--person: found '0,1'", "driven by the video itself")),
        ({"pair": "0:0"}, ("--pair: found '0:0'", "driven by the video itself")),
        *OF_SEGMENTS,
    ],
)
def test_options_that_it_does_not_have_are_refused_by_name(animate, flags, words):
    check_refused(animate, flags, words)


@pytest.mark.parametrize("plan_only", [False, True])
def test_motions_without_pixels_are_refused(place, animate, plan_only):
    save_motion(place / "poses.npz", waving(FRAMES))
    with pytest.raises(BadInput, match=r"poses\.npz: found keypoints, expected a video of a person") as caught:
        animate(motion=place / "poses.npz", plan_only=plan_only)
    assert "driven by the pixels" in str(caught.value.hint)
    skeleton_video(place / "drawn.mp4", FRAMES)
    with pytest.raises(BadInput, match=r"drawn\.mp4: found drawn skeletons") as caught:
        animate(motion=place / "drawn.mp4", plan_only=plan_only)
    assert "--motion-kind video" in str(caught.value.hint)


def test_a_folder_of_the_hub_opens_with_its_entry_of_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    for distilled, name, steps, guidance in (
        (False, "wan-animate-2", 40, 3.0), (True, "wan-animate-2-distilled", 10, 1.0),
    ):  # fmt: skip
        folder = write_pipeline(tmp_path / name, distilled=distilled)
        found = catalogue.open_animator(folder)
        assert (found.name, found.backbone) == (name, "wan-animate-2")
        assert found.files["transformer"] == folder / "transformer"
        assert found.configs["transformer"]["num_layers"] == 2  # the folder's own
        assert (found.defaults["steps"], found.defaults["guidance"], found.defaults["window"]) == (steps, guidance, 81)


def test_a_folder_without_the_modular_index_says_what_was_expected(animate, tmp_path):
    """The hub's model_index.json names a class that diffusers does not have, the same for both kinds of weights."""
    folder = write_pipeline(tmp_path / "half")
    (folder / "modular_model_index.json").unlink()
    for part in ("vae", "image_encoder"):  # else it looks like Stable Video Diffusion's
        shutil.rmtree(folder / part)
    with pytest.raises(ModelDamaged, match=r"found 'WanAnimate2Pipeline', expected .* or WanAnimate2ModularPipeline"):
        animate(model=str(folder))


def test_half_of_a_pipeline_names_what_it_lacks(animate, tmp_path):
    folder = write_pipeline(tmp_path / "half")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ModelDamaged) as caught:
        animate(model=str(folder))
    for word in ("incomplete WanAnimate2ModularPipeline", "transformer/*.safetensors", "text_encoder/config.json"):
        assert word in caught.value.message
    assert caught.value.exit_code == 5
    path = folder / "modular_model_index.json"
    index = json.loads(path.read_text())
    index["vae"] = [None, None, {"type_hint": ["diffusers", "AutoencoderKL"]}]
    path.write_text(json.dumps(index))
    with pytest.raises(ModelDamaged, match="vae: found 'AutoencoderKL', expected 'AutoencoderKLWan'"):
        animate(model=str(folder))


def test_a_plan_counts_calls_memory_and_the_keys_of_the_driving_video(animate):
    plan = animate(plan_only=True, guidance="2", refine_face="crop")
    assert isinstance(plan, AnimationPlan)
    data = plan.to_json()
    assert data["calls"] == {
        "transformer": 12, "driving_pass": 2, "windows": 6, "text_encoder": 3, "image_encoder": 2, "vae_encode": 5,
        "vae_decode": 3,
    }  # fmt: skip
    assert {"text encoder", "Transformer", "face optimisation", "VAE decoder"} <= set(data["memory"]["stages"])
    assert "12 Transformer calls" in plan.summary()
    held = BACKBONE.segment_bytes(
        {"num_layers": 40, "dim": 5120}, {"scale_factor_temporal": 4, "scale_factor_spatial": 8}, 81, (640, 800),
        torch.bfloat16, "none",
    )  # fmt: skip
    assert held == 2 * 40 * 5120 * 21 * 40 * 50 * 2  # as published: about 34 GB
