"""Self-attention of Wan-Animate-2 frame by frame: what diffusers computes with a compiled mask, without a compiler.

A generated frame attends to all generated tokens and to the tokens of the driving video at its own time; the first one,
the reference image's, to no driving frame. diffusers' processor packs both into one buffer for flex attention, which
materializes all scores unless it is compiled: 600 GB per layer at 640x800 and 81 frames. Here each frame's keys are
concatenated and one call of the usual attention computes them. Small calls keep diffusers' own way, to the bit.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan_animate_2 import (
    WanAnimate2AttnProcessor,
    WanAnimate2KVCache,
    WanAnimate2KVLayerCache,
    rope_apply,
)
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

LARGEST_SCORES = 2**26
"""Bytes of a layer's float32 scores up to which diffusers' own attention runs uncompiled."""
_ALIGNMENT = 128  # tokens, of the packed buffer


def set_frame_attention(transformer: Any) -> Any:
    """Make the self-attentions of a ``WanAnimate2Transformer3DModel`` ``FrameAttention``; returns it."""
    for block in transformer.blocks:
        block.self_attn.set_processor(FrameAttention())
    return transformer


def prepare_mask(transformer: Any, frames: int, tokens: int, device: torch.device) -> None:
    """Give a transformer with ``FrameAttention`` its mask for ``frames`` driving latents of ``tokens`` tokens each.

    Without one the transformer would compile it.
    """
    if isinstance(transformer.blocks[0].self_attn.processor, FrameAttention):
        scores = _scores(frames, tokens, transformer.config.num_heads)
        mask = block_mask(frames, tokens, device) if scores <= LARGEST_SCORES and device.type != "meta" else None
        transformer.block_masks[frames, tokens] = mask


@functools.lru_cache(maxsize=8)  # torch traces its attention again for every new mask
def block_mask(frames: int, tokens: int, device: torch.device) -> BlockMask:
    """The mask of diffusers' ``create_mask``, which compiles it. Its size in memory is that of the scores."""
    generated, driving = (frames + 1) * tokens, frames * tokens
    packed = _aligned(generated)

    def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_driving = key - packed
        same_frame = (of_driving >= 0) & (of_driving < driving) & (of_driving // tokens + 1 == query // tokens)
        return (query < generated) & ((key < generated) | same_frame)

    return create_block_mask(attends, None, None, packed, packed + _aligned(driving), device=device)


class FrameAttention(WanAnimate2AttnProcessor):
    """diffusers' processor with the generation pass computed frame by frame if ``prepare_mask`` left out its mask.

    Both grids must be those that the mask is made for, as in segments of equal length and size.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        rotary_emb: Tensor,
        grid_sizes: Tensor,
        kv_cache: WanAnimate2KVLayerCache,
        kv_cache_mode: str,
        rope_stride: int = 1,
        reference_rotary_emb: Tensor | None = None,
        reference_grid_sizes: Tensor | None = None,
        reference_rope_stride: int = 1,
        attention_mask: BlockMask | None = None,
        **grid: Any,
    ) -> Tensor:
        if kv_cache_mode == "extract" or attention_mask is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "flex_attention called without torch.compile")  # small on purpose
                return super().__call__(
                    attn, hidden_states, rotary_emb, grid_sizes, kv_cache, kv_cache_mode, rope_stride,
                    reference_rotary_emb, reference_grid_sizes, reference_rope_stride, attention_mask, **grid,
                )  # fmt: skip
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        query = rope_apply(query, grid_sizes, rotary_emb, rope_stride).type_as(value)
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        key = rope_apply(key, grid_sizes, rotary_emb, rope_stride).type_as(value)
        driving_key, driving_value = kv_cache.get()
        driving_key = rope_apply(
            driving_key, reference_grid_sizes, reference_rotary_emb, reference_rope_stride
        ).type_as(value)  # fmt: skip
        frames = int(grid_sizes[0][0])
        tokens = query.shape[1] // frames
        parts = []
        for frame in range(frames):
            keys, values = key, value
            if frame:
                own = slice((frame - 1) * tokens, frame * tokens)
                keys = torch.cat([key, driving_key[:, own]], dim=1)
                values = torch.cat([value, driving_value[:, own]], dim=1)
            queries = query[:, frame * tokens : (frame + 1) * tokens]
            parts.append(dispatch_attention_fn(queries, keys, values, backend=self._attention_backend))
        out: nn.ModuleList = attn.to_out
        return out[1](out[0](torch.cat(parts, dim=1).flatten(2, 3).type_as(query)))


class HostKVCache(WanAnimate2KVCache):
    """A cache that keeps each layer's keys and values in host memory while other layers run."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(num_layers)
        self.layer_caches = [_HostLayer() for _ in range(num_layers)]


class _HostLayer(WanAnimate2KVLayerCache):
    def store(self, key: Tensor, value: Tensor) -> None:
        self._device = key.device
        super().store(key.cpu(), value.cpu())

    def get(self) -> tuple[Tensor, Tensor]:
        key, value = super().get()
        return key.to(self._device), value.to(self._device)


def _aligned(tokens: int) -> int:
    return math.ceil(tokens / _ALIGNMENT) * _ALIGNMENT


def _scores(frames: int, tokens: int, heads: int) -> int:
    """Bytes of a layer's float32 scores over the packed buffers."""
    packed = _aligned((frames + 1) * tokens)
    return 4 * heads * packed * (packed + _aligned(frames * tokens))
