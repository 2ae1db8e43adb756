"""Counting what a training step keeps alive, on the ``meta`` device: nothing is computed and nothing allocated, so a
network of any size is counted in seconds on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.engine.device import DTYPES
from stableanimator_cli.engine.memory.profile import PeakMemoryMode
from stableanimator_cli.engine.training.model import StepInputs, TrainingModel

_MATRIX = ("linear", "conv2d", "conv3d")  # what autocast computes in half precision
_NORM = ("group_norm", "layer_norm")  # what ``mixed_norms`` computes in the input's type


def step_bytes(model: TrainingModel, inputs: StepInputs, *, shared: bool = False) -> int:
    """Most bytes that forward and backward hold at once beside weights and inputs: gradients, casts, activations.
    Where gradients are ``shared`` each is gone as soon as it is there, in pieces to the ranks."""
    for parameter in model.parameters():
        parameter.grad = None
    with ExitStack() as hooks:
        for parameter in model.parameters() if shared else ():
            if parameter.requires_grad:
                hooks.callback(parameter.register_post_accumulate_grad_hook(_forget).remove)
        with PeakMemoryMode() as counted:
            model(inputs).mean().backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counted.peak


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def meta_step_bytes(
    model: TrainingModel, batch: int, frames: int, size: tuple[int, int], *, shared: bool = False
) -> int:
    """``step_bytes`` of a model on the ``meta`` device at a size (width, height), as a card with a fused attention
    kernel would run it."""
    inputs = made_up_inputs(model, batch, frames, size, torch.device("meta"))
    with _as_on_a_card(DTYPES[model.settings.dtype] if model.settings.dtype != "float32" else None):
        return step_bytes(model, inputs, shared=shared)


def made_up_inputs(
    model: TrainingModel, batch: int, frames: int, size: tuple[int, int], device: torch.device
) -> StepInputs:
    """A step's tensors without a data set: noise throughout, every sample with a face and nothing dropped."""
    width, height = size[0] // 8, size[1] // 8
    channels, tokens = model.unet.config["out_channels"], model.face_encoder.config

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    one = torch.ones(batch, device=device)
    return StepInputs(
        latents=noise(batch, frames, channels, height, width),
        noise=noise(batch, frames, channels, height, width),
        sigma=one,
        reference=noise(batch, channels, height, width),
        image=noise(batch, 1, tokens.clip_embeddings_dim),
        face=noise(batch, tokens.id_embeddings_dim),
        has_face=one,
        poses=torch.randint(0, 256, (batch, frames, 3, size[1], size[0]), dtype=torch.uint8, device=device),
        mask=torch.zeros(batch, frames, 1, height, width, device=device),
        time_ids=torch.tensor([[6.0, 127.0, 0.02]], device=device).expand(batch, 3),
        keep_image=one,
        keep_reference=one,
        keep_face=one,
        keep_pose=one,
    )


@contextmanager
def _as_on_a_card(half: torch.dtype | None) -> Iterator[None]:
    """Within it functions on ``meta`` tensors do what they do on a card: attention by the kernel that keeps no square
    matrix, and in ``half`` precision what autocast casts (it knows no ``meta`` device)."""
    plain: dict[str, Callable[..., Tensor]] = {
        name: getattr(F, name) for name in (*_MATRIX, *_NORM, "scaled_dot_product_attention")
    }

    def attention(query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    def matrix(name: str) -> Callable[..., Tensor]:
        def run(*args: Any, **named: Any) -> Tensor:
            return plain[name](*(_cast(arg, half) for arg in args), **{k: _cast(v, half) for k, v in named.items()})

        return run

    def norm(name: str) -> Callable[..., Tensor]:
        def run(x: Tensor, *args: Any, **named: Any) -> Tensor:
            return plain[name](
                x, *(_cast(arg, x.dtype) for arg in args), **{k: _cast(v, x.dtype) for k, v in named.items()}
            )

        return run

    instead: Mapping[str, Callable[..., Tensor]] = {"scaled_dot_product_attention": attention}
    if half is not None:
        instead = {**instead, **{name: matrix(name) for name in _MATRIX}, **{name: norm(name) for name in _NORM}}
    try:
        for name, function in instead.items():
            setattr(F, name, function)
        yield
    finally:
        for name in instead:
            setattr(F, name, plain[name])


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
