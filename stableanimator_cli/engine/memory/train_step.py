"""Count the memory of a training step on the ``meta`` device, without computing or allocating anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from stableanimator_cli.engine.device import DTYPES
from stableanimator_cli.engine.memory.profile import PeakMemoryMode, fused_attention
from stableanimator_cli.engine.training.model import StepInputs, TrainingModel

BuildOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

_MATRIX = ("linear", "conv2d", "conv3d")  # autocast computes these in half precision
_NORM = ("group_norm", "layer_norm")  # ``mixed_norms`` computes these in the dtype of the input


def step_bytes(model: TrainingModel, inputs: StepInputs, *, sharded: bool = False) -> int:
    """Peak bytes of forward and backward beside weights and inputs: gradients, casts, activations.

    ``sharded`` gradients are freed as soon as they are computed, as they are scattered to the ranks.
    """
    for parameter in model.parameters():
        parameter.grad = None
    with ExitStack() as hooks:
        for parameter in model.parameters() if sharded else ():
            if parameter.requires_grad:
                hooks.callback(parameter.register_post_accumulate_grad_hook(_free_gradient).remove)
        with PeakMemoryMode() as counter:
            model(inputs).mean().backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counter.peak


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def meta_step_bytes(
    model: TrainingModel, batch: int, frames: int, size: tuple[int, int], *, people: int = 1, sharded: bool = False
) -> int:
    """``step_bytes`` of a model on ``meta`` at ``size`` (width, height), with fused attention as on a GPU."""
    inputs = random_inputs(model, batch, frames, size, torch.device("meta"), people)
    dtype = DTYPES[model.settings.dtype] if model.settings.dtype != "float32" else None
    with fused_attention(), _meta_autocast(dtype):
        return step_bytes(model, inputs, sharded=sharded)


@dataclass(frozen=True, slots=True)
class OptimizerBytes:
    """Bytes of an optimiser: its ``state``, and what a ``step`` allocates beside state and gradients."""

    state: int
    step: int


def optimizer_bytes(
    parameters: list[nn.Parameter], build: BuildOptimizer, *, multi_tensor: bool = False
) -> OptimizerBytes:
    """Count an optimiser of parameters on ``meta``, which steps twice; the first step makes the state.

    ``multi_tensor``: AdamW updates all tensors at once, as it does on a GPU, and allocates as much as their gradients.
    """
    copies = [nn.Parameter(torch.empty_like(parameter, device="meta")) for parameter in parameters]
    for copy in copies:
        copy.grad = torch.empty_like(copy)
    optimizer = build(copies)
    with _disable_current_modes():  # a step's FLOPs are not those of a micro-batch
        optimizer.step()
        with PeakMemoryMode() as counter:
            optimizer.step()
    parts: list[torch.optim.Optimizer] = getattr(optimizer, "optimizers", [optimizer])
    values = [value for part in parts for state in part.state.values() for value in state.values()]
    state = sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor) and value.ndim)
    adamw = [parameter for part in parts if isinstance(part, torch.optim.AdamW) for parameter in part.state]
    at_once = sum(parameter.numel() * parameter.element_size() for parameter in adamw) if multi_tensor else 0
    return OptimizerBytes(state, max(counter.peak, at_once))


def random_inputs(
    model: TrainingModel, batch: int, frames: int, size: tuple[int, int], device: torch.device, people: int = 1
) -> StepInputs:
    """Random tensors of one step; every sample shows ``people`` with a face and no input is dropped."""
    width, height = size[0] // 8, size[1] // 8
    channels, tokens = model.unet.config["out_channels"], model.face_encoder.config

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    one = torch.ones(batch, device=device)
    shape_of_people, regions = (people,) if people > 1 else (), None
    if people > 1:
        regions = torch.full((1, 1, people + 1, 1, 1), 1 / (people + 1), device=device)
    return StepInputs(
        latents=noise(batch, frames, channels, height, width),
        noise=noise(batch, frames, channels, height, width),
        sigma=one,
        reference=noise(batch, channels, height, width),
        image=noise(batch, 1, tokens.clip_embeddings_dim),
        face=noise(batch, *shape_of_people, tokens.id_embeddings_dim),
        has_face=one,
        poses=torch.randint(0, 256, (batch, frames, 3, size[1], size[0]), dtype=torch.uint8, device=device),
        mask=torch.zeros(batch, frames, 1, height, width, device=device),
        time_ids=torch.tensor([[6.0, 127.0, 0.02]], device=device).expand(batch, 3),
        keep_image=one,
        keep_reference=one,
        keep_face=one,
        keep_pose=one,
        regions=None if regions is None else regions.expand(batch, frames, -1, height, width),
    )


@contextmanager
def _meta_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Cast like autocast to ``dtype``, which does not support the ``meta`` device; None changes nothing."""
    plain: dict[str, Callable[..., Tensor]] = {name: getattr(F, name) for name in (*_MATRIX, *_NORM)}

    def matrix(name: str) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            return plain[name](*_cast(args, dtype), **_cast(kwargs, dtype))

        return run

    def norm(name: str) -> Callable[..., Tensor]:
        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return plain[name](x, *_cast(args, x.dtype), **_cast(kwargs, x.dtype))

        return run

    patched = {name: matrix(name) for name in _MATRIX} | {name: norm(name) for name in _NORM} if dtype else {}
    try:
        for name, function in patched.items():
            setattr(F, name, function)
        yield
    finally:
        for name in patched:
            setattr(F, name, plain[name])


def _cast(values: Any, dtype: torch.dtype | None) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, values)
