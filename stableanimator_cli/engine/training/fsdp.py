"""Sharding of weights, gradients, moments and EMA across ranks (FSDP2, ``torch.distributed.fsdp.fully_shard``).

The weights of a unit are gathered while it runs, so a rank holds its shard and one or two units. ``accelerate`` shards
on accelerators only and wraps whole transformer blocks, but ``AnimationUNet`` calls their parts: these are the units,
and ``fully_shard`` is called directly. Sharded tensors are ``DTensor``; plain tensors pass through unchanged.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn

from stableanimator_cli.nets.face_encoder import FaceEncoder
from stableanimator_cli.nets.id_adapter import IDAdapter
from stableanimator_cli.nets.pose_net import PoseNet

if TYPE_CHECKING or dist.is_available():
    from torch.distributed.tensor import DTensor
else:  # a torch built without torch.distributed

    class DTensor(Tensor):
        pass


_BLOCKS = (ResnetBlock2D, TemporalResnetBlock, FeedForward, Attention, PoseNet, FaceEncoder)
_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that are gathered one by one: those whose ``forward`` is always called.

    An ID adapter calls the layers of its cross-attention, so there the layers are units. Parameters outside units
    (norms, mixing factors) are small and stay gathered from forward to backward.
    """
    for child in module.children():
        adapted = isinstance(child, Attention) and isinstance(child.processor, IDAdapter)
        if isinstance(child, _BLOCKS + _LAYERS) and not adapted:
            yield child
        else:
            yield from units(child)


def shard(model: nn.Module, device: torch.device) -> None:
    """Shard every parameter of ``model`` across the ranks, in place.

    ``model`` must be on ``device`` and equal on all ranks. Parameters become new objects with the same names: create
    the optimiser afterwards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # shards do not support channels-last
    # linear layers return views; torch warns of in-place writes to them, which do not happen here
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    for unit in units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gather(tree: Any, *, keep: bool = True) -> Any:
    """Return ``tree`` (a tensor, or mappings and lists of tensors) with sharded tensors gathered on the CPU.

    Every rank must call it. With ``keep`` False this rank only sends its shards and gets None for them.
    """
    if isinstance(tree, DTensor):
        full = cast(DTensor, tree.detach()).full_tensor()
        return full.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {key: gather(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gather(value, keep=keep) for value in tree]
    return tree


def scatter(value: Tensor, like: Tensor) -> Tensor:
    """Return ``value`` on the device of ``like`` and sharded as it is. Every rank must call it with the same value."""
    value = value.to(like.device)
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)


def scatter_state(state: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """An optimiser's full ``state_dict`` for an optimiser over ``parameters``: moments sharded as they are."""
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return dict(state)
    moments = {
        index: {
            name: scatter(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in values.items()
        }
        for index, values in cast(Mapping[int, Mapping[str, Any]], state["state"]).items()
    }
    return {**state, "state": moments}
