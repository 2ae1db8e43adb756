"""``sa animate`` with Wan-Animate: every kind of motion, resumed and replayed, and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.animate import pipeline
from stableanimator_cli.animate.driving import open_driving
from stableanimator_cli.animate.driving_faces import read_face_crops
from stableanimator_cli.animate.identity_gate import FaceSimilarity
from stableanimator_cli.animate.replay import replay
from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.animate.run import run
from stableanimator_cli.backbone_facts import BACKBONES
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.engine.backbones.segments import SegmentBackbone
from stableanimator_cli.engine.render import SampleOptions
from stableanimator_cli.errors import CheckFailed, ConfigError, ModelDamaged, ModelMissing
from stableanimator_cli.media import VideoWriter, open_clip, write_image
from stableanimator_cli.motion.aapose import draw_aapose
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.progress import NullReporter
from tests.animate.clips import Heard, clip_of, face_picture, skeleton_video
from tests.animate.segment_runs import OF_SEGMENTS, check_refused, run_interrupted
from tests.tiny import waving
from tests.tiny_wan import copied, write_model, write_pipeline
from tests.train.clip_folders import side_by_side

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
FRAMES = 12
BOX = (40.0, 30.0, 88.0, 90.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "TINY-WAN")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A picture with a face, and a motion of twelve frames (128x128) that knows where its face is."""
    face_picture(tmp_path / "ref.png")
    motion = waving(FRAMES)
    boxes = np.broadcast_to(np.float32(BOX), (FRAMES, 1, 4)).copy()
    save_motion(tmp_path / "poses.npz", dataclasses.replace(motion, face_boxes=boxes))
    return tmp_path


@pytest.fixture
def animate(place: Path, model: Path):
    def go(reporter: Any = None, plan_only: bool = False, **flags: Any) -> Any:
        usual = {
            "reference": place / "ref.png", "motion": place / "poses.npz", "output": place / "out.mp4",
            "model": str(model), "device": "cpu", "refine_face": "off",
        }  # fmt: skip
        return run(flags=usual | flags, reporter=reporter, plan_only=plan_only)

    return go


def person_video(path: Path, frames: int = FRAMES, fps: int = 30) -> Path:
    """A red person on grey, moving to the right; the tests' detectors see red rectangles."""
    rng = np.random.default_rng(0)
    with VideoWriter(path, (128, 96), fps, lossless=True) as writer:
        for index in range(frames):
            image = rng.integers(60, 90, (96, 128, 3), dtype=np.uint8)
            image[10:90, 20 + 4 * index : 60 + 4 * index] = (250, 20, 20)
            writer.write(image)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(video: Path) -> dict[str, Any]:
    return json.loads(video.with_suffix(".json").read_text())


def test_a_plain_video_drives_body_and_face(place, animate):
    heard = Heard()
    report = animate(reporter=heard, motion=person_video(place / "person.mp4"))
    assert isinstance(report, Animation)
    clip = open_clip(report.video)
    assert (clip.count, clip.size, clip.fps) == (FRAMES, (64, 64), 30)
    told = record(report.video)
    assert told["windows"] == [list(range(9)), [8, 9, 10, 11]]
    assert told["face"] is False  # no network receives the embedding
    assert set(told["model"]["sha256"]) >= set(BACKBONES["wan-animate"].networks)
    assert not any("no pixels of a face" in note for note in heard.notes)


def test_without_pixels_of_a_face_the_run_says_so(place, animate):
    heard = Heard()
    animate(reporter=heard)
    assert any("poses.npz has no pixels of a face" in note for note in heard.notes)


def test_what_several_people_share_is_said_at_the_start_and_recorded(place, animate):
    save_motion(place / "two.npz", side_by_side(waving(FRAMES)))
    flags = {"motion": place / "two.npz", "window": 9, "steps": 1}
    shared = "TINY-WAN (wan-animate) conditions 2 people on one reference image and one video of a face"
    heard = Heard()
    plan = animate(reporter=heard, plan_only=True, **flags)
    assert isinstance(plan, AnimationPlan)
    assert shared in heard.warnings
    report = animate(face_of=(f"1={place / 'ref.png'}",), **flags)
    told = record(report.video)
    assert f"{shared}; nothing distinguishes their faces" in told["warnings"]
    assert told["face_video_of"] is None  # keypoints have no pixels
    heard = Heard()
    animate(reporter=heard, person="1", **flags)
    assert not any(text.startswith(shared[:30]) for text in heard.warnings)


