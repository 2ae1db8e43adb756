"""Wan-Animate-2's attention frame by frame: the mask is diffusers', and so are the results."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import WanAnimate2Transformer3DModel
from diffusers.models.transformers import transformer_wan_animate_2
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2AttnProcessor, WanAnimate2KVCache
from torch import Tensor

from stableanimator_cli.nets import frame_attention
from stableanimator_cli.nets.frame_attention import HostKVCache, block_mask, prepare_mask, set_frame_attention

CPU = torch.device("cpu")
FRAMES, ROWS, COLUMNS = 3, 3, 2
TOKENS = ROWS * COLUMNS


@pytest.fixture
def transformer() -> Any:
    torch.manual_seed(0)
    return WanAnimate2Transformer3DModel(
        dim=24, ffn_dim=16, freq_dim=16, text_dim=16, num_heads=2, num_layers=2
    ).eval()  # fmt: skip


def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep diffusers from compiling its mask, which takes half a minute and a compiler and changes nothing."""
    create = transformer_wan_animate_2.create_block_mask
    monkeypatch.setattr(
        transformer_wan_animate_2, "create_block_mask", lambda *args, _compile, **rest: create(*args, **rest)
    )


def predict(transformer: Any, cache: WanAnimate2KVCache, frames: int = FRAMES) -> Tensor:
    """A denoising step after the pass over the driving video."""
    drawn = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=drawn)

    height, width, grid = 2 * ROWS, 2 * COLUMNS, torch.tensor([[frames, ROWS, COLUMNS]])
    image = random(1, 5, 1280)
    with torch.no_grad():
        transformer(
            [random(16, frames, height, width)], timestep=torch.ones(1), encoder_hidden_states=[random(512, 16)],
            encoder_hidden_states_image=image, condition_latents=[random(20, frames, height, width)], kv_cache=cache,
            kv_cache_mode="extract", seq_len=frames * TOKENS, offset_grid_sizes=grid,
        )  # fmt: skip
        return transformer(
            [random(16, frames + 1, height, width)], timestep=torch.full((1,), 500.0),
            encoder_hidden_states=[random(512, 16)], encoder_hidden_states_image=image,
            condition_latents=[random(20, frames + 1, height, width)], kv_cache=cache, kv_cache_mode="cached",
            seq_len=(frames + 1) * TOKENS, reference_grid_sizes=grid, origin_len=4 * frames - 3,
            origin_area=[8 * height, 8 * width],
        ).sample[0]  # fmt: skip


def test_the_mask_is_diffusers_own(transformer, monkeypatch):
    uncompiled(monkeypatch)
    theirs, ours = transformer.create_mask(FRAMES, 40, CPU), block_mask(FRAMES, 40, CPU)
    assert torch.equal(theirs.to_dense(), ours.to_dense())
    query, key = torch.arange(256)[:, None], torch.arange(384)[None]
    assert torch.equal(theirs.mask_mod(0, 0, query, key), ours.mask_mod(0, 0, query, key))


@pytest.mark.filterwarnings("error")  # no warning about attention that is not compiled
def test_small_calls_are_diffusers_own_to_the_bit(transformer):
    set_frame_attention(transformer)
    prepare_mask(transformer, FRAMES, TOKENS, CPU)
    ours = predict(transformer, WanAnimate2KVCache(2))
    for block in transformer.blocks:
        block.self_attn.set_processor(WanAnimate2AttnProcessor())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(predict(transformer, WanAnimate2KVCache(2)), ours)


def test_frame_by_frame_it_is_equal_within_rounding(transformer, monkeypatch):
    set_frame_attention(transformer)
    prepare_mask(transformer, FRAMES, TOKENS, CPU)
    packed = predict(transformer, WanAnimate2KVCache(2))
    monkeypatch.setattr(frame_attention, "LARGEST_SCORES", 0)
    prepare_mask(transformer, FRAMES, TOKENS, CPU)
    assert transformer.block_masks[FRAMES, TOKENS] is None
    framewise = predict(transformer, WanAnimate2KVCache(2))
    torch.testing.assert_close(framewise, packed, rtol=1e-5, atol=1e-5)
    assert not torch.equal(framewise, packed)


def test_a_driving_frame_reaches_the_generated_frame_of_its_time_only(transformer, monkeypatch):
    monkeypatch.setattr(frame_attention, "LARGEST_SCORES", 0)
    set_frame_attention(transformer)
    attention = transformer.blocks[0].self_attn
    grid, generated = torch.tensor([[FRAMES + 1, ROWS, COLUMNS]]), torch.randn(1, (FRAMES + 1) * TOKENS, 24)
    rotary = transformer._rope_freqs((0, 0, 0), CPU)
    key, value = torch.randn(2, 1, FRAMES * TOKENS, 2, 12)

    def attend(value: Tensor) -> Tensor:
        cache = WanAnimate2KVCache(1).get(0)
        cache.store(key, value)
        with torch.no_grad():
            return attention(
                generated, rotary_emb=rotary, grid_sizes=grid, kv_cache=cache, kv_cache_mode="cached",
                reference_rotary_emb=rotary, reference_grid_sizes=torch.tensor([[FRAMES, ROWS, COLUMNS]]),
            )  # fmt: skip

    changed = value.clone()
    changed[:, TOKENS : 2 * TOKENS] += 1  # the second driving frame
    moved = (attend(changed) != attend(value)).any(dim=-1).reshape(FRAMES + 1, TOKENS).any(dim=-1)
    assert moved.tolist() == [False, False, True, False]  # the first generated one is the reference's


def test_keys_in_host_memory_are_the_same(transformer):
    set_frame_attention(transformer)
    prepare_mask(transformer, FRAMES, TOKENS, CPU)
    assert torch.equal(predict(transformer, HostKVCache(2)), predict(transformer, WanAnimate2KVCache(2)))
