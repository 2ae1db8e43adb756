"""Tiny models of the backbone magic: published networks as others have them, and a model folder of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from stableanimator_cli.engine.weights import builders
from stableanimator_cli.records import NETWORKS, ModelFolder
from tests.random_model import TINY, random_state

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlockMotion", "DownBlockMotion"],
    "up_block_types": ["UpBlockMotion", "CrossAttnUpBlockMotion"],
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "motion_max_seq_length": 8,
    "norm_num_groups": 8,
}
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [32, 32, 32, 32],
    "layers_per_block": 1,
    "latent_channels": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {**TINY, "unet": UNET, "vae": VAE}


def folder_of(configs: dict[str, dict[str, Any]], **fields: Any) -> ModelFolder:
    return ModelFolder(
        name="random", path=Path("random"), files={}, configs=configs, defaults={}, licence="",
        face_channel_order="bgr", backbone="magic", **fields,
    )  # fmt: skip


def write_magic(folder: Path, *, drawn: bool = False) -> Path:
    """A model folder of random weights; ``drawn``: with the temporal VAE of the other tiny model."""
    configs = {**CONFIGS, "vae": TINY["vae"]} if drawn else CONFIGS
    folder.mkdir(parents=True)
    build = builders(folder_of(configs), "distribution")
    parts = []
    for role in NETWORKS:
        (folder / f"{role}.json").write_text(json.dumps(configs[role]))
        tensors = random_state(build[role], role, 0, torch.float32)
        if role == "unet":  # buffers are no weights
            fresh = build[role]().state_dict()
            tensors |= {name: tensor for name, tensor in fresh.items() if name.endswith(".pe")}
        save_file(tensors, folder / f"{role}.safetensors", metadata={"format": "pt"})
        parts.append(f'[components.{role}]\nfile = "{role}.safetensors"\nconfig = "{role}.json"\n')
    head = f'name = "{folder.name}"\nsummary = "Random weights"\ntask = "animate"\nlicence = "Apache-2.0"\n'
    head += 'source = "made here"\nbackbone = "magic"\nface_channel_order = "bgr"\n'
    (folder / "model.toml").write_text(f'{head}\n[defaults]\nsize = "64x64"\nsteps = 2\n\n' + "\n".join(parts))
    return folder


def published_networks() -> dict[str, Any]:
    """diffusers' and transformers' own networks, randomly filled, of which ``write_published`` saves the files."""
    torch.manual_seed(0)
    shapes: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    networks: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel(
            **shapes, cross_attention_dim=64, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        "motion_adapter": MotionAdapter(
            block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=4,
            motion_norm_num_groups=8, motion_max_seq_length=12,
        ),
        "vae": AutoencoderKL(**VAE),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**TINY["image_encoder"])),
    }  # fmt: skip
    for network in networks.values():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        network.eval().requires_grad_(False)
    return networks


def write_published(folder: Path) -> dict[str, Any]:
    """A folder of Stable Diffusion and AnimateDiff as diffusers saves them; returns its networks."""
    networks = published_networks()
    for role, network in networks.items():
        network.save_pretrained(folder / role)
    return networks
