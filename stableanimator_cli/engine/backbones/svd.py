"""Stable Video Diffusion with our pose, face and ID networks: StableAnimator itself."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from stableanimator_cli.diffusion.schedule import Scalings, scalings
from stableanimator_cli.diffusion.training import Preconditioning, preconditioning
from stableanimator_cli.engine.backbones import Build
from stableanimator_cli.engine.backbones.denoising import Denoising
from stableanimator_cli.engine.weights import building, network_config
from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.nets.face_encoder import FaceEncoder, FaceEncoderConfig
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.nets.norm_groups import DEFAULT_NORM_GROUPS, set_norm_groups
from stableanimator_cli.nets.pose_net import PoseNet
from stableanimator_cli.nets.time_conv import with_time_convs
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.records import ModelFolder


class StableVideoDiffusion(Denoising):
    """v-prediction at continuous noise levels; the reference's latents are concatenated to the noisy ones."""

    def scalings(self, sigma: float) -> Scalings:
        return scalings(sigma)

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        return preconditioning(sigma)

    def builders(self, model: ModelFolder, id_mode: IDMode) -> dict[str, Build]:
        unet, vision = network_config(model, "unet"), network_config(model, "image_encoder")
        face = {k: v for k, v in model.configs.get("face_encoder", {}).items() if not k.startswith("_")}
        # widths of connected networks; the reference's layout has no config for them
        face |= {
            "cross_attention_dim": _value(model, "unet", "cross_attention_dim"),
            "clip_embeddings_dim": _value(model, "image_encoder", "projection_dim"),
        }
        built: dict[str, Build] = {
            "unet": lambda: AnimationUNet(id_tokens=face.get("num_tokens", 4), id_mode=id_mode, **unet),
            "pose_net": lambda: PoseNet(noise_latent_channels=unet["block_out_channels"][0]),
            "face_encoder": lambda: FaceEncoder(FaceEncoderConfig(**face)),
            "vae": lambda: _vae(**network_config(model, "vae")),
            "image_encoder": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)),
        }
        return {role: lambda role=role, build=build: _built(model, role, build) for role, build in built.items()}


def _built(model: ModelFolder, role: str, build: Build) -> nn.Module:
    with building(model.files.get(role, model.path / role)):
        return build()


def _vae(*, norm_num_groups: int = DEFAULT_NORM_GROUPS, **config: Any) -> AutoencoderKLTemporalDecoder:
    return with_time_convs(set_norm_groups(AutoencoderKLTemporalDecoder(**config), norm_num_groups))


def _value(model: ModelFolder, role: str, key: str) -> Any:
    config = network_config(model, role)
    if key not in config:
        raise ModelDamaged(
            f"{model.path}: the config of {role} has no {key!r}",
            hint="compare the config with the one that the weights came with",
        )
    return config[key]


BACKBONE = StableVideoDiffusion()
