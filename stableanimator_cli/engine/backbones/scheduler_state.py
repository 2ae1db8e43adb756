"""The state of a diffusers scheduler between two steps as tensors, so that a checkpoint can hold it.

A multistep scheduler (UniPC, DPM-Solver) keeps earlier model outputs, the last sample and counters in attributes. All
attributes that are numbers, tensors or lists of them are stored; its config, which never changes, is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SEPARATOR = ":"


def pack_scheduler(scheduler: Any) -> dict[str, Tensor]:
    """The state as tensors by ``attribute:kind``; list elements are ``attribute.index:kind``."""
    packed: dict[str, Tensor] = {}
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            if all(_kind(item) is not None for item in value):
                packed[f"{name}{_SEPARATOR}list"] = torch.tensor(len(value))
                packed |= {
                    f"{name}.{index}{_SEPARATOR}{_kind(item)}": _tensor(item) for index, item in enumerate(value)
                }
        elif (kind := _kind(value)) is not None:
            packed[f"{name}{_SEPARATOR}{kind}"] = _tensor(value)
    return packed


def restore_scheduler(scheduler: Any, packed: Mapping[str, Tensor]) -> None:
    """Set the attributes of ``pack_scheduler`` on a scheduler of the same class, after ``set_timesteps``.

    Tensors go to the device of the attribute that they replace; a new one to that of ``timesteps``, where samples are.
    """
    values, lists = {}, {}
    for key, tensor in packed.items():
        name, _, kind = key.rpartition(_SEPARATOR)
        if kind == "list":
            lists[name] = int(tensor)
        else:
            values[name] = _value(kind, tensor, getattr(scheduler, name, None), scheduler.timesteps.device)
    for name, length in lists.items():
        setattr(scheduler, name, [values.pop(f"{name}.{index}") for index in range(length)])
    for name, value in values.items():
        setattr(scheduler, name, value)


def _kind(value: Any) -> str | None:
    if value is None:
        return "none"
    if isinstance(value, bool | int | float):
        return type(value).__name__
    return "tensor" if isinstance(value, Tensor) else None


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    return torch.tensor(0 if value is None else value, dtype=torch.float64 if isinstance(value, float) else None)


def _value(kind: str, tensor: Tensor, current: Any, device: torch.device) -> Any:
    if kind == "tensor":
        return tensor.to(current.device if isinstance(current, Tensor) else device)
    return None if kind == "none" else {"bool": bool, "int": int, "float": float}[kind](tensor.item())
