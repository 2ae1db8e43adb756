"""Two recognisers of drawn faces with ArcFace's contract: one for the tool, and a judge for measurements only.

The judge has another architecture, another loss and other people in its training data. So an optimisation against the
first network does not raise the judge's scores by accident. Sources: Deng et al., "ArcFace: Additive Angular
Margin Loss for Deep Face Recognition"; Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition".
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.puppets.sample import derive_rng
from tools.figure_networks.augment import degrade
from tools.figure_networks.blocks import Residual, conv, write_onnx
from tools.figure_networks.data import ALIGNED, FACES, JUDGE_FACES, MARGIN, Recipe
from tools.figure_networks.loop import Batch, Task

WIDTH = 512


class RecogniserNet(nn.Module):
    """Aligned faces [b,3,112,112] in -1..1 -> embeddings [b,512]: residual blocks, one weight per position."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AvgPool2d(2), conv(3, 32), conv(32, 48, 2), Residual(48), conv(48, 96, 2), Residual(96),
            conv(96, 128, 2), Residual(128),
        )  # fmt: skip
        self.place = nn.Sequential(nn.Conv2d(128, 128, 7, groups=128, bias=False), nn.BatchNorm2d(128))
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(128, WIDTH, bias=False), nn.BatchNorm1d(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.place(self.body(x)))


class JudgeNet(nn.Module):
    """Aligned faces [b,3,112,112] in -1..1 -> embeddings [b,512].

    A plain stack without shortcuts, with large first kernels and a dense layer over all positions.
    """

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.PReLU(outputs),
            )

        self.body = nn.Sequential(
            layer(3, 40, 7, 4), layer(40, 48), layer(48, 88, 3, 2), layer(88, 88), layer(88, 160, 3, 2),
            layer(160, 160),
        )  # fmt: skip
        self.squeeze = nn.Sequential(nn.Conv2d(160, 16, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(16 * 49, WIDTH, bias=False), nn.BatchNorm1d(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.squeeze(self.body(x)))


class Learner(nn.Module):
    """A recogniser with one direction per person of the training set; the directions are not exported."""

    def __init__(self, net: nn.Module, people: int) -> None:
        super().__init__()
        self.net = net
        self.people = nn.Parameter(torch.randn(people, WIDTH) * 0.05)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines [b,people]."""
        return F.normalize(self.net(x).float()) @ F.normalize(self.people.float()).T


class IdentityTask(Task):
    steps, batch_size = 700, 64
    lr, weight_decay = 3e-3, 0.05
    people: int
    recipe: Recipe
    file: str
    angular: float  # margin of ArcFace
    cosine: float  # margin of CosFace
    half = True  # store the weights as float16
    scale = 24.0

    def recogniser(self) -> nn.Module:
        raise NotImplementedError

    def network(self) -> Learner:
        return Learner(self.recogniser(), self.people)

    def load(self, folder: Path) -> None:
        data = self.recipe.load(folder)
        self.images, self.labels = data["image"], np.unique(data["person"], return_inverse=True)[1]

    def batch(self, step: int) -> Batch:
        rng = derive_rng(self.name, step)
        picks = rng.integers(len(self.images), size=self.batch_size)
        faces = np.empty((self.batch_size, ALIGNED, ALIGNED, 3), np.float32)
        for n, pick in enumerate(picks):
            # Simulated errors of detected landmarks.
            turn, size = rng.normal(0, 0.05), float(np.exp(rng.normal(0, 0.04)))
            matrix = cv2.getRotationMatrix2D((63.5, 63.5), float(np.degrees(turn)), size)
            matrix[:, 2] += rng.normal(0, 1.5, 2) - MARGIN
            face = cv2.warpAffine(self.images[pick], matrix, (ALIGNED, ALIGNED))
            if rng.random() < 0.2:  # a small face has few pixels
                side = int(rng.integers(28, 80))
                face = cv2.resize(cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA), (ALIGNED, ALIGNED))
            faces[n] = degrade(face, rng)
            if rng.random() < 0.5:
                faces[n] = faces[n, :, ::-1]
        return {"face": normalised(faces), "label": torch.from_numpy(self.labels[picks])}

    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        cosines = net(batch["face"].contiguous(memory_format=torch.channels_last))
        labels = batch["label"]
        own = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
        ramp = min(
            1.0, step / (0.3 * self.steps)
        )  # with the full margin from the start a small network stays at chance
        harder = torch.cos(torch.acos(own) + self.angular * ramp) - self.cosine * ramp
        logits = self.scale * cosines.scatter(1, labels[:, None], torch.where(own > -0.9, harder, own))
        right = (cosines.argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels), {"right": float(right), "own": float(own.detach().mean())}

    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(net, Learner)
        about = f"A drawn face as 512 numbers (puppet, {self.name}); ArcFace's contract. For drawn figures only."
        free = {"input.1": {0: "n"}, "embedding": {0: "n"}}
        example = torch.zeros(2, 3, ALIGNED, ALIGNED)
        path = folder / self.file
        return [
            # Face optimisation runs the recogniser's graph in torch, without casts: its weights stay float32.
            write_onnx(net.net, path, example, ["input.1"], ["embedding"], free=free, about=about, half=self.half)
        ]


class RecogniserTask(IdentityTask):
    name = "recogniser"
    people, recipe, file = 2200, FACES, "arcface_puppet.onnx"
    angular, cosine = 0.35, 0.0
    half = False

    def recogniser(self) -> nn.Module:
        return RecogniserNet()


class JudgeTask(IdentityTask):
    name = "judge"
    people, recipe, file = 1100, JUDGE_FACES, "judge.onnx"
    angular, cosine = 0.0, 0.25

    def recogniser(self) -> nn.Module:
        return JudgeNet()


def normalised(faces: np.ndarray) -> Tensor:
    """uint8 or float [b,h,w,3] RGB -> float32 [b,3,h,w] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(faces.transpose(0, 3, 1, 2), np.float32)).sub(127.5).div(127.5)
