"""Wan-Animate-2 in the engine: diffusers' modular call to the bit, resumable, with faces that can be optimised."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeGuidance, ModularPipeline
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from PIL import Image

from stableanimator_cli.catalogue import open_animator
from stableanimator_cli.config.animate import DecodeConfig, DeviceConfig, SamplingConfig, WindowConfig
from stableanimator_cli.engine.backbones.wan_animate_2 import BACKBONE
from stableanimator_cli.engine.conditioning import StoredPoses
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Timings, sample
from stableanimator_cli.nets import frame_attention
from stableanimator_cli.nets.arcface import ArcFace
from tests.engine.segment_runs import (
    SEGMENTS,
    check_faces_come_nearer,
    check_frames,
    check_resumes,
    ours,
    random_recogniser,
)
from tests.engine.test_wan_animate import optimisation, pictures, similarity
from tests.nets.test_frame_attention import uncompiled
from tests.tiny import CPU
from tests.tiny_wan import STEPS, WINDOW
from tests.tiny_wan_2 import write_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:__array_wrap__ must accept:DeprecationWarning",
    "ignore:flex_attention called without torch.compile:UserWarning",  # by diffusers' own call
)
SIZE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-wan-2", seeing=False)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-wan-2-distilled", seeing=False, distilled=True)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(open_animator(folder), CPU) as engine:
        yield engine


def request(frames: int = 12, overlap: int = 1, window: int = WINDOW, **sampling: Any) -> RenderRequest:
    (image,) = pictures(1, SIZE, 1)
    settings = {"steps": STEPS, "guidance": (1.0, 1.0), "seed": 5, "prompt": "dance  dance", **sampling}
    return RenderRequest(
        image=image,
        resized=image,
        face=None,
        poses=StoredPoses(pictures(frames, SIZE, 2)),
        plan=BACKBONE.plan_windows(frames, WindowConfig(length=window, overlap=overlap)),
        sampling=SamplingConfig(**settings),
        decode=DecodeConfig(),
        noise_period=window,
    )


def theirs(folder: Path, wanted: RenderRequest, overlap: int = 1) -> np.ndarray:
    """The frames of diffusers' own call, uint8[t,h,w,3]."""
    pipe = ModularPipeline.from_pretrained(folder)
    pipe.load_components()
    sampling = wanted.sampling
    if "Distilled" not in type(pipe).__name__:
        pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=sampling.guidance[0]))
    with pytest.MonkeyPatch.context() as patch:
        uncompiled(patch)
        video = call(pipe, wanted, overlap)
    return np.stack([np.asarray(frame) for frame in video])


def call(pipe: Any, wanted: RenderRequest, overlap: int) -> list[Image.Image]:
    sampling = wanted.sampling
    return pipe(
        image=Image.fromarray(wanted.resized),
        driving_video=[Image.fromarray(wanted.poses.frame(i)) for i in range(len(wanted.poses))],
        prompt=sampling.prompt,
        negative_prompt=sampling.negative_prompt,
        height=SIZE,
        width=SIZE,
        segment_frame_length=wanted.noise_period,
        prev_segment_conditioning_frames=overlap,
        num_inference_steps=sampling.steps,
        generator=torch.Generator().manual_seed(sampling.seed),
        output_type="pil",
        output="videos",
    )[0]


@pytest.mark.parametrize(("frames", "window", "overlap", "sampling"), SEGMENTS)
def test_without_optimisation_it_is_diffusers_own_call(engine, folder, frames, window, overlap, sampling):
    wanted = request(frames, overlap, window, **sampling)
    assert wanted.plan.total == frames
    check_frames(engine, BACKBONE, wanted, theirs(folder, wanted, overlap))


def test_with_guidance_it_is_diffusers_own_call(tmp_path):
    deep = write_model(tmp_path / "deep", seeing=False, layers=11)
    wanted = request(12, guidance=(3.0, 3.0), negative_prompt="dance", steps=2)
    with Engine.open(open_animator(deep), CPU) as engine:
        assert np.array_equal(ours(engine, wanted), theirs(deep, wanted))
        assert engine.calls["transformer"] == BACKBONE.count_calls(wanted)["transformer"] == 8


