"""Stable Diffusion 1.5 with AnimateDiff's motion modules and an appearance encoder: "Magic" in the paper's Table 5.

A checkpoint of ours has one file per network. Training starts from published files: Stable Diffusion's UNet
(``unet``), AnimateDiff's motion modules (``motion_adapter``, by diffusers' names or the original ones), whose tensors
complete one another; the appearance encoder starts as a copy of the UNet, as MagicAnimate's does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNetMotionModel
from torch import Tensor

from stableanimator_cli.diffusion.discrete import epsilon_preconditioning, epsilon_scalings
from stableanimator_cli.diffusion.schedule import Scalings
from stableanimator_cli.diffusion.training import Preconditioning, Prediction
from stableanimator_cli.engine.backbones import Build
from stableanimator_cli.engine.backbones.denoising import Denoising, animation_builders
from stableanimator_cli.engine.backbones.svd import temporal_vae
from stableanimator_cli.engine.decoder import Decoder, ImageDecoder
from stableanimator_cli.engine.weights import arguments, build_on_meta, compare, network_config, read_tensors
from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.nets.motion_unet import MotionUNet
from stableanimator_cli.records import ModelFolder

_MOTION, _APPEARANCE, _POSITIONS = ".motion_modules.", "appearance.", ".pos_embed.pe"
_SCALING = 0.18215  # of Stable Diffusion's latents, which its VAE's config does not name
_BASE_FREQUENCY = 10000.0  # of sinusoidal positions
_SVD_KEYS = ("addition_time_embed_dim", "projection_class_embeddings_input_dim", "num_frames")
_ADAPTER_KEYS = {  # of a motion adapter's config -> of the UNet's
    "motion_num_attention_heads": "motion_num_attention_heads",
    "motion_max_seq_length": "motion_max_seq_length",
    "use_motion_mid_block": "use_motion_mid_block",
    "motion_transformer_layers_per_block": "temporal_transformer_layers_per_block",
    "motion_transformer_layers_per_mid_block": "temporal_transformer_layers_per_mid_block",
}
_ORIGINAL = (  # names of the first AnimateDiff files -> diffusers'
    (".temporal_transformer", ""),
    (".attention_blocks.0", ".attn1"),
    (".attention_blocks.1", ".attn2"),
    (".norms.0", ".norm1"),
    (".norms.1", ".norm2"),
    (".ff_norm", ".norm3"),
)
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_CLIP_TEXT = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")


class Magic(Denoising):
    """Epsilon-prediction at discrete timesteps; the reference enters through the appearance encoder."""

    prediction: Prediction = "epsilon"

    def scalings(self, sigma: float) -> Scalings:
        return epsilon_scalings(sigma)

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        return epsilon_preconditioning(sigma)

    def configs(self, model: ModelFolder) -> Mapping[str, Mapping[str, Any]]:
        return {**model.configs, "unet": motion_config(model)}

    def builders(self, model: ModelFolder, id_mode: IDMode) -> dict[str, Build]:
        unet, vae = motion_config(model), network_config(model, "vae")
        scale = vae.get("scaling_factor", _SCALING)
        built = animation_builders(
            model,
            unet,
            unet=lambda tokens: MotionUNet(id_tokens=tokens, id_mode=id_mode, reference_scale=scale, **unet),
            # Stable Diffusion's VAE, or one of Stable Video Diffusion's kind with the same latents
            vae=lambda: AutoencoderKL(**vae) if "up_block_types" in vae else temporal_vae(**vae),
        )
        width, token = unet["cross_attention_dim"], _projection(model)
        if width != token:
            raise ModelDamaged(
                f"{model.path}: the image encoder has tokens of {token} values, the UNet's cross-attention {width}",
                hint="Stable Diffusion 1.5 has 768, as the image encoder of openai/clip-vit-large-patch14",
            )
        return built

    def read(self, model: ModelFolder, role: str) -> dict[str, Tensor]:
        tensors = read_tensors(model.files[role])
        if role == "unet":
            return self._complete(model, tensors)
        if role == "image_encoder":  # of a file that also holds CLIP's text encoder
            return {name: tensor for name, tensor in tensors.items() if not name.startswith(_CLIP_TEXT)}
        if role == "vae":
            return {_new_attention_name(name): tensor for name, tensor in tensors.items()}
        return tensors

    def decoder(self, vae: Any, calls: Counter[str]) -> Decoder:
        return ImageDecoder(vae, calls) if isinstance(vae, AutoencoderKL) else Decoder(vae, calls)

    def _complete(self, model: ModelFolder, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add motion modules and the appearance encoder to Stable Diffusion's UNet; a UNet of ours has both."""
        moves = any(_MOTION in name for name in tensors)
        if moves and any(name.startswith(_APPEARANCE) for name in tensors):
            return tensors
        file = model.files["unet"]
        network = build_on_meta(self.builders(model, "distribution")["unet"]).state_dict()
        if not moves:
            if "motion_adapter" not in model.files:
                raise ModelDamaged(
                    f"{file} is a UNet of images without motion modules, and {model.name} has no motion_adapter",
                    hint="add AnimateDiff's motion modules as [components.motion_adapter]: docs/backbones.md",
                )
            tensors = tensors | _motion_modules(model.files["motion_adapter"], network)
        copied = {
            name: tensors[name.removeprefix(_APPEARANCE)].clone()  # both are trained
            for name in network
            if name.startswith(_APPEARANCE) and name.removeprefix(_APPEARANCE) in tensors
        }
        return tensors | copied


