"""The decoder of Wan's VAE in parts, against diffusers' own decoding of the whole."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange
from torch import Tensor

from stableanimator_cli.nets.temporal_decoder import LatentBox
from stableanimator_cli.nets.wan_decoder import CausalDecoder, frames_of, unscaled


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval().requires_grad_(False)


def latents(frames: int = 5, height: int = 6, width: int = 7) -> Tensor:
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(1))


def whole(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    return rearrange(vae.decode(z, return_dict=False)[0], "1 c t h w -> t c h w")


def decoded(vae: AutoencoderKLWan, z: Tensor, **options: bool) -> Tensor:
    decoder = CausalDecoder(vae, **options)
    return torch.cat(list(decoder.frames(z, decoder.start())))


def test_one_after_the_other_is_diffusers_decoding_to_the_bit(vae):
    z = latents()
    with torch.no_grad():
        assert torch.equal(decoded(vae, z).clamp(-1, 1), whole(vae, z))
    assert len(whole(vae, z)) == len(frames_of(range(5), 4)) == 17


def test_frames_of_latents():
    assert [list(frames_of(range(a, b), 4)) for a, b in ((0, 1), (1, 2), (0, 2), (2, 2))] == [
        [0], [1, 2, 3, 4], [0, 1, 2, 3, 4], [],
    ]  # fmt: skip


def test_a_chunk_after_its_cache_is_that_part_of_the_video(vae):
    z, decoder = latents(), CausalDecoder(vae)
    with torch.no_grad():
        cache = decoder.start()
        decoder.advance(z[:, :, :2], cache)
        kept = list(cache)
        frames = frames_of(range(2, 4), 4)
        chunk = torch.cat(list(decoder.frames(z[:, :, 2:4], cache))).clamp(-1, 1)
        assert torch.equal(chunk, whole(vae, z)[frames.start : frames.stop])
        again = torch.cat(list(decoder.frames(z[:, :, 2:4], list(kept)))).clamp(-1, 1)
    assert torch.equal(again, chunk)  # a copied cache starts again


@pytest.mark.parametrize("first", [0, 2])
def test_a_crop_with_its_margin_is_the_full_frame(vae, first):
    z, decoder = latents(4, 40, 36), CausalDecoder(vae)
    box = LatentBox(20, 24, 16, 22)
    crop = box.dilated(13, 40, 36)
    with torch.no_grad():
        cache = decoder.start()
        decoder.advance(z[:, :, :first], cache)
        part = torch.cat(list(decoder.frames(z[:, :, first:], decoder.cropped(cache, crop, z), crop=crop)))
        full = torch.cat(list(decoder.frames(z[:, :, first:], cache)))
    inside = (slice(8 * box.top, 8 * box.bottom), slice(8 * box.left, 8 * box.right))
    within = tuple(slice(s.start - 8 * o, s.stop - 8 * o) for s, o in zip(inside, (crop.top, crop.left), strict=True))
    torch.testing.assert_close(part[..., within[0], within[1]], full[..., inside[0], inside[1]], atol=1e-5, rtol=1e-5)
    assert part.shape[-2:] == (8 * (crop.bottom - crop.top), 8 * (crop.right - crop.left))


def test_checkpoints_change_neither_frames_nor_gradients(vae):
    gradients, outputs = [], []
    for checkpointed in (False, True):
        z = latents(3).requires_grad_(True)
        outputs.append(decoded(vae, z, checkpointed=checkpointed))
        (outputs[-1] ** 2).sum().backward()
        gradients.append(z.grad)
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)
    assert all(gradients[0][:, :, index].any() for index in range(3))


def test_the_scale_is_the_pipelines(vae):
    from diffusers.modular_pipelines.wan_animate_2.denoise import decode_vae

    x = latents()
    with torch.no_grad():
        ours = decoded(vae, unscaled(vae, rearrange(x, "1 c t h w -> t c h w"))).clamp(-1, 1)
        assert torch.equal(ours, rearrange(decode_vae(vae, x), "1 c t h w -> t c h w"))
