"""The IResNet of ArcFace in torch, with weights from names alone, and the same network as an ONNX graph.

Layers and names are those of the golden files (``arcface`` in their ``configs.json``): blocks bn-conv-bn-prelu-conv-bn
with a 1x1 shortcut, then bn, flatten, fc, bn. Source: Deng et al., "ArcFace" §3.2; Duta et al., "Improved Residual
Networks for Image and Video Recognition".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from tests.onnx_samples import Graph

SIDE = 112


class Block(nn.Module):
    """``stride`` 2 with a 1x1 shortcut opens a stage; the blocks after it keep the size and add their input."""

    def __init__(self, inside: int, outside: int, stride: int = 2) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.prelu = nn.PReLU(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inside != outside:
            shortcut = nn.Conv2d(inside, outside, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))

    @property
    def shortcut(self) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
        if self.downsample is None:
            return None
        conv, norm = self.downsample
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        return conv, norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))
        return self.bn3(y) + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Pixels [b,3,112,112] in [-1, 1] -> [b,features]; ``layers`` blocks and ``widths`` channels a stage."""

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        features: int = 64,
        stem: int = 64,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        layers = layers or [1] * len(widths)
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = nn.PReLU(stem)
        for stage, (inside, outside, count) in enumerate(zip((stem, *widths), widths, layers, strict=False), 1):
            more = (Block(outside, outside, stride=1) for _ in range(count - 1))
            self.add_module(f"layer{stage}", nn.Sequential(Block(inside, outside), *more))
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1] * (SIDE // 2 ** len(widths)) ** 2, features)
        self.features = nn.BatchNorm1d(features)
        self.stages = len(widths)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


def filled(net: IResNet, prefix: str = "dev") -> IResNet:
    """The network in eval mode with every tensor drawn from its name, by the golden files' rule."""
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(tensor_for(f"{prefix}/arcface/{name}", tuple(tensor.shape))))
    return net.eval().requires_grad_(False)


def tensor_for(key: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return x * np.float32(np.prod(shape[1:]) ** -0.5)
    small = np.float32(0.05) * x
    if key.endswith(".running_var"):
        return 1 + np.abs(small)
    if "prelu" in key:
        return np.float32(0.25) + small
    return 1 + small if key.endswith(".weight") else small


def to_onnx(net: IResNet, *, folded: bool = False, style: str = "flatten", batch: int | str = "n") -> onnx.ModelProto:
    """The network as a graph. ``folded`` merges each batch norm that follows a convolution into it, as exporters do;
    ``style`` is how the tail is flattened: ``flatten`` + Gemm, ``reshape`` to a constant shape + MatMul, or ``shape``
    (Shape, Gather, Unsqueeze, Concat, Reshape) with the slopes behind Unsqueeze and Identity nodes."""
    graph = Graph()

    def weights(tensor: Tensor | None) -> str:
        assert tensor is not None
        return graph.constant(tensor.detach().numpy())

    def norm(x: str, bn: nn.BatchNorm2d | nn.BatchNorm1d) -> str:
        parts = (weights(t) for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var))
        return graph.add("BatchNormalization", x, *parts, epsilon=bn.eps)

    def conv(x: str, layer: nn.Conv2d, bn: nn.BatchNorm2d | None = None) -> str:
        pad, stride = layer.padding[0], layer.stride[0]
        attributes = {"kernel_shape": layer.kernel_size, "pads": [pad] * 4, "strides": [stride] * 2}
        if bn is None or not folded:
            y = graph.add("Conv", x, weights(layer.weight), **attributes)
            return y if bn is None else norm(y, bn)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        gain = bn.weight / (bn.running_var + bn.eps).sqrt()
        bias = weights(bn.bias - bn.running_mean * gain)
        return graph.add("Conv", x, weights(layer.weight * gain[:, None, None, None]), bias, **attributes)

    def prelu(x: str, layer: nn.PReLU) -> str:
        if style != "shape":
            return graph.add("PRelu", x, weights(layer.weight[:, None, None]))
        slope = graph.add("Unsqueeze", weights(layer.weight), graph.ints(1, 2))
        return graph.add("PRelu", x, graph.add("Identity", slope))

    x = prelu(conv("data", net.conv1, net.bn1), net.prelu)
    for stage in range(1, net.stages + 1):
        for block in getattr(net, f"layer{stage}"):
            y = prelu(conv(norm(x, block.bn1), block.conv1, block.bn2), block.prelu)
            x = graph.add("Add", conv(y, block.conv2, block.bn3), conv(x, *block.shortcut) if block.shortcut else x)
    x = norm(x, net.bn2)
    if style == "flatten":
        x = graph.add("Gemm", graph.add("Flatten", x), weights(net.fc.weight), weights(net.fc.bias), transB=1)
    else:
        shape = graph.ints(1 if batch == 1 else -1, net.fc.in_features)
        if style == "shape":
            rows = graph.add("Gather", graph.add("Shape", x), graph.constant(0, np.int64))
            rows = graph.add("Unsqueeze", rows, graph.ints(0))
            shape = graph.add("Concat", rows, graph.ints(-1), axis=0)
        x = graph.add("MatMul", graph.add("Reshape", x, shape), weights(net.fc.weight.T))
        x = graph.add("Add", x, weights(net.fc.bias))
    parts = [weights(t) for t in (net.features.weight, net.features.bias)]
    parts += [weights(t) for t in (net.features.running_mean, net.features.running_var)]
    graph.add("BatchNormalization", x, *parts, epsilon=net.features.eps, output="fc1")
    return graph.model({"data": (batch, 3, SIDE, SIDE)}, {"fc1": (batch, net.fc.out_features)})
