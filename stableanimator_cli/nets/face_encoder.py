"""Global content-aware Face Encoder (StableAnimator §3.2): ArcFace embedding and CLIP token to face tokens.

The embedding is projected to tokens, which then attend to the image's CLIP token through a small perceiver stack.
Names of the weights are those of the released ``face_encoder.pth``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from stableanimator_cli.nets.placed import PlacedModule

HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceEncoderConfig:
    """Widths of the face tokens (``cross_attention_dim``), of the face embedding and of the image's token.

    ``fusion`` False is the ablation "w/o Face Encoder" (Table 2): the projected embedding enters the adapters without
    attention to the image, as in image-domain adapters. Such a network has no perceiver stack and no weights of one.
    """

    cross_attention_dim: int = 1024
    id_embeddings_dim: int = 512
    clip_embeddings_dim: int = 1024
    num_tokens: int = 4
    depth: int = 4
    fusion: bool = True

    def __post_init__(self) -> None:
        if self.cross_attention_dim % HEAD_WIDTH:
            raise ValueError(f"cross_attention_dim {self.cross_attention_dim} is not a multiple of {HEAD_WIDTH}")


class PerceiverAttention(nn.Module):
    """Tokens attend to the image's tokens and to themselves. context [b,k,d], tokens [b,n,d] -> [b,n,d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, width * 2, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, context: Tensor, tokens: Tensor) -> Tensor:
        context, tokens = self.norm1(context), self.norm2(tokens)
        query = self.to_q(tokens)
        key, value = self.to_kv(torch.cat([context, tokens], dim=1)).chunk(2, dim=-1)
        query, key, value = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (query, key, value))
        scale = 1 / math.sqrt(
            math.sqrt(HEAD_WIDTH)
        )  # on both factors: more stable in float16 than dividing the product
        weight = (query * scale) @ (key * scale).transpose(-2, -1)
        weight = weight.float().softmax(dim=-1).to(value.dtype)
        return self.to_out(rearrange(weight @ value, "b h n d -> b n (h d)"))


def feed_forward(width: int, factor: int = 4) -> nn.Sequential:
    inner = width * factor
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
    )


class FusionModel(nn.Module):
    """Perceiver stack. ``proj_out`` is initially zero, so that training starts without a face in the UNet."""

    def __init__(self, config: FaceEncoderConfig) -> None:
        super().__init__()
        width = config.cross_attention_dim
        self.proj_in = nn.Linear(config.clip_embeddings_dim, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width), feed_forward(width)]) for _ in range(config.depth)
        )
        self.proj_out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        context = self.proj_in(image)
        for attention, mlp in self.layers:
            tokens = tokens + attention(context, tokens)
            tokens = tokens + mlp(tokens)
        return self.norm_out(self.proj_out(tokens))


class FaceEncoder(PlacedModule):
    """face [b,512] raw ArcFace embedding, image [b,1,c] CLIP token -> tokens [b,num_tokens,cross_attention_dim]."""

    def __init__(self, config: FaceEncoderConfig) -> None:
        super().__init__()
        width, ids = config.cross_attention_dim, config.id_embeddings_dim
        self.config = config
        self.proj = nn.Sequential(nn.Linear(ids, ids * 2), nn.GELU(), nn.Linear(ids * 2, width * config.num_tokens))
        self.norm = nn.LayerNorm(width)
        self.fusion_model = FusionModel(config) if config.fusion else None

    def forward(self, face: Tensor, image: Tensor, *, shortcut: float | None = None) -> Tensor:
        """``shortcut`` s adds the fused tokens times s to the unfused ones (unused by released models: None)."""
        tokens = self.norm(rearrange(self.proj(face), "b (n d) -> b n d", n=self.config.num_tokens))
        if self.fusion_model is None:
            return tokens
        fused = self.fusion_model(tokens, image)
        return fused if shortcut is None else tokens + shortcut * fused
