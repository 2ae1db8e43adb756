"""3D ResNet-50 (Hara et al., "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?").

Names of the weights are those of ``resnet-50-kinetics.pth`` after ``extract_weights``; shortcuts are of type B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_BLOCKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, count, stride
_EXPANSION = 4


class Bottleneck(nn.Module):
    """Kernels 1, 3, 1 and a shortcut: [b,c,t,h,w] -> [b,4 width,t/stride,h/stride,w/stride]."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * _EXPANSION
        self.conv1, self.bn1 = nn.Conv3d(in_channels, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3, self.bn3 = nn.Conv3d(width, out, 1, bias=False), nn.BatchNorm3d(out)
        self.downsample = None
        if stride != 1 or in_channels != out:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, out, 1, stride=stride, bias=False), nn.BatchNorm3d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet3D(nn.Module):
    """Clips [b,3,t,h,w] of pixels 0..255 minus their mean -> features [b,2048], averaged over time and space.

    At 16 frames of 112 x 112 this is the 1 x 4 x 4 grid that the released code averages over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.maxpool = nn.MaxPool3d(3, 2, padding=1)
        in_channels = 64
        for number, (width, count, stride) in enumerate(_BLOCKS, start=1):
            blocks = []
            for index in range(count):
                blocks.append(Bottleneck(in_channels, width, stride if index == 0 else 1))
                in_channels = width * _EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for number in range(1, len(_BLOCKS) + 1):
            x = getattr(self, f"layer{number}")(x)
        return x.mean(dim=(2, 3, 4))


def extract_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a training checkpoint's ``state_dict`` under the names of ``ResNet3D``.

    The prefix of data-parallel training and the classifier are removed; ``num_batches_tracked`` is added.
    """
    inner = checkpoint.get("state_dict", checkpoint)
    found = {name.removeprefix("module."): tensor for name, tensor in inner.items()}
    found = {name: tensor for name, tensor in found.items() if not name.startswith("fc.")}
    for name in [name for name in found if name.endswith(".running_var")]:
        found.setdefault(name.replace("running_var", "num_batches_tracked"), torch.zeros((), dtype=torch.long))
    return found
