"""LPIPS v0.1 (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric").

Two files form one network: the convolutions of an ImageNet classifier (torchvision's AlexNet or VGG16) and five learned
1 x 1 layers. Names of the weights are those of the published files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Kind = Literal["alex", "vgg"]

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Normalise input in -1..1 as in the training of the trunks."""
EPSILON = 1e-10

# Layer of ``features`` (always a ReLU) whose output is a map, and its channels.
TAPS: dict[Kind, dict[int, int]] = {
    "alex": {1: 64, 4: 192, 7: 384, 9: 256, 11: 256},
    "vgg": {3: 64, 8: 128, 15: 256, 22: 512, 29: 512},
}
MIN_SIDE: dict[Kind, int] = {"alex": 31, "vgg": 16}
"""Minimum side of the input in pixels: smaller ones have no last map."""


class Trunk(nn.Module):
    """The convolutions of a classifier: pixels [n,3,h,w] -> the five maps that LPIPS compares."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind: found {kind!r}, expected alex or vgg")
        self.kind: Kind = kind
        self.features = nn.Sequential(*(_alex() if kind == "alex" else _vgg()))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS[self.kind]:
                maps.append(x)
        return maps


class LinearHeads(nn.ModuleDict):
    """The learned layers ``lin0`` to ``lin4``: one weight per channel each, and a dropout."""

    def __init__(self, kind: Kind) -> None:
        super().__init__({f"lin{n}": _Linear(width) for n, width in enumerate(TAPS[kind].values())})


class _Linear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Lpips(nn.Module):
    """Two batches of images [n,3,h,w] in -1..1 -> distances [n].

    Raises ``ValueError`` if their shapes differ or are below ``MIN_SIDE``.
    """

    def __init__(self, trunk: Trunk, linears: LinearHeads) -> None:
        super().__init__()
        self.trunk, self.linears = trunk, linears

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        minimum = MIN_SIDE[self.trunk.kind]
        if a.shape != b.shape or min(a.shape[-2:]) < minimum:
            raise ValueError(f"LPIPS of {list(a.shape)} and {list(b.shape)}, expected one shape of {minimum} or more")
        total = a.new_zeros(len(a))
        for predicted, target, linear in zip(self._maps(a), self._maps(b), self.linears.values(), strict=True):
            total = total + linear((_unit(predicted) - _unit(target)).square()).mean(dim=(1, 2, 3))
        return total

    def _maps(self, x: Tensor) -> list[Tensor]:
        shift, scale = (x.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        return self.trunk((x - shift) / scale)


def trunk_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a classifier's file without its fully connected layers."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}


def _unit(maps: Tensor) -> Tensor:
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + EPSILON)


def _alex() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ]


def _vgg() -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = 3
    for block, (wider, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        if block:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(count):
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
            width = wider
    return layers