def test_the_face_video_is_that_of_the_larger_person(place):
    motion = side_by_side(waving(FRAMES, fps=30))
    motion.face_boxes[:] = np.float32([[10, 10, 20, 20], [60, 10, 90, 40]])
    clip = open_clip(person_video(place / "person.mp4"))
    faces = read_face_crops(clip, motion, range(FRAMES), NullReporter())
    assert faces.person == 1
    motion.present[2:, 1] = False  # the others of a range do not show that person
    assert read_face_crops(clip, motion, range(2, FRAMES), NullReporter()).person == 0
    motion.face_boxes[:, 1] = np.nan
    motion.present[:, 1] = False
    assert read_face_crops(clip, motion, range(FRAMES), NullReporter()).person == 0


def test_skeletons_are_drawn_in_the_style_of_its_training(place):
    config = AnimateConfig(reference=place / "ref.png", motion=place / "poses.npz", output=Path("o.mp4"), size=(64, 64))
    driving = open_driving(config, NullReporter(), facts=BACKBONES["wan-animate"])
    points = waving(FRAMES).keypoints[3].copy()
    points[..., :2] /= 2
    assert np.array_equal(driving.skeletons.frame(3), draw_aapose(points, (64, 64)))
    assert not driving.streams["face"].frame(3).any()


def test_face_crops_follow_the_driver_at_another_rate(place, model):
    config = AnimateConfig(
        reference=place / "ref.png", motion=person_video(place / "person.mp4"), output=Path("o.mp4"), size=(64, 64),
        fps=15,
    )  # fmt: skip
    opened = Detectors.open(catalogue.open_animator(model), "cpu", faces=False)
    driving = open_driving(config, NullReporter(), detectors=lambda: opened, facts=BACKBONES["wan-animate"])
    faces = driving.streams["face"]
    assert len(faces) == len(driving.skeletons) == FRAMES // 2
    assert faces.frame(0).shape == (512, 512, 3)
    reds = [(faces.frame(index)[..., 0] > 200).mean() for index in range(len(faces))]
    assert min(reds) > 0.3  # the tests' pose network spreads its points around the person
    assert max(reds) - min(reds) < 0.01  # who moves: the crop moves with them


def test_face_crops_of_a_clip_folder_are_of_the_frames_that_were_preprocessed(place):
    """Images have no times by which to find the frames of `sa preprocess --frames 6:`."""
    for index in range(FRAMES):
        write_image(place / "images" / f"{index:02}.png", np.full((128, 128, 3), 10 * index, np.uint8))
    folder = clip_of(place / "clip", place / "images", FRAMES - 6)
    motion = dataclasses.replace(waving(FRAMES - 6), times=None)
    motion.face_boxes[:] = np.float32(BOX)
    save_motion(folder / "motion.npz", motion)
    told = json.loads((folder / "clip.json").read_text())
    (folder / "clip.json").write_text(json.dumps(told | {"options": {"frames": [6, None], "fps": None}}))
    config = AnimateConfig(reference=place / "ref.png", motion=folder, output=Path("o.mp4"), size=(64, 64))
    faces = open_driving(config, NullReporter(), facts=BACKBONES["wan-animate"]).streams["face"]
    assert [faces.frame(index).max() for index in range(FRAMES - 6)] == [60, 70, 80, 90, 100, 110]


def test_our_skeleton_video_is_drawn_again_from_its_points(place, animate):
    skeleton_video(place / "drawn.mp4", FRAMES)
    save_motion(place / "drawn.npz", waving(FRAMES))
    animate(motion=place / "drawn.mp4", output=place / "a.mp4")
    animate(motion=place / "drawn.npz", output=place / "b.mp4")
    assert digest(place / "a.mp4") == digest(place / "b.mp4")
    (place / "drawn.npz").unlink()
    heard = Heard()
    animate(motion=place / "drawn.mp4", output=place / "c.mp4", reporter=heard)
    assert digest(place / "c.mp4") != digest(place / "a.mp4")
    assert any("skeletons are used as they are" in note for note in heard.notes)


@pytest.mark.parametrize("mode", ["off", "crop", "full"])
def test_interrupted_after_any_step_it_resumes_to_the_same_bytes(place, animate, monkeypatch, mode):
    flags = {"refine_face": mode, "refine_steps": "0:"}
    expected = animate(output=place / "whole.mp4", **flags)
    # within a segment, at its end, within the next
    report, seen = run_interrupted(animate, monkeypatch, (2, 3, 5), **flags)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert digest(report.video) == digest(expected.video)
    whole, resumed = record(expected.video), record(report.video)
    assert whole["refined"] == resumed["refined"]
    assert resumed["resumed"] == 3
    assert whole["calls"]["transformer"] == resumed["calls"]["transformer"] == 6
    if mode != "off":
        assert whole["faces_refined"] == {"frames": FRAMES, "total": FRAMES, "steps": 6, "requested": 6}


