"""Wan-Animate in the engine: equal to diffusers' own call, resumable to the bit, with faces that can be optimised."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanAnimatePipeline
from PIL import Image
from torch import Tensor

from stableanimator_cli.catalogue import open_animator
from stableanimator_cli.config.animate import DecodeConfig, SamplingConfig, WindowConfig
from stableanimator_cli.diffusion.face_optimization import Box, FaceOptimization, FaceOptimizationSettings, Target
from stableanimator_cli.engine.backbones.wan_animate import BACKBONE
from stableanimator_cli.engine.conditioning import StoredPoses, to_signed
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, SampleOptions, Timings, sample
from stableanimator_cli.nets.arcface import ArcFace, crop_resize
from tests.engine.segment_runs import SEGMENTS, check_faces_come_nearer, check_frames, check_resumes, random_recogniser
from tests.tiny import CPU
from tests.tiny_wan import FACE, STEPS, WINDOW, copied, write_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
SIZE = 48
BOX: Box = (8, 8, 31, 31)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-wan", seeing=False)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(open_animator(folder), CPU) as engine:
        yield engine


def pictures(frames: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def request(frames: int = 12, overlap: int = 1, window: int = WINDOW, **sampling: Any) -> RenderRequest:
    (image,) = pictures(1, SIZE, 1)
    settings = {"steps": STEPS, "guidance": (1.0, 1.0), "seed": 5, "prompt": "dance dance", **sampling}
    return RenderRequest(
        image=image,
        resized=image,
        face=None,
        poses=StoredPoses(pictures(frames, SIZE, 2)),
        plan=BACKBONE.plan_windows(frames, WindowConfig(length=window, overlap=overlap)),
        sampling=SamplingConfig(**settings),
        decode=DecodeConfig(),
        noise_period=window,
        streams={"face": StoredPoses(pictures(frames, FACE, 3))},
    )


def theirs(folder: Path, wanted: RenderRequest, overlap: int = 1) -> np.ndarray:
    """The frames of diffusers' own call, uint8[t,h,w,3]."""
    pipe = WanAnimatePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    sampling = wanted.sampling

    def embed(prompt: str) -> Tensor:
        tokens = pipe.tokenizer(prompt, padding="max_length", max_length=512, return_tensors="pt")
        states = pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states * tokens.attention_mask[..., None]

    with torch.no_grad():
        texts = {"prompt_embeds": embed(sampling.prompt), "negative_prompt_embeds": embed(sampling.negative_prompt)}
    images = [Image.fromarray(wanted.poses.frame(i)) for i in range(len(wanted.poses))]
    faces = wanted.streams["face"]
    video = pipe(
        image=Image.fromarray(wanted.resized),
        pose_video=images,
        face_video=[Image.fromarray(faces.frame(i)) for i in range(len(images))],
        **texts,
        height=SIZE,
        width=SIZE,
        segment_frame_length=wanted.noise_period,
        prev_segment_conditioning_frames=overlap,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance[0],
        generator=torch.Generator().manual_seed(sampling.seed),
        output_type="pil",
    ).frames[0]
    return np.stack([np.asarray(frame) for frame in video])


@pytest.mark.parametrize(
    ("frames", "window", "overlap", "sampling"),
    [*SEGMENTS, (12, 9, 1, {"guidance": (2.0, 2.0), "negative_prompt": "dance"})],
)
def test_without_optimisation_it_is_diffusers_own_call(engine, folder, frames, window, overlap, sampling):
    wanted = request(frames, overlap, window, **sampling)
    assert wanted.plan.total == frames
    check_frames(engine, BACKBONE, wanted, theirs(folder, wanted, overlap))


def with_scheduler(folder: Path, target: Path, scheduler: Any) -> Path:
    copied(folder, target)
    shutil.rmtree(target / "scheduler")
    scheduler.save_pretrained(target / "scheduler")
    return target


@pytest.mark.parametrize(
    "scheduler",
    [
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        FlowMatchEulerDiscreteScheduler(shift=5.0, stochastic_sampling=True),
    ],
    ids=["UniPC, which keeps its history", "Euler, which draws noise"],
)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(folder, tmp_path, scheduler):
    with Engine.open(open_animator(with_scheduler(folder, tmp_path / "other", scheduler)), CPU) as engine:
        assert check_resumes(engine, request(20, steps=3)) == list(range(1, 10))  # of two, none needs the history


def test_another_noise_for_one_segment_leaves_those_before_it(engine):
    plain = sample(engine, request(20), Timings())
    counts = tuple(int(frame in request(20).plan.windows[1].frames) for frame in range(20))
    again = sample(engine, replace(request(20), retry_counts=counts), Timings())
    assert torch.equal(again[0], plain[0])
    assert (again[1] != plain[1]).any()
    assert (again[2] != plain[2]).any()  # it continues other frames


@pytest.fixture(scope="module")
def recogniser() -> ArcFace:
    return random_recogniser()


def optimisation(engine: Engine, recogniser: ArcFace, frames: int, mode: Any, **settings: Any) -> FaceOptimization:
    """Towards the face of a random picture; no face in the second frame."""
    picture = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(9)) * 2 - 1
    boxes = tuple(None if frame == 1 else BOX for frame in range(frames))
    return FaceOptimization(
        decoder=BACKBONE.face_decoder(engine.networks["vae"], engine.calls, checkpointed=True, margin=8),
        embed=lambda pixels, places: recogniser.embed(crop_resize(pixels, places)),
        targets=[Target(boxes=boxes, vector=recogniser.embed(picture)[0])],
        settings=FaceOptimizationSettings(
            mode=mode, steps=(0, STEPS), lr=0.05, lr_schedule="constant", **{"iterations": 4} | settings
        ),
    )


def similarity(recogniser: ArcFace, optimise: FaceOptimization, frames: np.ndarray) -> float:
    with torch.no_grad():
        vectors = recogniser.embed(crop_resize(to_signed(frames), [BOX] * len(frames)))
    return float(F.cosine_similarity(vectors, optimise.targets[0].vector[None]).mean())


@pytest.mark.parametrize(("mode", "chunk"), [("full", 16), ("crop", 16), ("crop", 4)])
def test_faces_come_nearer_in_every_segment(engine, recogniser, mode, chunk):
    optimise = optimisation(engine, recogniser, 16, mode, chunk=chunk, iterations=6)
    check_faces_come_nearer(
        engine, request(16, window=9), optimise, lambda frames: similarity(recogniser, optimise, frames)
    )


def test_crops_change_latents_near_the_face_only(engine, recogniser):
    wanted = request(9, steps=1)
    plain = sample(engine, wanted, Timings())
    refine = optimisation(engine, recogniser, 9, "crop", mask_dilation=0)
    moved = sample(engine, wanted, Timings(), SampleOptions(refine=refine)) != plain
    assert not moved[:, :, 0].any()  # the reference's latent
    assert moved[..., 1:4, 1:4].any()
    moved[..., 1:4, 1:4] = False
    assert not moved.any()


def test_a_resumed_run_with_faces_is_the_unbroken_one(engine, recogniser):
    check_resumes(engine, request(16, steps=2), lambda: optimisation(engine, recogniser, 16, "crop", chunk=4))
