"""Open a model folder for training, and export the tensors of a model folder again.

``model`` defines a step, ``inputs`` its tensors, ``trainable`` what learns, ``fsdp`` sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from stableanimator_cli.engine.backbones import backbone_of
from stableanimator_cli.engine.device import DevicePlan, Networks, keep_freed_memory
from stableanimator_cli.engine.training.inputs import step_inputs
from stableanimator_cli.engine.training.model import StepInputs, TrainingModel, TrainingParts, TrainingSettings
from stableanimator_cli.engine.training.trainable import (
    TRAINED,
    export_tensors,
    exported_names,
    trainable_parameters,
    with_adapters,
    with_lora,
)
from stableanimator_cli.engine.weights import builders, fill, loaders
from stableanimator_cli.errors import ModelMissing
from stableanimator_cli.nets.denoising_unet import DenoisingUNet
from stableanimator_cli.nets.face_encoder import FusionModel
from stableanimator_cli.nets.memory_format import set_channels_last
from stableanimator_cli.nets.mixed_norms import with_mixed_norms
from stableanimator_cli.records import ModelFolder

__all__ = [
    "StepInputs",
    "TrainingModel",
    "TrainingParts",
    "TrainingSettings",
    "export_configs",
    "export_tensors",
    "exported_names",
    "frozen_tensors",
    "open_training",
    "step_inputs",
    "trainable_parameters",
]

_FUSION = "fusion_model."  # weights that are absent in the ablation without Face Encoder
_FACE_INIT_STD = 0.02  # of the last projection of a Face Encoder initialised at random


def open_training(
    model: ModelFolder,
    settings: TrainingSettings,
    device: torch.device,
    *,
    fresh: Collection[str] = (),
    seed: int = 0,
) -> TrainingParts:
    """Open the networks of a model folder for training.

    Roles in ``fresh``, and PoseNet and Face Encoder if the folder has none (SVD alone), are initialised at random from
    ``seed``, equally on every rank. ID adapters missing in the UNet's file are copies of ``to_k/to_v``. Raises
    ``ModelMissing``, ``ModelDamaged``, and ``ConfigError`` for ``lora`` with random networks.
    """
    model = _with_ablations(model, settings)
    fresh = tuple(role for role in TRAINED if role in fresh or (role != "unet" and role not in model.files))
    build = builders(model, settings.id_adapter)
    networks = {role: _network(model, build[role], role, role in fresh, seed) for role in TRAINED}
    if settings.train == "lora":
        with_lora(networks["unet"], settings.lora_rank, fresh, seed=seed)
    if settings.dtype != "float32" and device.type != "cpu":
        for network in networks.values():
            with_mixed_norms(network)
    training = TrainingModel(**networks, settings=settings, backbone=backbone_of(model)).train()
    training.to(device)
    if device.type == "cpu":
        keep_freed_memory()
        set_channels_last(training)  # faster with oneDNN
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" and device.type == "cuda" else torch.float32
    return TrainingParts(
        model=training,
        networks=Networks(loaders(model, dtype, settings.id_adapter), DevicePlan(device=device, dtype=dtype)),
        device=device,
        fresh=fresh,
        scaling=float(model.configs["vae"].get("scaling_factor", 0.18215)),
    )


def export_configs(model: ModelFolder, settings: TrainingSettings) -> dict[str, Mapping[str, object]]:
    """JSON configs of the trained networks; ``fusion`` is false in the ablation without Face Encoder."""
    model = _with_ablations(model, settings)
    return dict(backbone_of(model).configs(model))


def frozen_tensors(
    model: ModelFolder, settings: TrainingSettings, names: Collection[str], *, fresh: Collection[str], seed: int
) -> dict[str, Tensor]:
    """The tensors ``names`` (``role.name``) that a training started from.

    They are read from the model's files, or initialised from ``seed`` again for the roles in ``fresh``.
    """
    model = _with_ablations(model, settings)
    build = builders(model, settings.id_adapter)
    found: dict[str, Tensor] = {}
    for role in TRAINED:
        selected = [name for name in names if name.startswith(f"{role}.")]
        if selected:
            tensors = init_network(build[role], seed).state_dict() if role in fresh else _file_tensors(model, role)
            found |= {name: tensors[name.removeprefix(f"{role}.")] for name in selected}
    return found


def _with_ablations(model: ModelFolder, settings: TrainingSettings) -> ModelFolder:
    if settings.face_encoder:
        return model
    face = {**model.configs.get("face_encoder", {}), "fusion": False}
    return replace(model, configs={**model.configs, "face_encoder": face})


def _network(model: ModelFolder, build: Callable[[], nn.Module], role: str, fresh: bool, seed: int) -> nn.Module:
    if fresh:
        return init_network(build, seed)
    if role not in model.files:
        raise ModelMissing(
            f"model {model.name!r} has no {role}",
            hint=f"download it with `sa models pull`, or initialise it at random with --from-scratch {role}",
        )
    return fill(build, _file_tensors(model, role), torch.float32, model.files[role])


def _file_tensors(model: ModelFolder, role: str) -> dict[str, Tensor]:
    """Tensors of a role's file, with ID adapters and without the weights of a disabled Face Encoder."""
    tensors = backbone_of(model).read(model, role)
    if role == "unet":
        tensors = with_adapters(tensors)
    if role == "face_encoder" and model.configs.get(role, {}).get("fusion", True) is False:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_FUSION)}
    return tensors


def init_network(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network with random weights from ``seed``. The caller's random generators are not advanced.

    A Face Encoder does not start at zero like the released one: its last norm and the adapters' alignment would divide
    by a standard deviation of zero, and the first gradients would be 10^5 times the later ones.

    The temporal residual branches of a UNet start at zero, as in SVD (Blattmann et al. 2023, arXiv:2304.08818). At
    random they would undo what an image-only stage has trained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        if isinstance(network, DenoisingUNet):
            network.init_adapters_from_attention()
            network.zero_temporal_branches()
        for module in network.modules():
            if isinstance(module, FusionModel):
                nn.init.normal_(module.proj_out.weight, std=_FACE_INIT_STD)
    return network