def test_a_run_replays(place, animate):
    report = animate(refine_face="crop", seed=4)
    assert replay(report.video).exit_code == 0


def test_the_gate_samples_a_segment_again_and_keeps_those_before_it(place, animate, monkeypatch):
    """The second of three segments fails once: the first one is not sampled again."""
    save_motion(place / "poses.npz", waving(20))
    values = iter([0.9] * 9 + [0.1] * 8 + [0.9] * 3 + [0.9] * 20)

    def measured(job: Any, latents: Any) -> FaceSimilarity:
        return FaceSimilarity(similarity=np.array([next(values) for _ in range(20)]))

    monkeypatch.setattr(pipeline, "_measure_identity", measured)
    steps: list[int] = []
    sample = SegmentBackbone.sample

    def watched(self: Any, engine: Any, request: Any, timings: Any, options: SampleOptions) -> Any:
        steps.append(options.first_step)
        return sample(self, engine, request, timings, options)

    monkeypatch.setattr(SegmentBackbone, "sample", watched)
    report = animate(min_csim=0.5, gate_retries=1, steps=2)
    assert steps == [0, 2]
    told = record(report.video)
    assert told["redrawn_windows"] == [[1]]
    assert told["gate"]["result"] == "passed"
    assert told["calls"]["transformer"] == 6 + 4


def test_a_failing_gate_is_an_error_after_the_video(place, animate, monkeypatch):
    low = FaceSimilarity(similarity=np.full(FRAMES, 0.2))
    monkeypatch.setattr(pipeline, "_measure_identity", lambda job, latents: low)
    with pytest.raises(CheckFailed, match=r"below 0\.5 in 2 of 2 window"):
        animate(min_csim=0.5)
    assert (place / "out.mp4").exists()


def test_guidance_and_prompts_reach_the_text_encoder(place, animate):
    plain = digest(animate(prompt="dance").video)
    assert digest(animate(prompt="dance dance").video) != plain
    assert digest(animate(prompt="dance", negative_prompt="dance").video) == plain  # not guided
    assert digest(animate(prompt="dance", guidance="2").video) != plain


@pytest.mark.parametrize("flag", ["prompt", "negative_prompt"])
def test_a_prompt_longer_than_the_text_encoder_reads_is_refused(animate, flag):
    name = f"--{flag.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"{name}: found '513 tokens', expected at most 512"):
        animate(**{flag: "dance " * 513}, guidance=2)


def test_a_negative_prompt_without_guidance_is_reported(animate):
    for guidance, warnings in (("1", 1), ("2", 0)):
        heard = Heard()
        animate(reporter=heard, plan_only=True, negative_prompt="dance", guidance=guidance)
        found = [warning for warning in heard.warnings if "--negative-prompt is not used" in warning]
        assert len(found) == warnings


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"id_adapter": "norm"}, ("--id-adapter", "no ID adapters")),
        ({"cache_features": "2"}, ("--cache-features", "no deep features")),
        ({"guidance_interval": "0.3:5"}, ("--guidance-interval", "guided in all steps")),
        ({"schedule": "ays"}, ("--schedule", "scheduler of its folder")),
        ({"churn": 3.0}, ("--churn", "scheduler of its folder")),  # not: add --sampler heun
        *OF_SEGMENTS,
    ],
)
def test_options_that_it_does_not_have_are_refused_by_name(animate, flags, words):
    check_refused(animate, flags, words)


def test_a_window_alone_brings_an_overlap_that_the_backbone_has(animate, tmp_path):
    folder = write_model(tmp_path / "five", overlap=5)
    animate(model=str(folder), window=13)
    assert record(tmp_path / "out.mp4")["config"]["windows"] == {
        "length": 13, "overlap": 1, "blend": "smooth", "anchor": "first",
    }  # fmt: skip


@pytest.mark.parametrize("plan_only", [False, True])
def test_processes_of_torchrun_are_refused(animate, monkeypatch, plan_only):
    """They would have no work, and the record of the run, with --gpus, could not be replayed."""
    monkeypatch.setattr("stableanimator_cli.animate.run._torchrun_group", lambda: nullcontext(SimpleNamespace(world=2)))
    monkeypatch.setattr("stableanimator_cli.distributed.world_size", lambda: 2)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"--gpus: found 2, expected one process.*follow one another") as caught:
        animate(plan_only=plan_only)
    assert "without torchrun" in str(caught.value.hint)


def test_a_prompt_is_refused_without_a_text_encoder(animate, tiny_model):
    with pytest.raises(ConfigError, match=r"--prompt: found 'dance'.*no text encoder"):
        animate(model=str(tiny_model), prompt="dance")