def motion_config(model: ModelFolder) -> dict[str, Any]:
    """The arguments of the UNet, from its own config, from Stable Diffusion's, or from one of Stable Video Diffusion's.

    The config of a ``motion_adapter`` has priority, as the positions and heads are those of its weights.
    """
    found = network_config(model, "unet")
    for key, value in _fixed_arguments().items():
        if found.get(key, value) != value:
            raise ModelDamaged(
                f"{model.path}: the config of unet has {key} {found[key]!r}, expected {value!r}",
                hint="use the UNet of Stable Diffusion 1.5 or one with its settings",
            )
    unused = {*_fixed_arguments(), "attention_head_dim", *_SVD_KEYS}
    config = {key: value for key, value in found.items() if key not in unused}
    for key in ("down_block_types", "up_block_types"):
        if key in config:
            config[key] = [kind.replace("SpatioTemporal", "Motion").replace("2D", "Motion") for kind in found[key]]
    heads = found.get("num_attention_heads") or found.get("attention_head_dim")
    if heads is not None:
        config["num_attention_heads"] = heads
    if "out_channels" in found:  # Stable Video Diffusion's UNet also gets the reference's channels
        config["in_channels"] = found["out_channels"]
    adapter = arguments(model.configs.get("motion_adapter", {}))
    if adapter.get("conv_in_channels"):
        raise ModelDamaged(
            f"{model.path}: the config of motion_adapter has conv_in_channels {adapter['conv_in_channels']}",
            hint="it is of PIA, which is another model: use a motion adapter of AnimateDiff",
        )
    return config | {own: adapter[key] for key, own in _ADAPTER_KEYS.items() if key in adapter}


def _fixed_arguments() -> dict[str, Any]:
    """Options of diffusers' UNet of images that the one with motion modules lacks, with their usual values."""
    images, motion = (signature(kind.__init__).parameters for kind in (UNet2DConditionModel, UNetMotionModel))
    return {
        name: parameter.default
        for name, parameter in images.items()
        if name not in motion and name not in ("attention_head_dim", "sample_size")
    }


def _projection(model: ModelFolder) -> Any:
    return network_config(model, "image_encoder").get("projection_dim")


def _motion_modules(file: Path, network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The motion modules of a file by their names in the UNet. Raises ``ModelDamaged`` unless they fit ``network``."""
    expected = {name: tensor.shape for name, tensor in network.items() if _MOTION in name}
    tensors = {
        _diffusers_name(name): tensor for name, tensor in read_tensors(file).items() if ".pos_encoder." not in name
    }
    tensors |= {
        name: _positions(shape) for name, shape in expected.items() if name.endswith(_POSITIONS) and name not in tensors
    }
    compare(file, expected, tensors)
    return tensors


def _diffusers_name(name: str) -> str:
    name = name.removeprefix("module.")
    for original, own in _ORIGINAL:
        name = name.replace(original, own)
    return name


def _positions(shape: torch.Size) -> Tensor:
    """Sinusoidal positions [1,t,d], which original files hold under other names and diffusers computes."""
    _, frames, width = shape
    angles = torch.arange(frames)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(_BASE_FREQUENCY) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[None]


def _new_attention_name(name: str) -> str:
    """Stable Diffusion 1.5's VAE was published with the first names of attention layers."""
    if ".attentions." in name:
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name


BACKBONE = Magic()