def test_the_distilled_one_is_diffusers_own_call_too(distilled):
    wanted = request(12)
    with Engine.open(open_animator(distilled), CPU) as engine:
        assert np.array_equal(ours(engine, wanted), theirs(distilled, wanted))


@pytest.mark.parametrize(("kind", "guidance"), [("base", 3.0), ("distilled", 1.0)])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(folder, distilled, kind, guidance):
    """DPM-Solver keeps its history, the Euler scheduler of the distilled folder nothing."""
    wanted = request(20, steps=3, guidance=(guidance, guidance))  # of two, none needs the history
    with Engine.open(open_animator(distilled if kind == "distilled" else folder), CPU) as engine:
        assert check_resumes(engine, wanted) == list(range(1, 10))


def test_a_video_shorter_than_its_padding_runs_back_and_forth(engine):
    assert [BACKBONE.shown_frame(frame, 3) for frame in range(9)] == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert [BACKBONE.shown_frame(frame, 1) for frame in range(3)] == [0, 0, 0]
    assert len(ours(engine, request(3, steps=1))) == 3


@pytest.fixture(scope="module")
def recogniser() -> ArcFace:
    return random_recogniser()


@pytest.mark.parametrize(("mode", "chunk"), [("full", 16), ("crop", 16), ("crop", 4)])
def test_faces_come_nearer_in_every_segment(engine, recogniser, mode, chunk):
    # twelve iterations: with four, rounding of the processor decides whether chunks of 4 gain enough
    optimise = optimisation(engine, recogniser, 16, mode, chunk=chunk, iterations=12)
    check_faces_come_nearer(
        engine, request(16, window=9), optimise, lambda frames: similarity(recogniser, optimise, frames)
    )


def test_a_resumed_run_with_faces_is_the_unbroken_one(engine, recogniser):
    check_resumes(engine, request(16, steps=2), lambda: optimisation(engine, recogniser, 16, "crop", chunk=4))


def test_attention_frame_by_frame_changes_rounding_only(engine, monkeypatch):
    wanted = request(12, guidance=(3.0, 3.0))
    plain = sample(engine, wanted, Timings())
    monkeypatch.setattr(frame_attention, "LARGEST_SCORES", 0)
    framewise = sample(engine, wanted, Timings())
    assert not torch.equal(framewise, plain)
    torch.testing.assert_close(framewise, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "quantization"), [("bfloat16", "plain"), ("bfloat16", "fp8")])
def test_other_types_of_weights_are_near(folder, engine, dtype, quantization):
    """Also a check that no input has the type of weights that are stored in another: time embeddings stay float32."""
    wanted = request(12, steps=2, guidance=(3.0, 3.0))
    exact = sample(engine, wanted, Timings())
    plan = DevicePlan.of(DeviceConfig(device="cpu", dtype=dtype, quantization=quantization))
    with Engine.open(open_animator(folder), plan) as other:
        assert (sample(other, wanted, Timings()) - exact).abs().mean() < 0.05


def test_keys_in_host_memory_change_nothing(engine, monkeypatch):
    wanted = request(12, steps=2)
    plain = sample(engine, wanted, Timings())
    monkeypatch.setattr(f"{BACKBONE.__module__}.WanAnimate2KVCache", frame_attention.HostKVCache)
    assert torch.equal(sample(engine, wanted, Timings()), plain)


def test_keys_of_a_segment_are_freed_before_the_next_is_prepared(engine, monkeypatch):
    seen: list[weakref.ref[WanAnimate2KVCache]] = []

    class Watched(WanAnimate2KVCache):
        def __init__(self, layers: int) -> None:
            assert all(ref() is None for ref in seen)
            seen.append(weakref.ref(self))
            super().__init__(layers)

    monkeypatch.setattr(f"{BACKBONE.__module__}.WanAnimate2KVCache", Watched)
    sample(engine, request(20, steps=1), Timings())
    assert len(seen) == 3