def test_half_of_a_pipeline_names_what_it_lacks(place, animate, tmp_path):
    folder = write_pipeline(tmp_path / "half")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ModelDamaged) as caught:
        animate(model=str(folder))
    for word in ("incomplete WanAnimatePipeline", "transformer/*.safetensors", "text_encoder/config.json"):
        assert word in caught.value.message
    assert caught.value.exit_code == 5


def test_a_shard_of_an_index_may_not_be_missing(place, animate, tmp_path):
    folder = write_pipeline(tmp_path / "sharded")
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "gone.safetensors"}}
    whole.rename(whole.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelDamaged, match=r"lacks transformer/gone\.safetensors"):
        animate(model=str(folder))


def test_parts_of_other_classes_and_other_pipelines_are_refused(animate, tmp_path):
    folder = write_pipeline(tmp_path / "other")
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(ModelDamaged, match="vae: found 'AutoencoderKL', expected 'AutoencoderKLWan'"):
        animate(model=str(folder))
    path.write_text(json.dumps(index | {"_class_name": "WanPipeline"}))
    for part in ("vae", "image_encoder"):  # else it looks like Stable Video Diffusion's
        shutil.rmtree(folder / part)
    with pytest.raises(ModelDamaged, match="found 'WanPipeline', expected WanAnimatePipeline"):
        animate(model=str(folder))


def test_a_misshapen_tensor_is_named(place, animate, model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copied(model, tmp_path / "misshapen")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name} | {"more": tensors[name]}, path)
    with pytest.raises(ModelDamaged, match=r"1 missing tensor\(s\).*1 surplus tensor\(s\), first more"):
        animate(model=str(folder))


@pytest.mark.parametrize(
    ("changed", "flags", "words"),
    [
        ({"_class_name": "FlowMatchLCMScheduler"}, {"refine_face": "off"}, None),
        ({"thresholding": True}, {"refine_face": "off"}, None),
        ({"_class_name": "FlowMatchLCMScheduler"}, {"refine_face": "crop"}, "LCMScheduler.*cannot be refined"),
        ({"thresholding": True}, {"refine_face": "crop"}, "thresholding=True"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, {}, r"makes 5 calls in 3 steps, expected one"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, {}, "`mu` must be passed"),
    ],
)
def test_another_scheduler_works_or_is_an_error_that_names_it(animate, model, tmp_path, changed, flags, words):
    folder = copied(model, tmp_path / "other")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    flags = flags | {"model": str(folder), "frames": (0, 5)}
    if words is None:
        assert animate(**flags).frames == 5
        return
    with pytest.raises(ModelDamaged, match=words) as caught:
        animate(**flags)
    assert str(folder / "scheduler") in caught.value.message
    assert ("--refine-face off" in str(caught.value.hint)) == ("refine_face" in flags)


def test_gguf_weights_name_the_package_that_reads_them(place, animate, model, tmp_path, monkeypatch):
    folder = copied(model, tmp_path / "quantized")
    (folder / "transformer" / "q4.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelMissing, match=r"q4\.gguf: GGUF weights need the package gguf") as caught:
        animate(model=str(folder))
    assert "pip install" in str(caught.value.hint)


def test_a_folder_of_the_hub_opens_with_the_catalogues_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    folder = write_pipeline(tmp_path / "plain")
    found = catalogue.open_animator(folder)
    assert (found.name, found.backbone) == ("wan-animate", "wan-animate")
    assert found.files["transformer"] == folder / "transformer"
    assert found.configs["transformer"]["num_layers"] == 2  # the folder's own
    assert found.defaults["window"] == 77
    assert "face" not in found.files


def test_without_detectors_it_continues_without_a_face(place, animate, tmp_path, monkeypatch):
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    heard = Heard()
    flags = {"window": 9, "steps": 1, "size": "64x64", "refine_face": "auto"}
    report = animate(model=str(write_pipeline(tmp_path / "plain")), reporter=heard, **flags)
    assert report.frames == FRAMES
    assert any("no face detector" in warning for warning in heard.warnings)


def test_a_plan_counts_calls_and_memory(animate):
    plan = animate(plan_only=True, guidance="2", refine_face="crop")
    assert isinstance(plan, AnimationPlan)
    data = plan.to_json()
    assert data["calls"] == {
        "transformer": 12, "windows": 6, "text_encoder": 2, "image_encoder": 1, "vae_encode": 5, "vae_decode": 3,
    }  # fmt: skip
    assert {"text encoder", "Transformer", "face optimisation", "VAE decoder"} <= set(data["memory"]["stages"])
    assert data["memory"]["stages"]["Transformer"]["alive"] > 0
    assert "12 Transformer calls" in plan.summary()
