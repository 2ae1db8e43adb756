"""The order of a UNet's layers, parts of their blocks that all UNets share, and how blocks are called.

Letters are those of ``unet``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, cast

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.id_adapter import IDAdapter, PreparedCrossAttention

Checkpointing = Literal["off", "blocks", "diffusers"]
BlockRunner = Callable[..., Tensor]  # calls a function with its arguments, perhaps compiled or checkpointed


def call_block(function: BlockRunner, *arguments: object) -> Tensor:
    """The plain ``BlockRunner``: call the block."""
    return function(*arguments)


def checkpointed(function: BlockRunner, *arguments: object) -> Tensor:
    """Store the arguments only. These blocks draw no random numbers, so no generator state is stored."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def layers_of(block: Any) -> Iterator[tuple[Any, ...]]:
    """Residual block, attention (None without) and, in a UNet that has them, motion module of each layer of a down or
    up block."""
    none = [None] * len(block.resnets)
    parts = [block.resnets, getattr(block, "attentions", None) or none]
    if hasattr(block, "motion_modules"):
        parts.append(block.motion_modules or none)
    yield from zip(*parts, strict=True)


def down_layers(blocks: Iterable[Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each down layer (``layers_of``), or a downsampler: each produces one skip."""
    for block in blocks:
        yield from ((parts, None) for parts in layers_of(block))
        yield from (((), downsampler) for downsampler in block.downsamplers or ())


def up_layers(blocks: Iterable[Any], last: int) -> Iterator[tuple[tuple[Any, ...], Any, int]]:
    """The ``last`` up layers in order, the upsampler before each or None, and the number of layers left, this one
    included. Each takes one skip, the last layer the first skip. An upsampler's output has the size of the next skip,
    which is not twice its input's if the latent's side is odd."""
    layers: list[tuple[tuple[Any, ...], Any]] = []
    upsampler = None
    for block in blocks:
        for parts in layers_of(block):
            layers.append((parts, upsampler))
            upsampler = None
        upsampler = next(iter(block.upsamplers or ()), None)
    for left in range(last, 0, -1):
        yield *layers[-left], left


def prepared_layers(attentions: Iterable[Attention], context: Context) -> dict[nn.Module, PreparedCrossAttention]:
    """Values that cross-attention layers with ID adapters compute from tokens alone."""
    prepared = {attn: attn.processor.prepare(attn, context.image, context.face) for attn in attentions}
    return {attn: layer for attn, layer in prepared.items() if layer is not None}


def block_context(
    context: Context, block: nn.Module, regions: Tensor | None = None
) -> tuple[Context, PreparedCrossAttention | None]:
    """Inputs of one block's cross-attention, with ``regions`` at its level's size and without the entries of other
    layers: code compiled for one block then serves every block of its shape."""
    own = Context(context.image, context.face, {}, context.has_face, regions)
    return own, context.layers.get(block.attn2)


def spatial_cross_attention(
    block: BasicTransformerBlock, x: Tensor, context: Context, prepared: PreparedCrossAttention | None, frames: int
) -> Tensor:
    """Norm and cross-attention of a spatial block with image and face tokens. [bt,n,d] -> [bt,n,d]."""
    adapter: IDAdapter = block.attn2.processor
    regions = None if context.regions is None else rearrange(context.regions, "bt s h w -> s bt (h w) 1")
    if prepared is None:
        image, face = (
            repeat(part, "b k c -> (b t) k c", t=frames) if part is not None else None
            for part in (context.image, context.face)
        )
        has_face = None if context.has_face is None else repeat(context.has_face, "b -> (b t) 1 1", t=frames)
        return adapter.cross_attention(block.attn2, block.norm2(x), image, face, has_face, regions)
    normed = x if prepared.constant is not None else block.norm2(x)  # a constant does not depend on its input
    return adapter.apply(block.attn2, normed, prepared, frames, regions)


CACHED_DEVICES = {"cpu"}
"""Devices that compute small chunks fastest, with memory that is used again and stays in caches."""

_CACHED = 1 << 18  # numbers per chunk there; the layer itself is eight times as wide


def feed_forward(norm: nn.Module, feed: Callable[[Tensor], Tensor], x: Tensor, ff_chunks: int) -> Tensor:
    """``x + feed(norm(x))`` of [b,n,d], computed per position; without gradients in chunks, in place, in ``x``."""
    if torch.is_grad_enabled():
        return x + feed(norm(x))
    if x.device.type in CACHED_DEVICES:
        ff_chunks = max(ff_chunks, -(-x.numel() // _CACHED))
        feed = _with_two_products(feed)
    if ff_chunks == 1:
        return x + feed(norm(x))
    for part in x.chunk(ff_chunks, dim=int(x.shape[1] > x.shape[0])):  # views, whatever the layout of x
        part.add_(feed(norm(part)))
    return x


def _with_two_products(feed: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``feed`` with values and gates as a product each: diffusers' gated layer reads both from one, a half per row."""
    first = feed.net[0] if isinstance(feed, FeedForward) else None
    if not isinstance(first, GEGLU) or type(first.proj) is not nn.Linear:  # a quantized layer has its own product
        return feed
    weights, bias = first.proj.weight.chunk(2), first.proj.bias
    biases = (None, None) if bias is None else bias.chunk(2)

    def apply(x: Tensor) -> Tensor:
        value, gate = (functional.linear(x, *weight) for weight in zip(weights, biases, strict=True))
        value.mul_(functional.gelu(gate))
        for layer in cast(FeedForward, feed).net[1:]:
            value = layer(value)
        return value

    return apply
