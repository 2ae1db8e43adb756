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
_PIPELINES = {
    "inference_pipeline_animation": """
from types import SimpleNamespace

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing


class InferenceAnimationPipeline:
    def __init__(self, **parts):
        self.__dict__.update(parts)
        self.image_processor = VaeImageProcessor(vae_scale_factor=8)

    def to(self, device):
        return self

    def set_progress_bar_config(self, **config):
        pass

    def decode_latents(self, latents, num_frames, decode_chunk_size):
        parts = (latents[0] / self.vae.config.scaling_factor).split(decode_chunk_size)
        pixels = torch.cat([self.vae.decode(part, num_frames=len(part)).sample for part in parts])
        return pixels.transpose(0, 1)[None].float()

    def __call__(self, image, image_pose, height, width, num_frames, tile_size, generator, num_inference_steps,
                 min_guidance_scale, noise_aug_strength, fps, motion_bucket_id, decode_chunk_size,
                 validation_image_id_ante_embedding, **rest):
        assert tile_size == num_frames
        pixels = self.image_processor.preprocess(image, height=height, width=width)
        seen = (_resize_with_antialiasing(pixels, (224, 224)) + 1) / 2
        seen = self.feature_extractor(images=seen, do_normalize=True, do_center_crop=False, do_resize=False,
                                      do_rescale=False, return_tensors="pt").pixel_values
        token = self.image_encoder(seen).image_embeds[:, None]
        face = self.face_encoder(torch.from_numpy(validation_image_id_ante_embedding)[None], token)
        tokens = torch.cat([token, face], 1)
        pixels = pixels + noise_aug_strength * torch.randn(pixels.shape, generator=generator)
        reference = self.vae.encode(pixels).latent_dist.mode()[None].repeat(1, num_frames, 1, 1, 1)
        ids = torch.tensor([[fps - 1, motion_bucket_id, noise_aug_strength]])
        poses = torch.stack([torch.from_numpy(np.array(one)).float() / 127.5 - 1 for one in image_pose])
        pose = self.pose_net(poses.permute(0, 3, 1, 2))
        self.scheduler.set_timesteps(num_inference_steps)
        shape = (1, num_frames, 4, height // 8, width // 8)
        latents = torch.randn(shape, generator=generator) * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(latents, t)
            free = self.unet(torch.cat([scaled, torch.zeros_like(reference)], 2), t, torch.zeros_like(tokens), ids,
                             None, return_dict=False)[0]
            guided = self.unet(torch.cat([scaled, reference], 2), t, tokens, ids, pose, return_dict=False)[0]
            latents = self.scheduler.step(free + min_guidance_scale * (guided - free), t, latents).prev_sample
        frames = self.decode_latents(latents, num_frames, decode_chunk_size)
        return SimpleNamespace(frames=[(frames[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)])
""",
    "euler_discrete_pro": """
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler


class EulerDiscreteSchedulerPro(EulerDiscreteScheduler):
    def step(self, model_output, timestep, sample, refine_face, learning_rate, num_optimization_iter, vae,
             refine_reference_face_embeddings, decode_chunk_size, target_face_mask_list, **rest):
        sigma = self.sigmas[0]
        z = (model_output * (-sigma / (sigma**2 + 1) ** 0.5) + sample / (sigma**2 + 1)).detach().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=learning_rate)
        for _ in range(num_optimization_iter):
            parts = (z[0] / vae.config.scaling_factor).split(decode_chunk_size)
            pixels = torch.cat([vae.decode(part, num_frames=len(part)).sample for part in parts]).clamp(-1, 1)
            faces = [F.interpolate(one[None, :, y0 : y1 + 1, x0 : x1 + 1], size=(112, 112), mode="bilinear")
                     for one, (y0, y1, x0, x1) in zip(pixels, target_face_mask_list)]
            vectors = self.face_embedding_extractor(torch.cat(faces))
            loss = (1 - F.cosine_similarity(vectors, refine_reference_face_embeddings)).abs().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return SimpleNamespace(pred_original_sample=z.detach())
""",
}


def write_clone(folder: Path, **changed: str) -> Path:
    """The clone's folder; ``changed`` files say something else."""
    modules = folder / "animation" / "modules"
    modules.mkdir(parents=True)
    pipelines = folder / "animation" / "pipelines"
    pipelines.mkdir()
    for name, text in (_FILES | changed).items():
        (modules / f"{name}.py").write_text(text)
    for name, text in _PIPELINES.items():
        (pipelines / f"{name}.py").write_text(text)
    return folder
