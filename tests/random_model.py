"""Model folders with seeded random weights: for tests, for the full-size trial, and for the untrained ``puppet`` entry.

``python -m tests.random_model FOLDER --config full --layout upstream`` writes what somebody has who downloaded the
reference implementation's weights: the same files, names and shapes, with random values. ``--config puppet --layout
model`` writes a catalogue entry. Every tensor comes from its name and the seed, so two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stableanimator_cli import catalogue
from stableanimator_cli.engine.weights import builders
from stableanimator_cli.records import NETWORKS, ModelFolder

TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "in_channels": 8,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
        "block_out_channels": [32, 64],
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "num_attention_heads": [1, 2],
    },
    "pose_net": {"noise_latent_channels": 32},
    "face_encoder": {"cross_attention_dim": 64, "id_embeddings_dim": 512, "clip_embeddings_dim": 64, "num_tokens": 4},
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "block_out_channels": [32, 32, 32, 32],
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        "force_upcast": True,
    },
    "image_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 56,
        "projection_dim": 64,
        "hidden_act": "gelu",
    },
}
"""The smallest networks that have every part of the real ones."""


def configs_of(name: str) -> dict[str, dict[str, Any]]:
    """``tiny``, ``full`` (the catalogue's own) or another catalogue entry's configs by role."""
    if name == "tiny":
        return TINY
    if name != "full":
        return {role: _read(catalogue.entry(name).folder / f"{role}.json") for role in NETWORKS}
    ours, base = catalogue.entry("stableanimator").folder, catalogue.entry("svd-xt").folder
    return {role: _read((base if role in ("vae", "image_encoder") else ours) / f"{role}.json") for role in NETWORKS}


def weights(role: str, configs: dict[str, dict[str, Any]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """``random_state`` of a network of the usual backbone."""
    return random_state(builders(_folder(configs), "distribution")[role], role, seed, dtype)


def random_state(build: Callable[[], nn.Module], role: str, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random state dict of one network: matrices with unit gain, norms near one, biases near zero."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    return {name: _tensor(f"{seed}/{role}/{name}", tuple(shape)).to(dtype) for name, shape in shapes.items()}


def _tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1)
    x = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return x * float(torch.tensor(shape[1:]).prod()) ** -0.5
    return (1.0 if key.endswith("weight") or key.endswith("scale") else 0.0) + 0.05 * x


def write_model(folder: Path, configs: dict[str, dict[str, Any]], *, seed: int = 0, dtype: torch.dtype) -> None:
    """A model folder: configs and safetensors beside a ``model.toml``, which is left alone where it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for role in NETWORKS:
        (folder / f"{role}.json").write_text(json.dumps(configs[role], indent=2) + "\n")
        save_file(weights(role, configs, seed, dtype), folder / f"{role}.safetensors", metadata={"format": "pt"})
    if not (folder / "model.toml").exists():
        parts = "\n".join(
            f'[components.{role}]\nfile = "{role}.safetensors"\nconfig = "{role}.json"\n' for role in NETWORKS
        )
        head = f'name = "{folder.name}"\nsummary = "Random weights"\ntask = "animate"\nlicence = "Apache-2.0"\n'
        head += 'licence_note = "Ours."\nsource = "made here"\nface_channel_order = "bgr"\n'
        (folder / "model.toml").write_text(f'{head}\n[defaults]\nsize = "64x64"\nsteps = 2\n\n{parts}')
    tomllib.loads((folder / "model.toml").read_text())


def write_upstream(folder: Path, configs: dict[str, dict[str, Any]], *, seed: int = 0, dtype: torch.dtype) -> None:
    """The reference implementation's layout: ``Animation/*.pth`` beside a diffusers folder ``SVD``."""
    (folder / "Animation").mkdir(parents=True, exist_ok=True)
    for role in ("unet", "pose_net", "face_encoder"):
        torch.save(weights(role, configs, seed, dtype), folder / "Animation" / f"{role}.pth")
    stems = {"vae": "diffusion_pytorch_model", "image_encoder": "model"}
    for role in ("unet", *stems):
        (folder / "SVD" / role).mkdir(parents=True, exist_ok=True)
        (folder / "SVD" / role / "config.json").write_text(json.dumps(configs[role], indent=2) + "\n")
    for role, stem in stems.items():
        save_file(weights(role, configs, seed, dtype), folder / "SVD" / role / f"{stem}.safetensors")


def _folder(configs: dict[str, dict[str, Any]]) -> ModelFolder:
    return ModelFolder(
        name="random", path=Path(), files={}, configs=configs, defaults={}, licence="", face_channel_order="bgr"
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.random_model", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", default="tiny", help="tiny, full, or a catalogue entry")
    parser.add_argument("--layout", choices=("model", "upstream"), default="model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    args = parser.parse_args()
    write = write_model if args.layout == "model" else write_upstream
    write(args.folder, configs_of(args.config), seed=args.seed, dtype=getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
