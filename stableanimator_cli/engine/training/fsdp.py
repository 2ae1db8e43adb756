"""Weights, gradients, moments and average cut into one piece a rank (FSDP2, ``torch.distributed.fsdp.fully_shard``).

A unit is a module whose pieces are gathered when it runs and let go after it, so that a rank holds its share of the
whole and one or two units. accelerate's way to FSDP2 is for accelerators alone and wants whole blocks called, while
``AnimationUNet`` calls the parts of its transformer blocks: units are these parts, and torch is asked directly.
Tensors in pieces are ``DTensor``; what is here takes plain ones too and then changes nothing.
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
else:  # a build of torch that knows one process

    class DTensor(Tensor):
        pass


_BLOCKS = (ResnetBlock2D, TemporalResnetBlock, FeedForward, Attention, PoseNet, FaceEncoder)
_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that are gathered one by one: those that are always run by a call of their own.

    The cross-attention that has an ID adapter is not (the adapter calls its layers), so its layers are units. What is
    in no unit (norms, mixing factors) is small and stays gathered from forward to backward.
    """
    for child in module.children():
        adapted = isinstance(child, Attention) and isinstance(child.processor, IDAdapter)
        if isinstance(child, _BLOCKS + _LAYERS) and not adapted:
            yield child
        else:
            yield from units(child)


def shard(model: nn.Module, device: torch.device) -> None:
    """Cut every parameter of ``model`` (whole and equal on all ranks, on ``device``) into the ranks' pieces, in place.

    Parameters are other objects afterwards, under the names they had. Call it before an optimiser is made.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # pieces know no channels-last
    # linear layers answer with views; nothing that learns here is written in place, which is what torch warns of
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    for unit in units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gather(tree: Any, *, keep: bool = True) -> Any:
    """``tree`` (a tensor, or mappings and lists of them) with tensors in pieces as whole ones on the CPU; the others as
    they are. Every rank must call it; where ``keep`` is False a rank sends its pieces and gets None instead."""
    if isinstance(tree, DTensor):
        whole = cast(DTensor, tree.detach()).full_tensor()
        return whole.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {key: gather(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gather(value, keep=keep) for value in tree]
    return tree


def scatter(value: Tensor, like: Tensor) -> Tensor:
    """``value`` on the device of ``like``, and in pieces as that is. Whole values are the same on every rank, each of
    which must call it."""
    value = value.to(like.device)
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)


def spread_state(state: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """An optimiser's whole ``state_dict`` as one over ``parameters`` takes it: moments in pieces where they are."""
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
