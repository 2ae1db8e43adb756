"""Facts of each video diffusion backbone that are known without loading torch.

A model folder names its backbone in ``model.toml``. The networks, sampler and decoder of a backbone are in
``engine/backbones``; how to add one is described in ``docs/backbones.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NETWORKS = ("unet", "pose_net", "face_encoder", "vae", "image_encoder")
"""Roles of a model that is one UNet with our pose and face networks."""

DEFAULT = "svd"
"""The backbone of a model folder that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneFacts:
    """What verbs ask of a backbone before anything is loaded.

    ``networks``: roles that a model folder must have. ``trainable``: whether ``sa train`` can train it.
    ``schedules``: the values of ``--schedule`` that it has. ``settings``: options by name (as in ``[defaults]`` of
    ``model.toml``) that precede those of a model folder and of presets; flags and files precede them.
    ``refused``: options of ``sa animate`` that it does not have, by field path (``sampling.churn``), with the reason.
    Such an option may only have its default value.
    """

    networks: tuple[str, ...] = NETWORKS
    trainable: bool = True
    schedules: tuple[str, ...] = ("karras", "ays")
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


BACKBONES: Mapping[str, BackboneFacts] = MappingProxyType({"svd": BackboneFacts()})
"""Facts by the name in ``model.toml``."""
