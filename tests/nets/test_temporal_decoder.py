"""The walk through the temporal decoder: equal to the module, checkpointed without change, exact on a crop."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder

from stableanimator_cli.nets.temporal_decoder import LatentBox, decode, frozen_statistics, recorded_statistics
from tests.tiny import temporal_vae


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    return temporal_vae(64)


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(2, 4, 28, 26, generator=torch.Generator().manual_seed(1))


def test_equal_to_the_module(vae, latents):
    with torch.no_grad():
        assert torch.equal(decode(vae.decoder, latents), vae.decode(latents, num_frames=2).sample)


def test_checkpointing_changes_no_gradient(vae, latents):
    latents = latents[..., :8, :8]
    gradients = []
    for checkpointed in (False, True):
        z = latents.clone().requires_grad_(True)
        decode(vae.decoder, z, checkpointed=checkpointed).square().mean().backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)


def test_a_crop_with_its_margin_is_exact_and_without_it_is_not(vae, latents):
    """Face box of 4x4 latents in the middle; performance.md of the facts found 1.7e-6 at margin 8, 2e-3 at 4."""
    box = LatentBox(12, 16, 11, 15)

    def pixels(z, margin):
        part = box.dilated(margin, *latents.shape[-2:])
        top, left = (box.top - part.top) * 8, (box.left - part.left) * 8
        return decode(vae.decoder, z, crop=part)[..., top : top + 32, left : left + 32]

    z = latents.clone().requires_grad_(True)
    with torch.no_grad(), recorded_statistics(vae.decoder) as statistics:
        decode(vae.decoder, latents)
    whole = decode(vae.decoder, z)[..., 96:128, 88:120]
    direction = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad((whole * direction).sum(), z)
    with frozen_statistics(vae.decoder, statistics):
        cropped = pixels(z, 8)
        (found,) = torch.autograd.grad((cropped * direction).sum(), z)
        near = pixels(latents, 1)
    assert (cropped - whole).abs().max() < 1e-4
    assert (near - whole).abs().max() > 1e-3
    seen = (..., slice(12, 16), slice(11, 15))
    cosine = torch.nn.functional.cosine_similarity(found[seen].flatten(), expected[seen].flatten(), dim=0)
    assert cosine > 0.99


def test_norms_are_given_back(vae, latents):
    latents = latents[..., :8, :8]
    with torch.no_grad():
        before = decode(vae.decoder, latents)
        with recorded_statistics(vae.decoder) as statistics:
            decode(vae.decoder, latents)
        with pytest.raises(RuntimeError, match="on purpose"), frozen_statistics(vae.decoder, statistics):
            raise RuntimeError("on purpose")
        assert torch.equal(decode(vae.decoder, latents * 1), before)
        assert not any("forward" in vars(module) for module in vae.decoder.modules())


def test_boxes_grow_within_the_grid():
    assert LatentBox(1, 3, 5, 8).dilated(2, 4, 9) == LatentBox(0, 4, 3, 9)
