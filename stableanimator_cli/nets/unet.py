"""The denoising UNet: Stable Video Diffusion's, with a pose residual and ID adapters (StableAnimator, Fig. 2).

A subclass of diffusers' stock class. Submodules, weights and their names are unchanged. ``forward`` is our own, so
that pose and prepared attention are arguments and no hook holds state. Letters: ``b`` video, ``t`` frame, ``bt`` both
folded (video-major), ``c h w`` latents, ``n`` positions, ``d`` width, ``k`` tokens.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from einops import rearrange, repeat
from torch import Tensor

from stableanimator_cli.nets.context import Context, resize_regions
from stableanimator_cli.nets.denoising_unet import DenoisingUNet
from stableanimator_cli.nets.id_adapter import IDMode, PreparedCrossAttention, project_out
from stableanimator_cli.nets.norm_groups import DEFAULT_NORM_GROUPS, set_norm_groups
from stableanimator_cli.nets.time_conv import with_time_convs
from stableanimator_cli.nets.unet_blocks import (
    BlockRunner,
    block_context,
    down_layers,
    feed_forward,
    spatial_cross_attention,
    up_layers,
)

_TEMPORAL_ENDS = (  # last layers of temporal residual branches
    ".temporal_res_block.conv2.",
    ".time_pos_embed.linear_2.",
    *(f".temporal_transformer_blocks.0.{end}." for end in ("attn1.to_out.0", "attn2.to_out.0")),
    *(f".temporal_transformer_blocks.0.{end}." for end in ("ff.net.2", "ff_in.net.2")),
)


class AnimationUNet(DenoisingUNet, UNetSpatioTemporalConditionModel):
    """``timestep`` is 0.25 ln sigma, the output [b,t,4,h,w] a v-prediction.

    ``config`` holds the stock class's arguments (SVD's ``unet/config.json``). ``norm_num_groups`` is for narrow models
    (``norm_groups``). Temporal cross-attention has no face tokens.
    """

    def __init__(
        self,
        *,
        id_tokens: int = 4,
        id_mode: IDMode = "distribution",
        norm_num_groups: int = DEFAULT_NORM_GROUPS,
        **config: Any,
    ) -> None:
        super().__init__(**{key: value for key, value in config.items() if not key.startswith("_")})
        with_time_convs(set_norm_groups(self, norm_num_groups))
        self.add_id_adapters(id_tokens, id_mode)

    def spatial_cross_attentions(self) -> dict[str, Attention]:
        """The layers with an ID adapter, by name: every ``attn2`` that is not temporal."""
        return {
            name: module
            for name, module in self.named_modules()
            if name.endswith(".attn2") and ".transformer_blocks." in name
        }

    def temporal_cross_attentions(self) -> dict[str, Attention]:
        """The temporal ``attn2`` layers, by name; their keys are image tokens only."""
        return {
            name: module
            for name, module in self.named_modules()
            if name.endswith(".attn2") and ".temporal_transformer_blocks." in name
        }

    @torch.no_grad()
    def zero_temporal_branches(self) -> None:
        for name, parameter in self.named_parameters():
            if any(ending in name for ending in _TEMPORAL_ENDS):
                parameter.zero_()

    @property
    def sample_channels(self) -> int:
        return self.config["in_channels"]

    def context(self, tokens: Tensor, *, face: bool = True) -> Context:
        """Split ``tokens`` [b,k+id_tokens,c] into a context without prepared layers; ``face`` False: image alone."""
        if not face:
            return Context(tokens, None)
        return Context(tokens[:, : -self.id_tokens], tokens[:, -self.id_tokens :])

    def prepare(self, context: Context) -> Context:
        prepared = super().prepare(context)
        if context.image.shape[1] != 1:
            return prepared
        constant = {
            attn: PreparedCrossAttention(constant=project_out(attn, attn.to_v(context.image)))
            for attn in self.temporal_cross_attentions().values()
        }
        return replace(prepared, layers={**prepared.layers, **constant})

    def _forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        context: Tensor | Context,
        added_time_ids: Tensor,
        pose: Tensor | None = None,
        *,
        image_only: bool = False,
        layers: int = 0,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        batch, frames = sample.shape[:2]
        if isinstance(context, Tensor):
            context = self.context(context)
        context.check(self.id_tokens, batch * frames, (sample.shape[-2], sample.shape[-1]))
        indicator = sample.new_full((batch, frames), float(image_only))
        run_block, run_temporal = self.runners()
        runners = _BlockRunners(run_block, run_temporal, self.ff_chunks)
        emb = repeat(self._time_embedding(timestep, added_time_ids, batch, sample), "b d -> (b t) d", t=frames)

        x = self.conv_in(rearrange(sample, "b t c h w -> (b t) c h w"))
        if pose is not None:
            x = x + pose
        skips = [x]
        for parts, downsampler in islice(down_layers(self.down_blocks), None if deep is None else layers - 1):
            if downsampler is not None:
                x = downsampler(x)
            else:
                resnet, attention = parts
                x = run_block(_resnet, resnet, x, emb, indicator, image_only)
                x = _transformer(attention, x, context, indicator, image_only, runners) if attention is not None else x
            skips.append(x)

        if deep is None:
            x = run_block(_resnet, self.mid_block.resnets[0], x, emb, indicator, image_only)
            for attention, resnet in zip(self.mid_block.attentions, self.mid_block.resnets[1:], strict=True):
                x = _transformer(attention, x, context, indicator, image_only, runners)
                x = run_block(_resnet, resnet, x, emb, indicator, image_only)
        else:
            x = deep

        for (resnet, attention), upsampler, left in up_layers(
            self.up_blocks, self.num_up_layers if deep is None else layers
        ):
            if left == layers and deep is None:
                deep = x
            if upsampler is not None:
                x = upsampler(x, skips[-1].shape[-2:])
            x = run_block(_resnet_with_skip, resnet, x, skips.pop(), emb, indicator, image_only)
            x = _transformer(attention, x, context, indicator, image_only, runners) if attention is not None else x

        output = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return rearrange(output, "(b t) c h w -> b t c h w", t=frames), x if deep is None else deep

    def _time_embedding(self, timestep: Tensor | float, added: Tensor, batch: int, sample: Tensor) -> Tensor:
        """Noise level, frame rate, motion bucket and noise augmentation as one vector [b,d]."""
        steps = torch.as_tensor(timestep, device=sample.device, dtype=torch.float32).expand(batch)
        emb = self.time_embedding(self.time_proj(steps).to(sample.dtype))
        extra = rearrange(self.add_time_proj(added.flatten().to(sample.device)), "(b k) d -> b (k d)", b=batch)
        return emb + self.add_embedding(extra.to(sample.dtype))


class _BlockRunners(NamedTuple):
    """Runners of spatial and temporal transformer blocks, and the chunks of their feed-forward layers."""

    spatial: BlockRunner
    temporal: BlockRunner
    ff_chunks: int


def _resnet(resnet: SpatioTemporalResBlock, x: Tensor, emb: Tensor, indicator: Tensor, image_only: bool) -> Tensor:
    """Spatial then temporal residual block. For single images the temporal one has no effect and is skipped."""
    return resnet.spatial_res_block(x, emb) if image_only else resnet(x, emb, indicator)


def _resnet_with_skip(
    resnet: SpatioTemporalResBlock, x: Tensor, skip: Tensor, emb: Tensor, indicator: Tensor, image_only: bool
) -> Tensor:
    """``_resnet`` on features and their skip. Concatenated here, so that checkpointing stores no copy of both."""
    return _resnet(resnet, torch.cat([x, skip], dim=1), emb, indicator, image_only)


def _transformer(
    module: TransformerSpatioTemporalModel,
    x: Tensor,
    context: Context,
    indicator: Tensor,
    image_only: bool,
    runners: _BlockRunners,
) -> Tensor:
    """Spatial then temporal attention of one level, mixed by a learned factor. [bt,c,h,w] -> [bt,c,h,w]."""
    batch, frames = indicator.shape
    height, width = x.shape[-2:]
    regions = None if context.regions is None else resize_regions(context.regions, (height, width))
    y = module.proj_in(rearrange(module.norm(x), "bt c h w -> bt (h w) c"))
    position = module.time_pos_embed(module.time_proj(torch.arange(frames, device=x.device)).to(y.dtype))
    position = repeat(position, "t d -> (b t) 1 d", b=batch)
    for spatial, temporal in zip(module.transformer_blocks, module.temporal_transformer_blocks, strict=True):
        y = runners.spatial(
            _spatial_block, spatial, y, *block_context(context, spatial, regions), frames, runners.ff_chunks
        )
        if not image_only:
            temporal_output = runners.temporal(
                _temporal_block, temporal, y, position, *block_context(context, temporal), frames, runners.ff_chunks
            )
            y = module.time_mixer(y, temporal_output, indicator)
            del temporal_output  # as large as y: free it before the next block
    return x + rearrange(module.proj_out(y), "bt (h w) c -> bt c h w", h=height)


def _spatial_block(
    block: BasicTransformerBlock,
    x: Tensor,
    context: Context,
    prepared: PreparedCrossAttention | None,
    frames: int,
    ff_chunks: int,
) -> Tensor:
    """Self-attention within a frame, cross-attention with image and face tokens, feed-forward. [bt,n,d]."""
    x = x + block.attn1(block.norm1(x))
    x = x + spatial_cross_attention(block, x, context, prepared, frames)
    return feed_forward(block.norm3, block.ff, x, ff_chunks)


def _temporal_block(
    block: TemporalBasicTransformerBlock,
    x: Tensor,
    position: Tensor,
    context: Context,
    prepared: PreparedCrossAttention | None,
    frames: int,
    ff_chunks: int,
) -> Tensor:
    """Attention along time at each position; cross-attention with the image tokens only. x [bt,n,d], position
    [bt,1,d]."""
    positions = x.shape[1]
    x = rearrange(x + position, "(b t) n d -> (b n) t d", t=frames)
    x = feed_forward(block.norm_in, block.ff_in, x, ff_chunks) if block.is_res else block.ff_in(block.norm_in(x))
    x = x + block.attn1(block.norm1(x))
    if prepared is None:
        image = repeat(context.image, "b k c -> (b n) k c", n=positions)
        x = x + block.attn2(block.norm2(x), encoder_hidden_states=image)
    else:
        x = x + repeat(prepared.constant, "b 1 d -> (b n) 1 d", n=positions)
    x = feed_forward(block.norm3, block.ff, x, ff_chunks) if block.is_res else block.ff(block.norm3(x))
    return rearrange(x, "(b n) t d -> (b t) n d", n=positions)
