"""Which weights a training moves, what it begins with, and what it hands on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.nets.lora import add_lora, is_lora, merge_lora
from stableanimator_cli.nets.unet import AnimationUNet

Train = Literal["attentions", "all", "adapters", "pose+face", "lora"]

TRAINED = ("unet", "pose_net", "face_encoder")
"""The networks that training can move; VAE and image encoder never move."""

ADAPTER = ".processor.id_to_"
_PROJECTION = re.compile(r"\battentions\..*\.(to_q|to_k|to_v|to_out\.0|id_to_k|id_to_v)$")
_TEMPORAL = ("temporal_", "time_mixer", "time_pos_embed")  # skipped by ``AnimationUNet.forward(image_only=True)``
_CROSS = re.compile(r"(\.transformer_blocks\.\d+\.attn2)\.to_([kv])\.weight$")


def choose_trainable(
    networks: Mapping[str, nn.Module], train: Train, *, face: bool, adapters: bool, image_only: bool
) -> None:
    """Set ``requires_grad`` of every parameter of ``unet``, ``pose_net`` and ``face_encoder``.

    ``attentions`` is the released choice: all of PoseNet and Face Encoder, and of the UNet what has "attentions" in its
    name (944 tensors of 796.0 M at full size). ``all`` is everything; ``adapters`` what StableAnimator adds to SVD (ID
    adapters, Face Encoder, PoseNet); ``pose+face`` PoseNet and Face Encoder alone; ``lora`` the low-rank updates of
    ``with_lora``. What the step does not use stays frozen, so that no parameter waits for a gradient that never comes:
    the face's path where ``face`` or ``adapters`` is False, temporal layers where ``image_only``.
    """
    for role, network in networks.items():
        for name, parameter in network.named_parameters():
            wanted = _is_chosen(train, role, name)
            if role == "face_encoder" or ADAPTER in name:
                wanted = wanted and face and adapters
            if image_only and role == "unet" and any(part in name for part in _TEMPORAL):
                wanted = False
            parameter.requires_grad_(wanted)


def _is_chosen(train: Train, role: str, name: str) -> bool:
    if train == "lora" or is_lora(name):
        return train == "lora" and is_lora(name)
    if role != "unet" or train == "all":
        return True
    return "attentions" in name if train == "attentions" else train == "adapters" and ADAPTER in name


def with_lora(unet: AnimationUNet, rank: int, fresh: Collection[str], *, seed: int) -> list[str]:
    """Low-rank updates on the projections of all attentions, adapters' included; the layers' names.

    Refused where a network begins at random: an update of rank ``rank`` cannot teach it.
    """
    if fresh:
        raise ConfigError(
            "--train",
            "lora",
            f"a model that has its {' and '.join(sorted(fresh))}",
            hint="start from a trained model folder, or train `adapters` or `attentions` first",
        )
    return add_lora(unet, rank, lambda name: _PROJECTION.search(name) is not None, seed=seed)


def with_adapters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's state dict with ID adapters: where it has none, they begin as copies of that layer's ``to_k/to_v``
    (the paper's §4.1), as ``AnimationUNet.start_adapters_from_attention`` does on a network."""
    tensors = dict(tensors)
    if not any(ADAPTER in name for name in tensors):
        for name, tensor in list(tensors.items()):
            if _CROSS.search(name):
                tensors[_CROSS.sub(rf"\1{ADAPTER}\2.weight", name)] = tensor.clone()
    return tensors


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name within ``model``, in a fixed order. On a DDP-wrapped model: pass its module."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def export_tensors(
    model: nn.Module,
    replaced: Mapping[str, Tensor] | None = None,
    *,
    frozen: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, dict[str, Tensor]]:
    """State dicts of ``unet``, ``pose_net`` and ``face_encoder`` as a model folder holds them: contiguous, on the CPU,
    updates of low rank merged. ``replaced`` tensors (an average of the weights, say) stand in, by ``model``'s names.

    ``frozen`` tensors, by ``model``'s names, stand in as they are: what was not trained has the numbers and the type
    of the file it came from, whatever type it is computed in. ``dtype`` is the type of all others that have floating
    point; None is the masters'. Tensors that need no change share memory with the model on a CPU.
    """
    replaced, frozen = replaced or {}, frozen or {}
    unknown = {*replaced, *frozen} - set(model.state_dict())
    if unknown:
        raise KeyError(f"no tensor of the model is named {min(unknown)}")
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
    """The tensors of a model folder, as ``role.name``, that training of the parameters ``trained`` changes: an update
    of low rank becomes part of its layer's weight."""
    return {f"{name.rpartition('.')[0]}.weight" if is_lora(name) else name for name in trained}


def lora_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The low-rank updates alone, by the UNet's names: a small file beside the model that they belong to."""
    return {
        name.removeprefix("unet."): tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
        if is_lora(name)
    }
