"""What the UNet is told: resizing for the image encoder, reference latents, time ids, pose features within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.engine.conditioning import (
    PoseFeatures,
    antialiased_resize,
    bytes_of_pose_frame,
    clip_token,
    reference_latents,
    time_ids,
    to_signed,
)
from stableanimator_cli.engine.weights import loaders
from tests.tiny import Pictures


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def load(tiny_model):
    return loaders(open_model(tiny_model), torch.float32, "distribution")


def pictures(count: int, size: tuple[int, int] = (64, 64), seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)


def test_pixels_become_minus_one_to_one_by_channel():
    levels = np.array([[[[0, 127, 255], [255, 0, 51]]]], np.uint8)
    signed = to_signed(levels)
    assert signed.shape == (1, 3, 1, 2)
    assert signed[0, :, 0, 0].tolist() == pytest.approx([-1, 127 / 127.5 - 1, 1])
    assert signed[0, :, 0, 1].tolist() == pytest.approx([1, -1, -0.6])


@pytest.mark.parametrize(("width", "height"), [(224, 224), (500, 300), (97, 700), (1024, 1024), (40, 60)])
def test_the_picture_for_the_image_encoder_is_resized_as_stable_video_diffusion_does(width, height):
    picture = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(2)) * 2 - 1
    ours, theirs = antialiased_resize(picture, 224, 224), _resize_with_antialiasing(picture, (224, 224))
    assert (ours - theirs).abs().max() <= 1e-5


def test_a_picture_too_thin_to_be_reflected_is_still_resized():
    ours = antialiased_resize(torch.full((1, 3, 4000, 2), 0.25), 224, 224)
    assert torch.allclose(ours, torch.full((1, 3, 224, 224), 0.25), atol=1e-5)


def test_a_token_depends_on_the_picture(load):
    encoder = load["image_encoder"]()
    one, two = (clip_token(encoder, pictures(1, (90, 50), seed)[0]) for seed in (1, 2))
    assert one.shape == (1, 1, 64)
    assert not torch.allclose(one, two)


def test_reference_latents_are_the_unscaled_mode_of_the_noised_picture(load):
    vae, (picture,) = load["vae"](), pictures(1)
    noise = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(3))
    latents = reference_latents(vae, picture, noise, 0.02)
    expected = vae.encode(to_signed(picture[None]) + 0.02 * noise).latent_dist.mode()
    assert torch.equal(latents, expected)
    assert latents.shape == (1, 4, 8, 8)
    assert torch.equal(reference_latents(vae, picture, noise, 0.0), reference_latents(vae, picture, -noise, 0.0))


def test_a_half_precision_vae_encodes_in_float32_and_goes_back(load, monkeypatch):
    vae, (picture,) = load["vae"]().to(torch.float16), pictures(1)
    warnings: list[str] = []
    monkeypatch.setattr("diffusers.models.modeling_utils.logger.warning", warnings.append)
    seen: list[torch.dtype] = []
    hook = vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    latents = reference_latents(vae, picture, torch.zeros(1, 3, 64, 64), 0.0)
    assert seen == [torch.float32]
    assert latents.dtype == next(vae.parameters()).dtype == torch.float16
    assert warnings == []  # diffusers', of layers to keep in float32, which a user could not heed

    def fails(_, args):
        raise RuntimeError("mid-way")

    hook.remove()
    vae.encoder.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="mid-way"):
        reference_latents(vae, picture, torch.zeros(1, 3, 64, 64), 0.0)
    assert next(vae.parameters()).dtype == torch.float16


def test_time_ids_hold_the_rate_less_one():
    ids = time_ids(7, 127.0, 0.02, torch.zeros(1))
    assert ids.tolist()[0] == pytest.approx([6, 127, 0.02])
    assert ids.dtype == torch.float32


FRAME = bytes_of_pose_frame(32, 64, 64, torch.float32)


def features(load, frames: int, budget: int) -> tuple[PoseFeatures, Counter[str]]:
    calls: Counter[str] = Counter()
    return PoseFeatures(load["pose_net"](), Pictures(pictures(frames)), budget=budget, calls=calls), calls


def held(pose: PoseFeatures) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in pose._cached.values())


def test_features_within_the_budget_are_computed_once(load):
    pose, calls = features(load, 6, 6 * FRAME)
    whole = pose.window(range(6))
    for frames in ([0, 3, 4, 5], [0, 1, 2, 3], [5, 0]):
        assert torch.equal(pose.window(frames), whole[frames])
    assert calls["pose_net_frames"] == 6
    assert held(pose) == 6 * FRAME
    assert len(pose) == 6


@pytest.mark.parametrize("frames_kept", [0, 1, 3])
def test_beyond_the_budget_features_are_computed_again_and_are_the_same(load, frames_kept):
    pose, calls = features(load, 6, frames_kept * FRAME + FRAME - 1)
    everything, _ = features(load, 6, 1 << 30)
    whole = everything.window(range(6))
    for frames in ([0, 1, 2, 3], [0, 3, 4, 5], [0, 1, 2, 3]):
        assert (pose.window(frames) - whole[frames]).abs().max() <= 1e-6
        assert held(pose) <= frames_kept * FRAME
    assert held(pose) == frames_kept * FRAME
    kept = range(frames_kept)  # the first frames: frame 0 is in every window
    asked = [0, 1, 2, 3, 0, 3, 4, 5, 0, 1, 2, 3]
    assert calls["pose_net_frames"] == sum(index not in kept for index in asked) + frames_kept


def test_bytes_of_a_frame_round_up_to_whole_latents():
    assert bytes_of_pose_frame(320, 576, 1024, torch.float16) == 320 * 72 * 128 * 2
    assert bytes_of_pose_frame(1, 9, 16, torch.float32) == 2 * 2 * 4
