"""Selection and initialisation of trained weights, and the tensors that a model folder contains."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.nets.lora import add_lora, is_lora, merge_lora

Train = Literal["attentions", "all", "adapters", "pose+face", "lora"]

TRAINED = ("unet", "pose_net", "face_encoder")
"""Networks that can be trained; VAE and image encoder stay frozen."""

ADAPTER = ".processor.id_to_"
_PROJECTION = re.compile(r"\battentions\..*\.(to_q|to_k|to_v|to_out\.0|id_to_k|id_to_v)$")
# skipped by ``forward(image_only=True)`` of a UNet
_TEMPORAL = ("temporal_", "time_mixer", "time_pos_embed", "motion_modules")
_CROSS = re.compile(r"^(?!appearance\.)(.*\.attentions\.\d+\.transformer_blocks\.\d+\.attn2)\.to_([kv])\.weight$")


def choose_trainable(
    networks: Mapping[str, nn.Module], train: Train, *, face: bool, adapters: bool, image_only: bool
) -> None:
    """Set ``requires_grad`` of every parameter of ``unet``, ``pose_net`` and ``face_encoder``.

    * ``attentions``, as released: PoseNet, Face Encoder, and the UNet's parameters with "attentions" in their name
      (944 tensors with 796.0 M values at full size).
    * ``all``: everything. ``pose+face``: PoseNet and Face Encoder. ``lora``: the low-rank updates of ``with_lora``.
    * ``adapters``: what StableAnimator adds to SVD (ID adapters, Face Encoder, PoseNet).

    Parameters that a step does not use stay frozen: the face's path unless ``face`` and ``adapters``, temporal layers
    if ``image_only``. So every parameter that learns gets a gradient.
    """
    for role, network in networks.items():
        for name, parameter in network.named_parameters():
            trainable = _is_chosen(train, role, name)
            if role == "face_encoder" or ADAPTER in name:
                trainable = trainable and face and adapters
            if image_only and role == "unet" and any(part in name for part in _TEMPORAL):
                trainable = False
            parameter.requires_grad_(trainable)


def _is_chosen(train: Train, role: str, name: str) -> bool:
    if train == "lora" or is_lora(name):
        return train == "lora" and is_lora(name)
    if role != "unet" or train == "all":
        return True
    if train == "attentions":
        return "attentions" in name or "motion_modules" in name
    return train == "adapters" and ADAPTER in name


def with_lora(unet: nn.Module, rank: int, fresh: Collection[str], *, seed: int) -> list[str]:
    """Add low-rank updates to the projections of all attentions, ID adapters included; return the layers' names.

    Raises ``ConfigError`` if a network is initialised at random: a low-rank update cannot train it.
    """
    if fresh:
        raise ConfigError(
            "--train",
            "lora",
            f"a model with {' and '.join(sorted(fresh))}",
            hint="start from a trained model folder, or use --train adapters or --train attentions first",
        )
    return add_lora(unet, rank, lambda name: _PROJECTION.search(name) is not None, seed=seed)


def with_adapters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's state dict with ID adapters; missing ones are copies of the layer's ``to_k/to_v`` (the paper's §4.1)."""
    tensors = dict(tensors)
    if not any(ADAPTER in name for name in tensors):
        for name, tensor in list(tensors.items()):
            if _CROSS.search(name):
                tensors[_CROSS.sub(rf"\1{ADAPTER}\2.weight", name)] = tensor.clone()
    return tensors


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name, in a fixed order. For a DDP-wrapped model pass its module."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def export_tensors(
    model: nn.Module,
    replaced: Mapping[str, Tensor] | None = None,
    *,
    frozen: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, dict[str, Tensor]]:
    """State dicts of ``unet``, ``pose_net`` and ``face_encoder``: contiguous, on the CPU, LoRA merged.

    ``replaced`` (for example the EMA) and ``frozen`` override tensors by ``model``'s names. ``frozen`` tensors keep
    the values and dtype of the base model's files; all other floating-point tensors get ``dtype``, None:
    unchanged. Unchanged tensors share memory with a model on the CPU.
    """
    replaced, frozen = replaced or {}, frozen or {}
    unknown = {*replaced, *frozen} - set(model.state_dict())
    if unknown:
        raise KeyError(f"the model has no tensor {min(unknown)}")
    state = {name: tensor.detach().to("cpu") for name, tensor in {**model.state_dict(), **replaced, **frozen}.items()}
    updated = exported_names(name for name in state if is_lora(name))
    exported: dict[str, dict[str, Tensor]] = {role: {} for role in TRAINED}
    for name, tensor in merge_lora(state).items():
        role, _, inner = name.partition(".")
        if dtype is not None and tensor.is_floating_point() and (name not in frozen or name in updated):
            tensor = tensor.to(dtype)
        exported[role][inner] = tensor.contiguous()
    return exported


def exported_names(trained: Iterable[str]) -> set[str]:
    """Tensors of a model folder (``role.name``) that training the parameters ``trained`` changes: LoRA is merged."""
    return {f"{name.rpartition('.')[0]}.weight" if is_lora(name) else name for name in trained}
