"""Networks to measure: those of a catalogue entry, or the released shapes with random weights.

Speed and memory do not depend on the weights, but differences between variants do: tables name their networks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from stableanimator_cli import catalogue
from stableanimator_cli.engine import weights
from stableanimator_cli.engine.device import DevicePlan, Networks
from stableanimator_cli.engine.engine import Engine, apply_plan
from stableanimator_cli.engine.weights import builders, fill, loaders
from stableanimator_cli.records import NETWORKS, ModelFolder

FULL = "full"
_CPU = torch.device("cpu")
_BASE = ("vae", "image_encoder")  # StableAnimator takes these from SVD as they are


def open_bench_model(name: str) -> ModelFolder:
    """``full``: the released shapes without weights, with the small model's face networks; else a catalogue name or
    model folder."""
    if name != FULL:
        return catalogue.open_model(name, NETWORKS)
    ours, base = catalogue.entry("stableanimator"), catalogue.entry("svd-xt")
    folders = {role: (base if role in _BASE else ours).folder for role in NETWORKS}
    puppet = catalogue.open_model("puppet")
    return ModelFolder(
        name=FULL,
        path=ours.folder,
        files={"face": puppet.files["face"]},
        configs={role: catalogue.read_config(folder / f"{role}.json") for role, folder in folders.items()},
        defaults={"size": "576x1024"},
        licence="",
        face_channel_order=puppet.face_channel_order,
    )


def network_on_meta(model: ModelFolder, role: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network on the meta device, for counting."""
    return weights.build_on_meta(builders(model, "distribution")[role], dtype).eval().requires_grad_(False)


def load_network(model: ModelFolder, role: str, dtype: torch.dtype, device: torch.device = _CPU) -> nn.Module:
    """A network with its weights, or with random ones drawn on ``device`` if the model has no file for it."""
    if role in model.files:
        return loaders(model, dtype, "distribution")[role]()
    build = builders(model, "distribution")[role]
    return fill(build, random_weights(build, device=device), dtype, Path(role))


def open_engine(model: ModelFolder, plan: DevicePlan) -> Engine:
    """An engine whose networks are loaded when they become resident."""

    def load(role: str) -> nn.Module:
        network = load_network(model, role, plan.dtype, plan.device if plan.device.type == "cuda" else _CPU)
        return network.to("cpu") if plan.config.offload != "none" else network

    networks = {role: lambda role=role: load(role) for role in NETWORKS}
    return Engine(model, plan, Networks(apply_plan(networks, plan), plan))


def random_weights(build: Callable[[], nn.Module], seed: int = 0, device: torch.device = _CPU) -> dict[str, Tensor]:
    """A seeded state dict: matrices of unit gain, norms near one, biases near zero. Zero-initialised layers are random
    too, so that layers behind them have input."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    generator = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator, device=device)
        if len(shape) > 1:
            weights[name] = x.mul_(float(shape[1:].numel()) ** -0.5)
        else:
            weights[name] = x.mul_(0.05).add_(1.0 if name.endswith(("weight", "scale")) else 0.0)
    return weights
