"""A classifier of short clips of puppets: behaviour, hair and top. Its features serve to measure videos.

The first layers see single frames; their maps compare two images (``lpips_puppet``). The later layers see several
frames; the vector before the classes compares sets of clips (``fvd_puppet``). Spatial and temporal convolutions
alternate (Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition").
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.puppets.sample import derive_rng
from tools.figure_networks.blocks import conv, write_onnx
from tools.figure_networks.data import CLIP_FRAMES, CLIP_SIDE, CLIPS, LABELS
from tools.figure_networks.loop import Batch, Task

FEATURES = 128
_NARROW = CLIP_SIDE // 2
_BODY = 18
_MIRROR = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]  # left for right


class AcrossTime(nn.Module):
    """A convolution over three frames and one pixel with a shortcut: [b*t,c,h,w] -> the same shape.

    Written as a 1 x 1 convolution of the frame and its two neighbours. The sum is the same, and on a CPU it is ten
    times faster than the library's (3, 1, 1) kernel.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(3 * width, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor, t: int) -> Tensor:
        clips = x.reshape(-1, t, x.shape[1], x.shape[2], x.shape[3])
        before = torch.cat([clips[:, :1], clips], dim=1)[:, :t]
        after = torch.cat([clips, clips[:, -1:]], dim=1)[:, 1:]
        return torch.relu(x + self.mix(torch.cat([before, clips, after], dim=2).flatten(0, 1)))


class VideoNet(nn.Module):
    """Clips [b,3,t,h,w] in -1..1, sides multiples of 16 -> maps of the frames, features, logits by label.

    ``layer1`` [b*t,16,h,w], ``layer2`` [b*t,32,h/2,w/2], ``layer3`` [b*t,64,h/4,w/4], ``features`` [b,128].
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 16), conv(16, 32, 2)
        self.third = conv(32, 64, 2)
        self.time_a, self.time_b, self.time_c = AcrossTime(64), AcrossTime(96), AcrossTime(128)
        self.fourth, self.fifth = conv(64, 96, 2), conv(96, 128, 2)
        self.even_frame, self.even_clip = nn.BatchNorm1d(128 * 4), nn.BatchNorm1d(128 * 8)
        self.features = nn.Linear(128 * 8, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(kinds)) for name, kinds in LABELS.items()})
        # For training only: position of the body in each frame, and its colours.
        self.points, self.colour = nn.Linear(128 * 4, _BODY * 2), nn.Linear(FEATURES, 9)

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the file."""
        return self.outputs(clip)[:-2]

    def outputs(self, clip: Tensor) -> tuple[Tensor, ...]:
        """The same, and points [b,t,18,2] and colours [b,9]."""
        b, t = clip.shape[0], clip.shape[2]
        one = self.first(clip.transpose(1, 2).flatten(0, 1))
        two = self.second(one)
        three = self.third(two)
        x = self.fourth(self.time_a(three, t))
        x = self.time_c(self.fifth(self.time_b(x, t)), t)
        frames = self.even_frame(_summary(x)).reshape(b, t, -1)
        mean = frames.mean(dim=1)
        moved = (frames - mean[:, None]).square().mean(dim=1)
        features = torch.relu(self.features(self.even_clip(torch.cat([mean, moved], dim=1))))
        points = self.points(frames).reshape(b, t, _BODY, 2)
        labels = (head(features) for head in self.heads.values())
        return (one, two, three, features, *labels, points, self.colour(features))


def _summary(x: Tensor) -> Tensor:
    """Pool each channel at any size: [n,c,h,w] -> [n,4c] of means, maxima, and centres of mass across and down."""
    x = x.float()
    one = torch.ones_like(x[:1, :1])
    across, down = one.cumsum(dim=3) / one.sum(dim=3, keepdim=True), one.cumsum(dim=2) / one.sum(dim=2, keepdim=True)
    mean = x.mean(dim=(2, 3))
    centres = [(x * place).mean(dim=(2, 3)) / (mean + 1e-2) for place in (across, down)]
    return torch.cat([mean, x.amax(dim=(2, 3)), *centres], dim=1)


class VideoTask(Task):
    name = "video"
    steps, batch_size = 600, 24
    lr = 2e-3
    recipes = (CLIPS,)

    def network(self) -> VideoNet:
        return VideoNet()

    def load(self, folder: Path) -> None:
        data = CLIPS.load(folder)
        videos = data["video"].reshape(-1, CLIP_FRAMES, _NARROW, 2, _NARROW, 2, 3)
        self.videos = np.concatenate([part.mean(axis=(3, 5)).round().astype(np.uint8) for part in np.split(videos, 45)])
        self.labels, self.points, self.colours = data["label"], data["points"], data["colour"]

    def batch(self, step: int) -> Batch:
        rng = derive_rng(self.name, step)
        picks = rng.integers(len(self.videos), size=self.batch_size)
        clips, points = self.videos[picks].astype(np.float32), self.points[picks].copy()
        for n in range(len(clips)):
            if rng.random() < 0.5:
                clips[n], points[n] = clips[n, :, :, ::-1], points[n][:, _MIRROR] * (-1, 1, 1) + (1, 0, 0)
            dx, dy = (int(d) for d in rng.integers(-3, 4, 2))
            clips[n] = np.roll(clips[n], (dy, dx), axis=(1, 2))
            points[n, ..., :2] += np.array([dx, dy]) / _NARROW
            clips[n] = (clips[n] - 127.5) * float(rng.uniform(0.9, 1.1)) + 127.5 + rng.normal(0, 4, 3)
        clips += rng.normal(0, 3, clips.shape).astype(np.float32)
        arrays = {"label": self.labels[picks], "points": points.astype(np.float32), "colour": self.colours[picks]}
        return {"clip": prepared(clips.clip(0, 255))} | {key: torch.from_numpy(array) for key, array in arrays.items()}

    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(net, VideoNet)
        outputs = net.outputs(batch["clip"])
        total, shown = torch.zeros(()), {}
        for n, name in enumerate(LABELS):
            rows, labels = outputs[4 + n].float(), batch["label"][:, n]
            total = total + F.cross_entropy(rows, labels, label_smoothing=0.05)
            shown[name] = float((rows.argmax(dim=1) == labels).float().mean())
        # Three labels per clip are little supervision; position and colours of the body guide the layers.
        seen = batch["points"][..., 2:]
        error = (outputs[-2].float() - batch["points"][..., :2]).abs() * seen
        points = error.sum() / seen.sum().clamp(min=1) / 2
        colour = (outputs[-1].float() - batch["colour"]).abs().mean()
        return total + 10 * points + 5 * colour, shown | {
            "points": float(points.detach()),
            "colour": float(colour.detach()),
        }

    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        names = ["layer1", "layer2", "layer3", "features", *LABELS]
        about = "What a drawn figure does and looks like (puppet), for its features. For drawn figures only."
        free = {"clip": {0: "b", 2: "t", 3: "h", 4: "w"}}
        free |= {f"layer{n}": {0: "bt", 2: f"h{n}", 3: f"w{n}"} for n in (1, 2, 3)}
        free |= {name: {0: "b"} for name in names[3:]}
        example = torch.zeros(2, 3, CLIP_FRAMES, _NARROW, _NARROW)
        return [write_onnx(net, folder / "video.onnx", example, ["clip"], names, free=free, about=about)]


def prepared(clips: np.ndarray) -> Tensor:
    """uint8 or float [b,t,h,w,3] in 0..255 -> float32 [b,3,t,h,w] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(clips.transpose(0, 4, 1, 2, 3), np.float32)).sub(127.5).div(127.5)
