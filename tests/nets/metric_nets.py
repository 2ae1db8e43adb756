"""Random weights under the published names of the metric networks, and forward passes written from their papers'
tables with plain functions, to hold our modules to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Weights that keep the size of what flows through them."""
    fan = max(1, math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * math.sqrt(2 / fan)


def trunk(kind: str, seed: int = 0) -> Tensors:
    """As torchvision writes it, with a part of the classifier."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ALEX
    if kind == "vgg":
        into = (3, *VGG_WIDTHS)
        shapes = {index: (VGG_WIDTHS[n], into[n], 3) for n, index in enumerate(VGG)}
    made = {"classifier.1.weight": torch.zeros(4, 2), "classifier.1.bias": torch.zeros(4)}
    for index, (out, width, kernel) in shapes.items():
        made[f"features.{index}.weight"] = normal(generator, out, width, kernel, kernel)
        made[f"features.{index}.bias"] = torch.randn(out, generator=generator) * 0.1
    return made


def linears(kind: str, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for n, width in enumerate(CHANNELS[kind])
    }


def lpips_by_hand(kind: str, trunk: Tensors, linears: Tensors, a: Tensor, b: Tensor) -> Tensor:
    """Zhang et al. 2018, equation 1, place by place of the published files."""

    def maps(x: Tensor) -> list[Tensor]:
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
            1, 3, 1, 1
        )
        found = []
        if kind == "alex":
            for index, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
                if index in (3, 6):
                    x = F.max_pool2d(x, 3, 2)
                w = trunk[f"features.{index}.weight"], trunk[f"features.{index}.bias"]
                x = F.conv2d(x, *w, stride=stride, padding=padding).clamp(min=0)
                found.append(x)
        else:
            for index in VGG:
                if index in (5, 10, 17, 24):
                    found.append(x)
                    x = F.max_pool2d(x, 2)
                x = F.conv2d(x, trunk[f"features.{index}.weight"], trunk[f"features.{index}.bias"], padding=1)
                x = x.clamp(min=0)
            found.append(x)
        return found

    total = torch.zeros(len(a))
    for n, (f, g) in enumerate(zip(maps(a), maps(b), strict=True)):
        f, g = (m / (m.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for m in (f, g))
        total += torch.einsum("nchw,c->nhw", (f - g) ** 2, linears[f"lin{n}.model.1.weight"].flatten()).mean((1, 2))
    return total


def i3d(seed: int = 2, shapes: Path | None = None) -> Tensors:
    """All 344 tensors of ``i3d_pretrained_400.pt`` by the recorded names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    path = shapes or Path(__file__).parents[1] / "golden" / "i3d_shapes.json"
    made = {}
    for name, shape in json.loads(path.read_text()).items():
        made[name] = batch_norm(name, shape, generator) if ".bn." in name else normal(generator, *shape)
    return made


def batch_norm(name: str, shape: list[int], generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    drawn = torch.rand(shape, generator=generator)
    return drawn * 0.2 - 0.1 if name.endswith(("bias", "running_mean")) else drawn + 0.5


def i3d_by_hand(t: Tensors, x: Tensor) -> Tensor:
    """Carreira and Zisserman, figure 3, with TensorFlow's SAME padding from its definition."""

    def padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
            size = x.shape[axis]
            lacking = max((math.ceil(size / s) - 1) * s + k - size, 0)
            shape = list(x.shape)
            ends = []
            for amount in (lacking // 2, lacking - lacking // 2):
                shape[axis] = amount
                ends.append(torch.zeros(shape))
            x = torch.cat([ends[0], x, ends[1]], dim=axis)
        return x

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = t[f"{name}.conv3d.weight"]
        x = F.conv3d(padded(x, tuple(weight.shape[2:]), (stride,) * 3), weight, stride=stride)
        mean, var = t[f"{name}.bn.running_mean"], t[f"{name}.bn.running_var"]
        factor = t[f"{name}.bn.weight"] / torch.sqrt(var + 0.001)
        shift = t[f"{name}.bn.bias"] - mean * factor
        return (x * factor.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1)).clamp(min=0)

    def pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        return F.max_pool3d(padded(x, kernel, stride), kernel, stride)

    def mixed(name: str, x: Tensor) -> Tensor:
        one = conv(f"{name}.b0", x)
        two = conv(f"{name}.b1b", conv(f"{name}.b1a", x))
        three = conv(f"{name}.b2b", conv(f"{name}.b2a", x))
        four = conv(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat((one, two, three, four), 1)

    x = pool(conv("Conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
    x = pool(conv("Conv3d_2c_3x3", conv("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    for place in "bc":
        x = mixed(f"Mixed_3{place}", x)
    x = pool(x, (3, 3, 3), (2, 2, 2))
    for place in "bcdef":
        x = mixed(f"Mixed_4{place}", x)
    x = pool(x, (2, 2, 2), (2, 2, 2))
    for place in "bc":
        x = mixed(f"Mixed_5{place}", x)
    x = F.avg_pool3d(x, (1, 7, 7), stride=1)
    return F.conv3d(x, t["logits.conv3d.weight"], t["logits.conv3d.bias"]).squeeze(4).squeeze(3).mean(2)


def resnet3d(seed: int = 3) -> Tensors:
    """What lies under ``state_dict`` of ``resnet-50-kinetics.pth``: saved from a data-parallel module."""
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}

    def conv(name: str, *shape: int) -> None:
        made[f"module.{name}.weight"] = normal(generator, *shape)

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            made[f"module.{name}.{part}"] = batch_norm(part, [width], generator)

    conv("conv1", 64, 3, 7, 7, 7)
    norm("bn1", 64)
    into = 64
    for layer, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(count):
            at = f"layer{layer}.{block}"
            conv(f"{at}.conv1", width, into, 1, 1, 1)
            conv(f"{at}.conv2", width, width, 3, 3, 3)
            conv(f"{at}.conv3", 4 * width, width, 1, 1, 1)
            for n, wide in ((1, width), (2, width), (3, 4 * width)):
                norm(f"{at}.bn{n}", wide)
            if block == 0:
                conv(f"{at}.downsample.0", 4 * width, into, 1, 1, 1)
                norm(f"{at}.downsample.1", 4 * width)
            into = 4 * width
    made["module.fc.weight"], made["module.fc.bias"] = torch.zeros(400, into), torch.zeros(400)
    return made


def resnet3d_by_hand(t: Tensors, x: Tensor) -> Tensor:
    """Hara et al., table 1 (bottleneck, 50 layers, shortcut B)."""

    def conv(name: str, x: Tensor, stride: int | tuple[int, int, int] = 1, padding: int = 0) -> Tensor:
        return F.conv3d(x, t[f"module.{name}.weight"], stride=stride, padding=padding)

    def norm(name: str, x: Tensor) -> Tensor:
        parts = [t[f"module.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, training=False, eps=1e-5)

    x = F.max_pool3d(norm("bn1", conv("conv1", x, (1, 2, 2), 3)).clamp(min=0), 3, 2, 1)
    for layer, count in enumerate((3, 4, 6, 3), start=1):
        for block in range(count):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = norm(f"{at}.bn1", conv(f"{at}.conv1", x)).clamp(min=0)
            y = norm(f"{at}.bn2", conv(f"{at}.conv2", y, stride, 1)).clamp(min=0)
            y = norm(f"{at}.bn3", conv(f"{at}.conv3", y))
            if block == 0:
                x = norm(f"{at}.downsample.1", conv(f"{at}.downsample.0", x, stride))
            x = (x + y).clamp(min=0)
    return x.flatten(2).mean(2)
