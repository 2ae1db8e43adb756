"""The engine's training side: from a model folder to a module that learns, and back to a model folder's tensors.

``training_model`` says what a step is, ``training_inputs`` makes its tensors, ``training_choice`` says what learns,
``training_memory`` what it costs; what verbs need of them is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from stableanimator_cli.engine.device import DevicePlan, Networks, keep_freed_memory
from stableanimator_cli.engine.training.inputs import step_inputs
from stableanimator_cli.engine.training.model import StepInputs, TrainingModel, TrainingParts, TrainingSettings
from stableanimator_cli.engine.training.trainable import (
    TRAINED,
    export_tensors,
    exported_names,
    lora_tensors,
    trainable_parameters,
    with_adapters,
    with_lora,
)
from stableanimator_cli.engine.weights import builders, fill, loaders, read_tensors
from stableanimator_cli.errors import ModelMissing
from stableanimator_cli.nets.face_encoder import FusionModel
from stableanimator_cli.nets.memory_format import set_channels_last
from stableanimator_cli.nets.mixed_norms import with_mixed_norms
from stableanimator_cli.nets.unet import AnimationUNet
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
    "gradient_scaler",
    "lora_tensors",
    "open_training",
    "step_inputs",
    "trainable_parameters",
]

_FUSION = "fusion_model."  # weights that the ablation without Face Encoder has not
_TEMPORAL_ENDS = (  # the last layers of temporal residual branches
    ".temporal_res_block.conv2.",
    ".time_pos_embed.linear_2.",
    *(f".temporal_transformer_blocks.0.{end}." for end in ("attn1.to_out.0", "attn2.to_out.0")),
    *(f".temporal_transformer_blocks.0.{end}." for end in ("ff.net.2", "ff_in.net.2")),
)
_START = 0.02  # deviation of a fresh Face Encoder's last projection


def open_training(
    model: ModelFolder,
    settings: TrainingSettings,
    device: torch.device,
    *,
    fresh: Collection[str] = (),
    seed: int = 0,
) -> TrainingParts:
    """A model folder's networks, ready to train.

    Roles in ``fresh``, and PoseNet and Face Encoder where the folder has none (SVD alone), begin at random from
    ``seed``, the same on every rank; ID adapters that the UNet's file lacks begin as its ``to_k/to_v``. Raises
    ``ModelMissing`` and ``ModelDamaged`` as animation does, ``ConfigError`` where ``lora`` has nothing to start from.
    """
    model = _with_ablations(model, settings)
    begun = tuple(role for role in TRAINED if role in fresh or (role != "unet" and role not in model.files))
    build = builders(model, settings.id_adapter)
    networks = {role: _network(model, build[role], role, role in begun, seed) for role in TRAINED}
    unet = networks["unet"]
    assert isinstance(unet, AnimationUNet)
    if settings.train == "lora":
        with_lora(unet, settings.lora_rank, begun, seed=seed)
    if settings.dtype != "float32" and device.type != "cpu":
        for network in networks.values():
            with_mixed_norms(network)
    training = TrainingModel(**networks, settings=settings).train()
    training.to(device)
    if device.type == "cpu":
        keep_freed_memory()
        set_channels_last(training)  # a CPU's library is quicker so
    encoders_in = torch.bfloat16 if settings.dtype == "bfloat16" and device.type == "cuda" else torch.float32
    return TrainingParts(
        model=training,
        networks=Networks(
            loaders(model, encoders_in, settings.id_adapter), DevicePlan(device=device, dtype=encoders_in)
        ),
        device=device,
        fresh=begun,
        scaling=float(model.configs["vae"].get("scaling_factor", 0.18215)),
    )


def export_configs(model: ModelFolder, settings: TrainingSettings) -> dict[str, Mapping[str, object]]:
    """JSON configs for a checkpoint of this training: the model's own, and ``fusion`` false where it has no Face
    Encoder, so that whoever opens the checkpoint builds what was trained."""
    return dict(_with_ablations(model, settings).configs)


def frozen_tensors(
    model: ModelFolder, settings: TrainingSettings, names: Collection[str], *, fresh: Collection[str], seed: int
) -> dict[str, Tensor]:
    """The tensors ``names`` (``role.name``) that a training started from: as the model's files hold them, or, for the
    roles in ``fresh``, as ``open_training`` drew them from ``seed``."""
    model = _with_ablations(model, settings)
    build = builders(model, settings.id_adapter)
    found: dict[str, Tensor] = {}
    for role in TRAINED:
        wanted = [name for name in names if name.startswith(f"{role}.")]
        if wanted:
            tensors = init_network(build[role], seed).state_dict() if role in fresh else _file_tensors(model, role)
            found |= {name: tensors[name.removeprefix(f"{role}.")] for name in wanted}
    return found


def gradient_scaler(settings: TrainingSettings, device: torch.device) -> torch.amp.GradScaler:
    """What float16 needs so that small gradients do not vanish; does nothing in other types."""
    return torch.amp.GradScaler(device.type, enabled=settings.dtype == "float16")


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
            f"model {model.name!r} has no {role} here",
            hint=f"get its files with `sa models pull`, or begin at random with --from-scratch {role}",
        )
    return fill(build, _file_tensors(model, role), torch.float32, model.files[role])


def _file_tensors(model: ModelFolder, role: str) -> dict[str, Tensor]:
    """The tensors of a role's file, with ID adapters and without what an ablation leaves out."""
    tensors = read_tensors(model.files[role])
    if role == "unet":
        tensors = with_adapters(tensors)
    if role == "face_encoder" and model.configs.get(role, {}).get("fusion", True) is False:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_FUSION)}
    return tensors


def init_network(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network at random from ``seed``, wherever it is built. Generators of the caller stay as they are.

    A Face Encoder does not begin at zero as the released one did: there its last norm and the adapters' alignment both
    divide by a deviation of zero, and the first gradients are a hundred thousand times the later ones.

    A UNet's temporal layers begin by changing nothing, as SVD's did (Blattmann et al. 2023, arXiv:2304.08818): drawn at
    random they would spoil for many steps what a stage of pictures has taught the spatial ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        if isinstance(network, AnimationUNet):
            network.init_adapters_from_attention()
            _quiet_in_time(network)
        for module in network.modules():
            if isinstance(module, FusionModel):
                nn.init.normal_(module.proj_out.weight, std=_START)
    return network


@torch.no_grad()
def _quiet_in_time(unet: AnimationUNet) -> None:
    """Zeros where each temporal residual branch ends."""
    for name, parameter in unet.named_parameters():
        if any(ending in name for ending in _TEMPORAL_ENDS):
            parameter.zero_()
