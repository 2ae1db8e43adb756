"""A classifier of short clips: what a puppet does and looks like. Its features are there to measure videos.

The first layers look at single frames; their maps compare two pictures (``lpips_puppet``). The later ones look across
time; the vector before the classes compares sets of clips (``fvd_puppet``). Spatial and temporal convolutions take
turns (Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition").
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.puppets.sample import rng_of
from stableanimator_cli.puppets.train_blocks import Residual, conv, write_onnx
from stableanimator_cli.puppets.train_data import CLIP_FRAMES, CLIP_SIDE, CLIPS, LABELS
from stableanimator_cli.puppets.train_loop import Batch, Task

FEATURES = 128
_NARROW = CLIP_SIDE // 2


class AcrossTime(nn.Module):
    """A convolution of three frames and one pixel beside an identity: [b*t,c,h,w] -> the same.

    Written as a 1 x 1 convolution of the frame, the one before and the one after, which is the same sum and runs ten
    times faster on a CPU than the library's (3, 1, 1) kernel.
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
    """Clips [b,3,t,h,w] in -1..1, sides multiples of 16 -> maps of the frames, the clip's features, logits by label.

    ``layer1`` [b*t,16,h,w], ``layer2`` [b*t,32,h/2,w/2], ``layer3`` [b*t,64,h/4,w/4], ``features`` [b,128].
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 16), conv(16, 32, 2)
        self.third = nn.Sequential(conv(32, 64, 2), Residual(64))
        self.time_a, self.time_b, self.time_c = AcrossTime(64), AcrossTime(96), AcrossTime(128)
        self.fourth, self.fifth = conv(64, 96, 2), conv(96, 128, 2)
        self.features = nn.Linear(128 * 3, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(kinds)) for name, kinds in LABELS.items()})

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        b, t = clip.shape[0], clip.shape[2]
        one = self.first(clip.transpose(1, 2).flatten(0, 1))
        two = self.second(one)
        three = self.third(two)
        x = self.fourth(self.time_a(three, t))
        x = self.time_c(self.fifth(self.time_b(x, t)), t)
        still = x.mean(dim=(2, 3)).reshape(b, t, -1)
        least = (still - still.mean(dim=1, keepdim=True)).square().mean(dim=1)
        peak = x.amax(dim=(2, 3)).reshape(b, t, -1).mean(dim=1)
        features = torch.relu(self.features(torch.cat([still.mean(dim=1), least, peak], dim=1)))
        return (one, two, three, features, *(head(features) for head in self.heads.values()))


class VideoTask(Task):
    name = "video"
    steps, batch_size = 600, 24
    rate = 3e-3
    recipes = (CLIPS,)

    def network(self) -> VideoNet:
        return VideoNet()

    def load(self, folder: Path) -> None:
        data = CLIPS.load(folder)
        videos = data["video"].reshape(-1, CLIP_FRAMES, _NARROW, 2, _NARROW, 2, 3)
        self.videos = np.concatenate([part.mean(axis=(3, 5)).round().astype(np.uint8) for part in np.split(videos, 45)])
        self.labels = data["label"]

    def batch(self, step: int) -> Batch:
        rng = rng_of(self.name, step)
        picks = rng.integers(len(self.videos), size=self.batch_size)
        clips = self.videos[picks].astype(np.float32)
        for n in range(len(clips)):
            if rng.random() < 0.5:
                clips[n] = clips[n, :, :, ::-1]
            dx, dy = (int(d) for d in rng.integers(-3, 4, 2))
            clips[n] = np.roll(clips[n], (dy, dx), axis=(1, 2))
            clips[n] = (clips[n] - 127.5) * float(rng.uniform(0.8, 1.2)) + 127.5 + rng.normal(0, 7, 3)
        clips += rng.normal(0, 3, clips.shape).astype(np.float32)
        return {"clip": prepared(clips.clip(0, 255)), "label": torch.from_numpy(self.labels[picks])}

    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        logits = net(batch["clip"])[4:]
        total, shown = torch.zeros(()), {}
        for n, name in enumerate(LABELS):
            rows, labels = logits[n].float(), batch["label"][:, n]
            total = total + F.cross_entropy(rows, labels, label_smoothing=0.05)
            shown[name] = float((rows.argmax(dim=1) == labels).float().mean())
        return total, shown

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
