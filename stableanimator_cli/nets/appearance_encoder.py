"""The appearance encoder: a copy of Stable Diffusion's UNet whose self-attention inputs describe the reference.

MagicAnimate (Xu et al. 2024, Sec. 3.2) and Animate Anyone (Hu 2024) append these features to the keys and values of the
denoiser's own self-attention, so each frame can copy details of the reference from any position.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from einops import rearrange
from torch import Tensor

from stableanimator_cli.nets.unet_blocks import BlockRunner, down_layers, up_layers


class AppearanceEncoder(UNet2DConditionModel):
    """Reference latents [b,c,h,w] -> inputs of all spatial self-attentions [b,n,d], by the name of their block.

    ``config`` holds the stock class's arguments. Layers behind the last of these inputs do not exist, as nothing would
    read them: they would never get a gradient.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.conv_norm_out = self.conv_act = self.conv_out = None
        last = self._transformers()[-1]
        last.proj_out = None
        block = last.transformer_blocks[-1]
        block.attn1 = block.norm2 = block.attn2 = block.norm3 = block.ff = None
        self._names = {module: name for name, module in self.named_modules() if isinstance(module, _BLOCK)}

    def _transformers(self) -> list[Any]:
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [attention for block in blocks for attention in getattr(block, "attentions", None) or ()]

    def forward(
        self, latents: Tensor, timestep: Tensor, image: Tensor, run_resnet: BlockRunner, run_block: BlockRunner
    ) -> dict[str, Tensor]:
        """``latents`` in the denoiser's scale, ``timestep`` [b] (MagicAnimate: that of the denoiser), ``image``
        [b,k,c] tokens. The runners call residual and transformer blocks (``unet_blocks.BlockRunner``)."""
        features: dict[str, Tensor] = {}
        emb = self.time_embedding(self.time_proj(timestep).to(latents.dtype))
        x = self.conv_in(latents)
        if torch.is_grad_enabled() and not x.requires_grad:
            # torch's backward of GroupNorm crashes for channels-last inputs on a CPU that need no gradient
            x.requires_grad_(True)
        skips = [x]

        def attend(attention: Any, x: Tensor) -> Tensor:
            height = x.shape[-2]
            y = project_in(attention, x)
            for block in attention.transformer_blocks:
                if block.attn1 is None:
                    features[self._names[block]] = run_block(_normed, block, y)
                    return x
                y, features[self._names[block]] = run_block(_block, block, y, image)
            return x + project_out(attention, y, height)

        def layer(x: Tensor, resnet: Any, attention: Any) -> Tensor:
            x = run_resnet(call_resnet, resnet, x, emb)
            return attend(attention, x) if attention is not None else x

        for parts, downsampler in down_layers(self.down_blocks):
            x = layer(x, *parts) if downsampler is None else downsampler(x)
            skips.append(x)
        middle: Any = self.mid_block
        x = run_resnet(call_resnet, middle.resnets[0], x, emb)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = run_resnet(call_resnet, resnet, attend(attention, x), emb)
        for parts, upsampler, _ in up_layers(self.up_blocks, len(skips)):
            if upsampler is not None:
                x = upsampler(x, skips[-1].shape[-2:])
            x = layer(torch.cat([x, skips.pop()], dim=1), *parts)
        return features


_BLOCK = BasicTransformerBlock


def call_resnet(resnet: Any, x: Tensor, emb: Tensor) -> Tensor:
    return resnet(x, emb)


def project_in(attention: Any, x: Tensor) -> Tensor:
    """Norm and input projection of a ``Transformer2DModel``: [b,c,h,w] -> [b,n,d]."""
    y = attention.norm(x)
    if attention.use_linear_projection:
        return attention.proj_in(rearrange(y, "b c h w -> b (h w) c"))
    return rearrange(attention.proj_in(y), "b c h w -> b (h w) c")


def project_out(attention: Any, y: Tensor, height: int) -> Tensor:
    """Output projection of a ``Transformer2DModel``: [b,n,d] -> [b,c,h,w]."""
    if attention.use_linear_projection:
        return rearrange(attention.proj_out(y), "b (h w) c -> b c h w", h=height)
    return attention.proj_out(rearrange(y, "b (h w) c -> b c h w", h=height))


def _normed(block: Any, y: Tensor) -> Tensor:
    return block.norm1(y)


def _block(block: Any, y: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """A transformer block's output, and the input of its self-attention."""
    normed = block.norm1(y)
    y = y + block.attn1(normed)
    y = y + block.attn2(block.norm2(y), encoder_hidden_states=image)
    return y + block.ff(block.norm3(y)), normed
