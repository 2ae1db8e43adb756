"""Stable Video Diffusion with our pose, face and ID networks: StableAnimator itself."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from stableanimator_cli.diffusion.schedule import Scalings, scalings
from stableanimator_cli.diffusion.training import Preconditioning, preconditioning
from stableanimator_cli.engine.backbones import Build
from stableanimator_cli.engine.backbones.denoising import Denoising, animation_builders
from stableanimator_cli.engine.weights import network_config
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.nets.norm_groups import DEFAULT_NORM_GROUPS, set_norm_groups
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
        unet = network_config(model, "unet")
        return animation_builders(
            model,
            unet,
            unet=lambda tokens: AnimationUNet(id_tokens=tokens, id_mode=id_mode, **unet),
            vae=lambda: temporal_vae(**network_config(model, "vae")),
        )


def temporal_vae(*, norm_num_groups: int = DEFAULT_NORM_GROUPS, **config: Any) -> AutoencoderKLTemporalDecoder:
    return with_time_convs(set_norm_groups(AutoencoderKLTemporalDecoder(**config), norm_num_groups))


BACKBONE = StableVideoDiffusion()
