"""The VAE in training, and the two networks of its losses: frozen features and a patch discriminator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from onnx import numpy_helper
from torch import Tensor, nn

from stableanimator_cli.engine.weights import read_tensors
from stableanimator_cli.nets.norm_groups import set_norm_groups
from stableanimator_cli.nets.time_conv import TimeConv, with_time_convs
from tools.figure_networks.vae import NORM_GROUPS, VAE_CONFIG


def open_vae(path: Path | None) -> AutoencoderKLTemporalDecoder:
    """The VAE of ``models/puppet`` with weights from ``path``; its temporal kernels use single frames only."""
    config = {key: value for key, value in VAE_CONFIG.items() if key != "norm_num_groups"}
    vae = with_time_convs(set_norm_groups(AutoencoderKLTemporalDecoder(**config), NORM_GROUPS))
    if path is not None:
        vae.load_state_dict({name: tensor.float() for name, tensor in read_tensors(path).items()})
    for module in vae.modules():
        if isinstance(module, TimeConv):
            with torch.no_grad():
                module.weight[:, :, [0, 2]] = 0
    set_channels_last(vae)
    return vae


def set_channels_last(network: nn.Module) -> None:
    """Convert kernels to channels last, the fastest layout for convolutions on a CPU."""
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


class Features(nn.Module):
    """The first three convolutions of ``video.onnx``, frozen: a perceptual distance like LPIPS."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(str(path)).graph
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:  # weights are stored as float16 and cast in the graph
            if node.op_type == "Cast" and node.input[0] in tensors:
                tensors[node.output[0]] = tensors[node.input[0]].astype(np.float32)
        layers = [node for node in graph.node if node.op_type == "Conv"][:3]
        self.strides = (1, 2, 2)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for node in layers:
            for into, name in ((self.weights, node.input[1]), (self.biases, node.input[2])):
                into.append(nn.Parameter(torch.from_numpy(tensors[name].copy()).float(), requires_grad=False))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for weight, bias, stride in zip(self.weights, self.biases, self.strides, strict=True):
            x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=1))
            maps.append(x)
        return maps


class Discriminator(nn.Module):
    """Patches of 34 pixels, real or decoded (Isola et al., "Image-to-Image Translation"): maps and logits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        sizes = ((3, width, 2), (width, 2 * width, 2), (2 * width, 3 * width, 1))
        self.layers = nn.ModuleList(norm(nn.Conv2d(a, b, 4, stride, 1)) for a, b, stride in sizes)
        self.last = norm(nn.Conv2d(3 * width, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            maps.append(x)
        return maps, self.last(x)
