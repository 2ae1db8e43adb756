"""I3D: Inception-v1 inflated to three dimensions (Carreira and Zisserman, "Quo Vadis, Action Recognition?").

Names of the weights are those of ``i3d_pretrained_400.pt`` (344 tensors); ``rename_weights`` converts the other common
layout. Padding is TensorFlow's SAME, computed from the size of the input: zeros, more of them at the end, also before
pooling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 400
INPUT_SIDE = 224

Shape = tuple[int, int, int]


def pad_same(x: Tensor, kernel: Shape, stride: Shape) -> Tensor:
    """Pad [b,c,t,h,w] so that a kernel has ceil(size / stride) positions along each axis."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[-3:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


class ConvUnit(nn.Module):
    """Convolution without a bias, batch norm, ReLU; ``norm`` False: the convolution alone, with its bias."""

    def __init__(self, width: int, wider: int, kernel: int = 1, stride: int = 1, *, norm: bool = True) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(width, wider, self.kernel, self.stride, bias=not norm)
        self.bn = nn.BatchNorm3d(wider, eps=1e-3) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad_same(x, self.kernel, self.stride))
        return x if self.bn is None else torch.relu(self.bn(x))


class Mixed(nn.Module):
    """Four parallel branches: 1; 1 and 3; 1 and 3; pooling and 1. ``widths`` are those of their convolutions."""

    def __init__(self, width: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = ConvUnit(width, widths[0])
        self.b1a, self.b1b = ConvUnit(width, widths[1]), ConvUnit(widths[1], widths[2], 3)
        self.b2a, self.b2b = ConvUnit(width, widths[3]), ConvUnit(widths[3], widths[4], 3)
        self.b3b = ConvUnit(width, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b3b(_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], dim=1)


class I3D(nn.Module):
    """Clips [b,3,t,224,224] in -1..1 -> logits [b,400], averaged over time. Raises ``ValueError`` for another size."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = ConvUnit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = ConvUnit(64, 64)
        self.Conv3d_2c_3x3 = ConvUnit(64, 192, 3)
        self.Mixed_3b = Mixed(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = Mixed(256, (128, 128, 192, 32, 96, 64))
        self.Mixed_4b = Mixed(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = Mixed(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Mixed(528, (256, 160, 320, 32, 128, 128))
        self.Mixed_5b = Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Mixed(832, (384, 192, 384, 48, 128, 128))
        self.logits = ConvUnit(1024, CLASSES, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 5 or x.shape[1] != 3 or x.shape[-2:] != (INPUT_SIDE, INPUT_SIDE) or not x.shape[2]:
            raise ValueError(f"I3D takes clips [b,3,t,{INPUT_SIDE},{INPUT_SIDE}], not {list(x.shape)}")
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        for block in (self.Mixed_4b, self.Mixed_4c, self.Mixed_4d, self.Mixed_4e, self.Mixed_4f):
            x = block(x)
        x = self.Mixed_5c(self.Mixed_5b(_pool(x, (2, 2, 2), (2, 2, 2))))
        return self.logits(x.mean(dim=(3, 4), keepdim=True)).mean(dim=(2, 3, 4))


# Names of the ports after hassony2/kinetics_i3d_pytorch, as patterns, and ours.
_PORT_NAMES = {
    r"^conv3d_0c_1x1\.": "logits.",
    r"^conv3d_": "Conv3d_",
    r"^mixed_": "Mixed_",
    r"\.branch_0\.": ".b0.",
    r"\.branch_1\.0\.": ".b1a.",
    r"\.branch_1\.1\.": ".b1b.",
    r"\.branch_2\.0\.": ".b2a.",
    r"\.branch_2\.1\.": ".b2b.",
    r"\.branch_3\.1\.": ".b3b.",
    r"\.batch3d\.": ".bn.",
}


def rename_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of ``I3D``.

    Names of the ports (``mixed_3b.branch_1.0.conv3d``, ``batch3d``, ``conv3d_0c_1x1``) are converted.
    ``num_batches_tracked``, which files of old torch lack and inference ignores, is added. Unknown names stay, and the
    strict loader reports them.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for theirs, ours in _PORT_NAMES.items():
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor
    for name in [name for name in renamed if name.endswith(".bn.running_var")]:
        renamed.setdefault(name.replace("running_var", "num_batches_tracked"), torch.zeros((), dtype=torch.long))
    return renamed


def _pool(x: Tensor, kernel: Shape, stride: Shape) -> Tensor:
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)
