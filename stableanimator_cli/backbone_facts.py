"""Facts of each video diffusion backbone that are known without loading torch.

A model folder names its backbone in ``model.toml``. The networks, sampler and decoder of a backbone are in
``engine/backbones``; how to add one is described in ``docs/backbones.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

NETWORKS = ("unet", "pose_net", "face_encoder", "vae", "image_encoder")
"""Roles of a model that is one UNet with our pose and face networks."""

Schedule = Literal["karras", "ays", "ddim"]
"""Values of ``--schedule``."""

Trained = Literal["svd", "magic"]
"""Values of ``--backbone`` of ``sa train``: the backbones that are ``trainable``."""

DEFAULT = "svd"
"""The backbone of a model folder that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneFacts:
    """Facts about a backbone that verbs need before anything is loaded.

    ``networks``: roles that a model folder must have. ``trainable``: whether ``sa train`` can train it.
    ``schedules``: the values of ``--schedule`` that it has. ``settings``: options by name (as in ``[defaults]`` of
    ``model.toml``) that precede those of a model folder and of presets; flags and files precede them.
    ``refused``: options of ``sa animate`` that it does not have, by field path (``sampling.churn``), with the reason.
    Such an option may only have its default value. ``choices``: the values that it has of other options, by field path.
    ``denoiser``: the name of the network that denoises; in lower case its role. ``embeds_face``: whether a network
    receives the reference's face embedding. ``skeleton``: the style of drawn skeletons, None for a backbone that is
    driven by the pixels of a video. ``streams``: further driving videos that it is conditioned on
    (``render.RenderRequest``). ``stride`` pixels of the output's sides are one token, and ``frame_stride`` frames of a
    window after the first are one latent.
    ``training_levels``: values of ``--sigma`` of ``sa train``, its own first. ``longest_window``: roles in whose config
    ``motion_max_seq_length`` is the largest number of frames of a window, the last one counts.
    ``published``: roles and file names without suffix in a folder of published networks that a training starts from;
    ``companions``: catalogue entries that complete such a folder.
    """

    networks: tuple[str, ...] = NETWORKS
    trainable: bool = True
    schedules: tuple[Schedule, ...] = ("karras", "ays")
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: MappingProxyType({}))
    denoiser: str = "UNet"
    embeds_face: bool = True
    skeleton: str | None = "dwpose"
    streams: tuple[str, ...] = ()
    stride: int = 8
    frame_stride: int = 1
    training_levels: tuple[str, ...] = ("cosine", "lognormal")
    longest_window: tuple[str, ...] = ()
    published: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    companions: tuple[str, ...] = ()


_NO_PROMPT = {
    "sampling.prompt": "it has no text encoder",
    "sampling.negative_prompt": "it has no text encoder",
}
_OWN_SCHEDULER = "the scheduler of its folder decides on solver and noise levels"
_SVD_ONLY = "it is a part of Stable Video Diffusion"
_WAN_REFUSED = {
    "sampling.guidance_interval": "it is guided in all steps or in none",
    "sampling.cache_features": "its transformer has no deep features to cache",
    "sampling.sampler": _OWN_SCHEDULER,
    "sampling.schedule": _OWN_SCHEDULER,
    "sampling.churn": _OWN_SCHEDULER,
    "sampling.noise": "its noise is drawn per segment",
    "sampling.noise_aug": _SVD_ONLY,
    "sampling.motion_bucket": _SVD_ONLY,
    "sampling.conditioning_fps": _SVD_ONLY,
    "windows.blend": "its segments continue the last frames of one another and are not blended",
    "windows.anchor": "its reference image conditions every segment",
    "decode.overlap": "its VAE decodes a segment as one video",
    "id_adapter": "it has no ID adapters",
    "force_ablation": "it has no ID adapters",
    "face_embedding": "it has no face vectors",
    "hide_reference_face": "it has no face vectors",
    "device.gpus": "its segments follow one another",
    "device.ff_chunks": "its blocks are diffusers' own",
    "device.cuda_graphs": "its blocks are diffusers' own",
    "device.channels_last": "its blocks are diffusers' own",
}
_NO_SKELETON = "it is driven by the video itself, and no position of a person is known before"
_PARTS = ("transformer", "vae", "text_encoder", "image_encoder", "tokenizer", "scheduler")
_WAN_CHOICES = {
    "preset": ("standard", "fast", "released"),
    "windows.overlap": (1, 5),
    "device.quantization": ("plain", "fp8"),
}


BACKBONES: Mapping[str, BackboneFacts] = MappingProxyType(
    {
        "svd": BackboneFacts(refused=MappingProxyType(_NO_PROMPT)),
        "magic": BackboneFacts(
            schedules=("ddim",),
            settings=MappingProxyType({"schedule": "ddim"}),
            refused=MappingProxyType(
                _NO_PROMPT | {"sampling.motion_bucket": _SVD_ONLY, "sampling.conditioning_fps": _SVD_ONLY}
            ),
            training_levels=("timesteps",),
            longest_window=("unet", "motion_adapter"),
            published=MappingProxyType(
                {
                    "unet": ("unet/diffusion_pytorch_model",),
                    "motion_adapter": ("motion_adapter/diffusion_pytorch_model",),
                    "vae": ("vae/diffusion_pytorch_model",),
                    "image_encoder": ("image_encoder/model", "image_encoder/pytorch_model"),
                }
            ),
            companions=("antelopev2", "dwpose"),
        ),
        "wan-animate": BackboneFacts(
            networks=(*_PARTS, "image_processor"),
            trainable=False,
            refused=MappingProxyType(_WAN_REFUSED),
            choices=MappingProxyType(_WAN_CHOICES),
            denoiser="Transformer",
            embeds_face=False,
            skeleton="aapose",
            streams=("face",),
            stride=16,
            frame_stride=4,
        ),
        "wan-animate-2": BackboneFacts(
            networks=_PARTS,
            trainable=False,
            refused=MappingProxyType(
                _WAN_REFUSED
                | {"people.person": _NO_SKELETON, "people.pair": _NO_SKELETON, "people.face_of": _NO_SKELETON}
            ),
            choices=MappingProxyType(_WAN_CHOICES),
            denoiser="Transformer",
            embeds_face=False,
            skeleton=None,
            stride=16,
            frame_stride=4,
        ),
    }
)
"""Facts by the name in ``model.toml``."""
