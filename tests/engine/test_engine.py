"""The engine holds its plans to their word: what is computed how often, and what must change nothing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.config.animate import SamplingConfig
from stableanimator_cli.diffusion.schedule import scalings
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.conditioning import Conditioning, PoseFeatures, bytes_of_pose_frame
from stableanimator_cli.engine.engine import Engine, EngineCache
from stableanimator_cli.errors import ModelDamaged, ModelMissing
from stableanimator_cli.nets.context import Context
from tests.tiny import CPU, engine_of, rendered, request

FRAME = bytes_of_pose_frame(32, 64, 64, torch.float32)


def encoded(engine: Engine, frames: int, *, face: bool = True) -> Conditioning:
    wanted = request(frames, face=face)
    return engine.encode(wanted.image, wanted.resized, wanted.face, wanted.poses, SamplingConfig(noise_aug=0.0))


def noisy(frames: int) -> Tensor:
    return torch.randn((frames, 4, 8, 8), generator=torch.Generator().manual_seed(frames)) * 3


@pytest.fixture(scope="module")
def engine(tiny_model):
    with engine_of(tiny_model) as opened:
        yield opened


@pytest.mark.parametrize("face", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_window_is_the_network_over_all_frames(engine, guidance, face):
    """No windows at all, written out: v-prediction of both branches, guided, as an estimate of the clean latents."""
    given, x, sigma = encoded(engine, 5, face=face), noisy(5), 2.0
    scale, unet = scalings(sigma), engine.networks["unet"]

    def branch(on: bool) -> Tensor:
        picture = (given.reference * on).expand(5, -1, -1, -1)
        tokens = None if given.face is None else given.face * on
        pose = given.pose.window(range(5)) if on else None
        sample = torch.cat([x * scale.c_in, picture], dim=1)[None]
        return unet(sample, scale.c_noise, Context(given.image * on, tokens), given.time_ids, pose)[0]

    with torch.no_grad():
        v = branch(True)
        if guidance > 1:
            v = branch(False) + guidance * (v - branch(False))
        ours = engine.denoiser(given, plan_windows(5, length=16), (guidance, guidance))(x, sigma)
    assert (ours - (scale.skip * x + scale.out * v)).abs().max() <= 1e-4


@pytest.mark.parametrize("face", [True, False])
def test_prepared_contexts_denoise_as_the_long_way_does(engine, face):
    given, x = encoded(engine, 9, face=face), noisy(9)
    plan = plan_windows(9, length=4, overlap=1)
    with torch.no_grad():
        short, long = (engine.denoiser(given, plan, (1, 3), prepared=p)(x, 1.5) for p in (True, False))
    assert (short - long).abs().max() <= 1e-4
    assert short.std() > 0.1


def test_a_face_changes_what_is_denoised(engine):
    x, plan = noisy(3), plan_windows(3)
    with torch.no_grad():
        one, none = (engine.denoiser(encoded(engine, 3, face=f), plan, (1, 1))(x, 1.5) for f in (True, False))
    assert (one - none).abs().max() > 1e-2


def test_swapping_networks_changes_nothing_bit_for_bit(tiny_model):
    with engine_of(tiny_model) as stays, engine_of(tiny_model, offload="model") as swaps:
        np.testing.assert_array_equal(rendered(stays, request(7)), rendered(swaps, request(7)))
        assert stays.calls == swaps.calls


@pytest.mark.parametrize("budget", [0, 3 * FRAME])
def test_recomputed_pose_features_give_the_same_video(tiny_model, budget, monkeypatch):
    wanted = request(9, window=4, overlap=1)
    with engine_of(tiny_model) as keeps, engine_of(tiny_model) as computes:

        def pose_features(poses):
            return PoseFeatures(computes.networks["pose_net"], poses, budget=budget, calls=computes.calls)

        monkeypatch.setattr(computes, "pose_features", pose_features)
        kept, made = rendered(keeps, wanted), rendered(computes, wanted)
    assert keeps.calls["pose_net_frames"] == 9  # once a frame, whatever the windows, branches and steps
    assert computes.calls["pose_net_frames"] > 9
    assert np.abs(kept.astype(int) - made).max() <= 1  # convolutions round by the batch that a frame is in
    assert (kept != made).mean() < 0.01


def test_the_unconditional_branch_needs_no_pose(tiny_model):
    """With nothing kept, PoseNet runs for the conditional branch alone: windows x steps x frames of a window."""
    wanted = request(4, window=4, steps=3, guidance=(3.0, 3.0))
    with engine_of(tiny_model, pose_budget_mb=0) as engine:
        rendered(engine, wanted)
    assert engine.calls["pose_net_frames"] == 3 * 4


def test_the_adapters_mode_is_the_engines(tiny_model):
    videos = {}
    for mode in ("distribution", "addition", "norm", "off"):
        with engine_of(tiny_model, id_mode=mode) as engine:
            videos[mode] = rendered(engine, request(2))
    assert len({video.tobytes() for video in videos.values()}) == 4


@pytest.mark.parametrize("face", [True, False])
def test_bfloat16_runs_and_is_near(tiny_model, face):
    wanted = request(3, face=face)
    with engine_of(tiny_model) as exact, engine_of(tiny_model, dtype=torch.bfloat16) as rough:
        one, two = rendered(exact, wanted), rendered(rough, wanted)
        assert {p.dtype for p in rough.networks["unet"].parameters()} == {torch.bfloat16}
    assert np.abs(one.astype(int) - two).mean() < 16


def test_leaving_an_engine_lets_go_of_its_networks(tiny_model):
    with engine_of(tiny_model) as engine:
        before = engine.networks["vae"]
    assert engine.networks["vae"] is not before


def test_a_size_that_latents_cannot_have_is_refused(engine):
    wanted = request(1, size=(64, 68))
    with pytest.raises(ValueError, match="64x68 is not a multiple of 8"):
        rendered(engine, wanted)


def test_a_face_vector_of_another_length_is_named(engine):
    wanted = request(1)
    with pytest.raises(ModelDamaged, match=r"shape \(128,\), the face encoder of '?tiny'? expects \(512,\)"):
        engine.encode(wanted.image, wanted.resized, np.zeros(128, np.float32), wanted.poses, SamplingConfig())


def test_hidden_faces_are_noise_in_the_reference_and_nothing_else_changes(engine):
    wanted = request(1)
    boxes = np.array([[8.0, 16.0, 30.0, 40.0], [-20.0, 50.0, 5.0, 90.0]])
    given = wanted.image, wanted.resized, wanted.face, wanted.poses, SamplingConfig()
    plain, hidden, again = (engine.encode(*given, box) for box in (None, boxes, boxes))
    changed = (plain.reference != hidden.reference).any(dim=1)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:5, 1:4] = expected[6:8, 0:1] = True
    assert torch.equal(changed, expected)
    assert torch.equal(hidden.reference, again.reference)
    assert torch.equal(plain.image, hidden.image)
    assert torch.equal(plain.face, hidden.face)


def test_detectors_that_are_not_there_are_missing_with_the_way_on(engine):
    with pytest.raises(ModelMissing, match="no face detector") as caught:
        engine.faces()
    assert "--face-embedding" in str(caught.value.hint)


def test_gradients_stay_as_the_caller_had_them(engine):
    assert torch.is_grad_enabled()
    encoded(engine, 1)
    assert torch.is_grad_enabled()


def test_an_open_engine_serves_until_a_file_of_its_model_is_replaced(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    with EngineCache() as engines:
        first = engines.open(open_model(folder), CPU)
        first.networks["pose_net"]
        assert engines.open(open_model(folder), CPU) is first
        weights = open_model(folder).files["pose_net"]
        tensors = load_file(weights)
        save_file({**tensors, "scale": tensors["scale"] + 1}, weights)
        second = engines.open(open_model(folder), CPU)
        assert torch.equal(second.networks["pose_net"].scale, tensors["scale"] + 1)
