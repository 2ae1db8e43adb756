"""A stand-in for a clone of the reference implementation: the module paths, class names, arguments and weights' names
that its code has, over the stock networks of diffusers. Written from a description; nothing of ours is imported in it.
"""

from __future__ import annotations

from pathlib import Path

_FILES = {
    "unet": """
from diffusers import UNetSpatioTemporalConditionModel as Stock


class UNetSpatioTemporalConditionModel(Stock):
    def __init__(self, **config):
        super().__init__(**config)
        self._pose = None
        self.conv_in.register_forward_hook(lambda layer, given, out: out if self._pose is None else out + self._pose)
        for name, module in self.named_modules():
            if name.endswith("attn2") and "temporal_transformer_blocks" in name:
                module.forward = lambda hidden_states, encoder_hidden_states=None, stock=module.forward, **more: stock(
                    hidden_states, encoder_hidden_states=encoder_hidden_states[:, :-4], **more
                )

    def forward(
        self,
        sample,
        timestep,
        encoder_hidden_states,
        added_time_ids,
        pose_latents=None,
        image_only_indicator=False,
        return_dict=True,
    ):
        self._pose = pose_latents
        return super().forward(sample, timestep, encoder_hidden_states, added_time_ids, return_dict=return_dict)
""",
    "attention_processor": """
import xformers.ops
from torch import nn


def attend(attn, query, key, value):
    folded = [attn.head_to_batch_dim(x).contiguous() for x in (query, key, value)]
    return attn.batch_to_head_dim(xformers.ops.memory_efficient_attention(*folded, attn_bias=None))


class AnimationAttnProcessor(nn.Module):
    def __init__(self, hidden_size, cross_attention_dim=None, rank=4):
        super().__init__()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        x = hidden_states
        return attn.to_out[0](attend(attn, attn.to_q(x), attn.to_k(x), attn.to_v(x)))
""",
    "attention_processor_normalized": """
from torch import nn

from .attention_processor import attend


class AnimationIDAttnNormalizedProcessor(nn.Module):
    def __init__(self, hidden_size, cross_attention_dim=None, rank=4, num_tokens=4):
        super().__init__()
        self.id_to_k = nn.Linear(cross_attention_dim, hidden_size, bias=False)
        self.id_to_v = nn.Linear(cross_attention_dim, hidden_size, bias=False)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        image, face = encoder_hidden_states[:, :-4], encoder_hidden_states[:, -4:]
        query = attn.to_q(hidden_states)
        base = attend(attn, query, attn.to_k(image), attn.to_v(image))
        faces = attend(attn, query, self.id_to_k(face), self.id_to_v(face))
        mean, std = (getattr(faces, name)((1, 2), keepdim=True) for name in ("mean", "std"))
        base_mean, base_std = (getattr(base, name)((1, 2), keepdim=True) for name in ("mean", "std"))
        return attn.to_out[0](base + (faces - mean) * (base_std / (std + 1e-5)) + base_mean)
""",
    "pose_net": """
import torch
from torch import nn


class PoseNet(nn.Module):
    def __init__(self, noise_latent_channels=320):
        super().__init__()
        layers = []
        for a, b, k, s in ((3, 3, 3, 1), (3, 16, 4, 2), (16, 16, 3, 1), (16, 32, 4, 2), (32, 32, 3, 1), (32, 64, 4, 2),
                           (64, 64, 3, 1), (64, 128, 3, 1)):
            layers += [nn.Conv2d(a, b, k, s, 1), nn.SiLU()]
        self.conv_layers = nn.Sequential(*layers)
        self.final_proj = nn.Conv2d(128, noise_latent_channels, 1)
        self.scale = nn.Parameter(torch.ones(1) * 2)

    def forward(self, x):
        return self.final_proj(self.conv_layers(x)) * self.scale
""",
    "id_encoder": """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.heads = dim // 64
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x, latents):
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.heads, 64)).transpose(1, 2) for y in (self.to_q(latents), k, v))
        weight = ((q / 64**0.25) @ (k / 64**0.25).transpose(-2, -1)).softmax(-1)
        return self.to_out((weight @ v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    def __init__(self, dim, clip):
        super().__init__()
        self.proj_in, self.proj_out, self.norm_out = nn.Linear(clip, dim), nn.Linear(dim, dim), nn.LayerNorm(dim)
        feed = [
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(),
                          nn.Linear(4 * dim, dim, bias=False))
            for _ in range(4)
        ]
        self.layers = nn.ModuleList([nn.ModuleList([Attention(dim), one]) for one in feed])

    def forward(self, latents, x):
        x = self.proj_in(x)
        for attention, feed in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))


class FusionFaceId(nn.Module):
    def __init__(self, cross_attention_dim=1024, id_embeddings_dim=512, clip_embeddings_dim=1024, num_tokens=4):
        super().__init__()
        self.shape = (num_tokens, cross_attention_dim)
        self.proj = nn.Sequential(
            nn.Linear(id_embeddings_dim, 2 * id_embeddings_dim), nn.GELU(),
            nn.Linear(2 * id_embeddings_dim, num_tokens * cross_attention_dim),
        )
        self.norm = nn.LayerNorm(cross_attention_dim)
        self.fusion_model = Resampler(cross_attention_dim, clip_embeddings_dim)

    def forward(self, vector, clip):
        return self.fusion_model(self.norm(self.proj(vector).unflatten(-1, self.shape)), clip)
""",
}


def write_clone(folder: Path, **changed: str) -> Path:
    """The clone's folder; ``changed`` files say something else."""
    modules = folder / "animation" / "modules"
    modules.mkdir(parents=True)
    for name, text in (_FILES | changed).items():
        (modules / f"{name}.py").write_text(text)
    return folder
