"""Stable Diffusion's UNet with AnimateDiff's motion modules, a pose residual, ID adapters and an appearance encoder.

The model of the paper's Table 5 ("Magic"): MagicAnimate (Xu et al. 2024) is Stable Diffusion 1.5 (Rombach et al. 2022)
with AnimateDiff (Guo et al. 2024) and an appearance encoder. A subclass of diffusers' ``UNetMotionModel``: submodules,
weights and their names are unchanged; those of the appearance encoder begin with ``appearance.``. The pose enters like
in ``unet.AnimationUNet``, after ``conv_in``, not by a ControlNet. Letters are those of ``unet``.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from diffusers import UNetMotionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange, repeat
from torch import Tensor

from stableanimator_cli.nets.appearance_encoder import (
    AppearanceEncoder,
    call_resnet,
    project_in,
    project_out,
)
from stableanimator_cli.nets.context import Context, resize_regions
from stableanimator_cli.nets.denoising_unet import DenoisingUNet
from stableanimator_cli.nets.id_adapter import IDMode, PreparedCrossAttention
from stableanimator_cli.nets.unet_blocks import (
    block_context,
    down_layers,
    feed_forward,
    spatial_cross_attention,
    up_layers,
)


class MotionUNet(DenoisingUNet, UNetMotionModel):
    """``timestep`` is in 0..999, the output predicted noise (epsilon); ``added_time_ids`` are not used.

    ``config`` holds the stock class's arguments. ``reference_scale`` brings unscaled reference latents, of which the
    first frame counts, to the scale of the noisy ones (the VAE's ``scaling_factor``).

    A window has at most ``motion_max_seq_length`` frames, the positions that the motion modules know.
    """

    block_types = (ResnetBlock2D, BasicTransformerBlock)  # of group offload

    def __init__(
        self, *, id_tokens: int = 4, id_mode: IDMode = "distribution", reference_scale: float = 0.18215, **config: Any
    ) -> None:
        super().__init__(**config)
        self.appearance = AppearanceEncoder(**appearance_config(self.config))
        self.reference_scale = reference_scale
        self._block_names = {module: name for name, module in self.named_modules() if hasattr(module, "attn2")}
        self.add_id_adapters(id_tokens, id_mode)

    def spatial_cross_attentions(self) -> dict[str, Attention]:
        """The layers with an ID adapter, by name: the denoiser's ``attn2``, not those of motion modules."""
        return {
            name: module
            for name, module in self.named_modules()
            if name.endswith(".attn2") and ".attentions." in name and not name.startswith("appearance.")
        }

    @torch.no_grad()
    def zero_temporal_branches(self) -> None:
        for name, parameter in self.named_parameters():
            if ".motion_modules." in name and ".proj_out." in name:
                parameter.zero_()

    @property
    def sample_channels(self) -> int:
        return 2 * self.config["in_channels"]

    def _forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        context: Context,
        added_time_ids: Tensor | None = None,
        pose: Tensor | None = None,
        *,
        image_only: bool = False,
        layers: int = 0,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        noisy, reference = sample.chunk(2, dim=2)
        steps = torch.as_tensor(timestep, device=sample.device, dtype=torch.float32).expand(len(sample))
        run_resnet, run_block = self.runners()
        features = self.appearance(reference[:, 0] * self.reference_scale, steps, context.image, run_resnet, run_block)
        return self.denoise(noisy, steps, context, pose, features, image_only=image_only, layers=layers, deep=deep)

    def denoise(
        self,
        noisy: Tensor,
        steps: Tensor,
        context: Context,
        pose: Tensor | None,
        features: dict[str, Tensor],
        *,
        image_only: bool = False,
        layers: int = 0,
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The output, and the input of the last ``layers`` up layers; with ``deep`` only these layers run.

        ``features`` of the appearance encoder by the name of a block; without, its self-attention sees its frame alone.
        """
        batch, frames = noisy.shape[:2]
        context.check(self.id_tokens, batch * frames, (noisy.shape[-2], noisy.shape[-1]))
        run_resnet, run_block = self.runners()
        emb = self.time_embedding(self.time_proj(steps).to(noisy.dtype))
        emb = repeat(emb, "b d -> (b t) d", t=frames)

        def layer(x: Tensor, resnet: Any, attention: Any, motion: Any) -> Tensor:
            x = run_resnet(call_resnet, resnet, x, emb)
            x = x if attention is None else attend(attention, x)
            return x if image_only or motion is None else move(motion, x)

        def attend(attention: Any, x: Tensor) -> Tensor:
            size = (x.shape[-2], x.shape[-1])
            regions = None if context.regions is None else resize_regions(context.regions, size)
            y = project_in(attention, x)
            for block in attention.transformer_blocks:
                feature, own = features.get(self._block_names[block]), block_context(context, block, regions)
                y = run_block(_spatial_block, block, y, feature, *own, frames, self.ff_chunks)
            return x + project_out(attention, y, size[0])

        def move(motion: Any, x: Tensor) -> Tensor:
            height, width = x.shape[-2:]
            y = motion.norm(rearrange(x, "(b t) c h w -> b c t h w", t=frames))
            y = motion.proj_in(rearrange(y, "b c t h w -> (b h w) t c"))
            for block in motion.transformer_blocks:
                y = run_block(_motion_block, block, y, self.ff_chunks)
            y = rearrange(motion.proj_out(y), "(b h w) t c -> (b t) c h w", b=batch, h=height, w=width)
            return x + y.contiguous()

        x = self.conv_in(rearrange(noisy, "b t c h w -> (b t) c h w"))
        if pose is not None:
            x = x + pose
        skips = [x]
        for parts, downsampler in islice(down_layers(self.down_blocks), None if deep is None else layers - 1):
            x = layer(x, *parts) if downsampler is None else downsampler(x)
            skips.append(x)

        if deep is None:
            middle: Any = self.mid_block
            motions = getattr(middle, "motion_modules", None) or [None] * len(middle.attentions)
            x = run_resnet(call_resnet, middle.resnets[0], x, emb)
            for attention, resnet, motion in zip(middle.attentions, middle.resnets[1:], motions, strict=True):
                x = attend(attention, x)
                x = x if image_only or motion is None else move(motion, x)
                x = run_resnet(call_resnet, resnet, x, emb)
        else:
            x = deep

        for parts, upsampler, left in up_layers(self.up_blocks, self.num_up_layers if deep is None else layers):
            if left == layers and deep is None:
                deep = x
            if upsampler is not None:
                x = upsampler(x, skips[-1].shape[-2:])
            x = layer(torch.cat([x, skips.pop()], dim=1), *parts)
        output = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return rearrange(output, "(b t) c h w -> b t c h w", t=frames), x if deep is None else deep


_SHARED = (  # with ``UNet2DConditionModel``
    "in_channels", "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn",
    "norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "use_linear_projection",
)  # fmt: skip


def appearance_config(config: Any) -> dict[str, Any]:
    """Arguments of the appearance encoder beside a ``UNetMotionModel`` with ``config``."""
    blocks = {
        key: tuple(kind.replace("Motion", "2D") for kind in config[key])
        for key in ("down_block_types", "up_block_types")
    }
    # diffusers names the number of heads so, by a mistake that Stable Diffusion's config keeps
    return {key: config[key] for key in _SHARED} | blocks | {"attention_head_dim": config["num_attention_heads"]}


def _spatial_block(
    block: BasicTransformerBlock,
    x: Tensor,
    feature: Tensor | None,
    context: Context,
    prepared: PreparedCrossAttention | None,
    frames: int,
    ff_chunks: int,
) -> Tensor:
    """Self-attention within a frame and to the reference's ``feature`` [b,n,d], cross-attention, feed-forward."""
    normed = block.norm1(x)
    if feature is None:
        x = x + block.attn1(normed)
    else:
        keys = torch.cat([normed, repeat(feature, "b n d -> (b t) n d", t=frames)], dim=1)
        x = x + block.attn1(normed, encoder_hidden_states=keys)
    x = x + spatial_cross_attention(block, x, context, prepared, frames)
    return feed_forward(block.norm3, block.ff, x, ff_chunks)


def _motion_block(block: BasicTransformerBlock, y: Tensor, ff_chunks: int) -> Tensor:
    """Two self-attentions along time, each with the positions of the frames, and a feed-forward. [(b h w),t,d]."""
    for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
        y = y + attention(block.pos_embed(norm(y)))
    return feed_forward(block.norm3, block.ff, y, ff_chunks)
