"""V-JEPA's encoder and attentive pooler (Bardes et al., "Revisiting Feature Prediction for Learning Visual
Representations from Video").

Names of the weights are those of the published checkpoints after ``encoder_tensors`` and ``pooler_tensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_UNUSED = ("linear.", "pooler.cross_attention_block.xattn.proj.")
"""Of a probe: its classes, and a layer that the published forward pass does not apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VJepaConfig:
    """The released ViT-H/16 by default: clips of 16 frames at 224x224."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    num_frames: int = 16
    patch_size: int = 16
    tubelet_size: int = 2

    @property
    def tokens(self) -> int:
        return (self.num_frames // self.tubelet_size) * (self.image_size // self.patch_size) ** 2


class _PatchEmbed(nn.Module):
    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.num_channels, config.hidden_size, kernel, stride=kernel)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b d t h w -> b (t h w) d")


class _Attention(nn.Module):
    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class _CrossAttention(nn.Module):
    """As published without a projection of its output."""

    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv = nn.Linear(config.hidden_size, 2 * config.hidden_size)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        q = rearrange(self.q(query), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.kv(x), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class _Mlp(nn.Module):
    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden_size, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = _Attention(config), _Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VJepaEncoder(nn.Module):
    """Clips [b,3,t,h,w] of the config's size, normalised by ImageNet's statistics -> tokens [b,n,d]."""

    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.hidden_size))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _CrossAttentionBlock(nn.Module):
    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden_size) for _ in range(2))
        self.xattn, self.mlp = _CrossAttention(config), _Mlp(config)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        query = query + self.xattn(query, self.norm1(x))
        return query + self.mlp(self.norm2(query))


class VJepaPooler(nn.Module):
    """Tokens [b,n,d] -> one vector [b,d]: a learned query that attends to them."""

    def __init__(self, config: VJepaConfig) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.cross_attention_block = _CrossAttentionBlock(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x)[:, 0]


def encoder_tensors(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's ``target_encoder`` under the names of ``VJepaEncoder``."""
    return {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in checkpoint.items()}


def pooler_tensors(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a probe's ``classifier`` under the names of ``VJepaPooler``, without those that are not used."""
    found = {name.removeprefix("module."): tensor for name, tensor in checkpoint.items()}
    return {name.removeprefix("pooler."): tensor for name, tensor in found.items() if not name.startswith(_UNUSED)}
