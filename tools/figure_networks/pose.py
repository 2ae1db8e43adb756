"""The estimator of a person's 133 points, with RTMPose's contract at a fiftieth of its size.

Sources: Li et al., "SimCC: a Simple Coordinate Classification Perspective for Human Pose Estimation"; Jiang et al.,
"RTMPose". Crops of 288 x 384 are those of rtmlib (box widened by a quarter, aspect 3:4).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.motion.keypoints import to_wholebody
from stableanimator_cli.puppets.sample import derive_rng
from tools.figure_networks.augment import degrade
from tools.figure_networks.blocks import Residual, conv, write_onnx
from tools.figure_networks.data import FRAMES, person_box, present
from tools.figure_networks.loop import Batch, Task

WIDTH, HEIGHT = 288, 384
POOL = 4  # the network's input is the crop at a quarter of its size
BINS_X, BINS_Y = WIDTH // 2, HEIGHT // 2
_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_SPREAD = 1.3  # of the target along an axis, in coarse bins of two pixels
_HIDDEN = 0.15  # weight of an invisible point inside the crop
_SWAPPED = 0.3  # fraction of crops with red and blue exchanged: callers use both orders


def point_weights() -> np.ndarray:
    """Loss weights of the 133 points, float32[133]. Wrists and elbows are few and difficult, face points many."""
    weights = np.full(133, 1.0, np.float32)
    weights[[7, 8]], weights[[9, 10]] = 2.0, 3.0
    weights[17:23], weights[23:91], weights[91:] = 0.5, 0.12, 0.25
    return weights


class PoseNet133(nn.Module):
    """Pooled crop [b,3,96,72] -> coarse logits [b,133,144], [b,133,192] and visibility logits [b,133]."""

    def __init__(self, widths: tuple[int, int, int] = (24, 64, 96), points: int = 133) -> None:
        super().__init__()
        low, middle, high = widths
        cells = (HEIGHT // POOL // 4) * (WIDTH // POOL // 4)
        self.stem = conv(3, low, 2)
        self.fine = nn.Sequential(conv(low, middle, 2), Residual(middle))
        self.coarse = nn.Sequential(conv(middle, high, 2), Residual(high), Residual(high))
        self.back = nn.Conv2d(high, middle, 1)
        self.merge = Residual(middle)
        self.maps = nn.Conv2d(middle, points, 1)
        self.context = nn.Linear(high, points * 8)
        self.x, self.y = nn.Linear(cells + 8, BINS_X), nn.Linear(cells + 8, BINS_Y)
        self.seen = nn.Linear(cells + 8, 1)
        self.points = points

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        fine = self.merge(torch.relu(fine + F.interpolate(self.back(coarse), scale_factor=2.0, mode="nearest")))
        context = self.context(coarse.mean(dim=(2, 3))).reshape(-1, self.points, 8)
        rows = torch.cat([self.maps(fine).flatten(2), context], dim=2)
        return self.x(rows), self.y(rows), self.seen(rows).squeeze(2)


class PoseFile(nn.Module):
    """The ONNX file: a normalised crop [b,3,384,288] -> ``simcc_x`` [b,133,576], ``simcc_y`` [b,133,768].

    The largest value of either row is the probability that the point is visible. So rtmlib's score, the mean of the two
    maxima, is that probability too.
    """

    def __init__(self, net: PoseNet133) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows_x, rows_y, seen = self.net(F.avg_pool2d(x, POOL))
        seen = torch.sigmoid(seen).unsqueeze(2)
        return _row(rows_x, 4) * seen, _row(rows_y, 4) * seen


def _row(logits: Tensor, factor: int) -> Tensor:
    fine = F.interpolate(logits, scale_factor=float(factor), mode="linear", align_corners=False)
    return torch.exp(fine - fine.amax(dim=2, keepdim=True))


def crop_matrix(box: np.ndarray, turn: float = 0.0) -> np.ndarray:
    """Affine map float[2,3] to a crop of 288 x 384: the box widened by a quarter and to its aspect."""
    centre, (w, h) = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).clip(1) * 1.25
    w = max(w, h * WIDTH / HEIGHT)
    cos, sin = np.cos(turn) * WIDTH / w, np.sin(turn) * WIDTH / w
    rotate = np.array([[cos, -sin], [sin, cos]])
    return np.concatenate([rotate, (np.array([WIDTH, HEIGHT]) / 2 - rotate @ centre)[:, None]], axis=1)


def crop(image: np.ndarray, matrix: np.ndarray, shrink: int) -> np.ndarray:
    """The crop at a ``shrink``-th of its size, as if pooled."""
    half = matrix / shrink
    half[:, 2] -= (shrink - 1) / 2 / shrink  # the centre of a block of pixels
    return cv2.warpAffine(image, half, (WIDTH // shrink, HEIGHT // shrink))


def normalised(crops: np.ndarray) -> Tensor:
    """uint8 or float [b,h,w,3] -> float32 [b,3,h,w] with RTMPose's normalisation."""
    x = torch.from_numpy(np.ascontiguousarray(crops, np.float32))
    x = (x - torch.tensor(_MEAN)) / torch.tensor(_DEVIATION)
    return x.permute(0, 3, 1, 2)


class PoseTask(Task):
    name = "pose"
    steps, batch_size = 2400, 32
    lr = 3e-3
    recipes = (FRAMES,)

    def network(self) -> PoseNet133:
        return PoseNet133()

    def load(self, folder: Path) -> None:
        data = self.recipes[0].load(folder)
        self.images, self.sizes = data["image"], data["size"]
        self.people, self.boxes = [], []
        for n, people in enumerate(data["keypoints"]):
            for points in people:
                if present(points):
                    self.people.append((n, points))
                    self.boxes.append(person_box(points, tuple(self.sizes[n])))

    def batch(self, step: int) -> Batch:
        rng = derive_rng("pose", step)
        crops = np.empty((self.batch_size, HEIGHT // POOL, WIDTH // POOL, 3), np.float32)
        points = np.empty((self.batch_size, 133, 3), np.float32)
        for n, pick in enumerate(rng.integers(len(self.people), size=self.batch_size)):
            frame, truth = self.people[pick]
            width, height = self.sizes[frame]
            box = self.boxes[pick]
            extent = box[2:] - box[:2]
            jitter = rng.normal(0, 0.04, 4).clip(-0.12, 0.12) * np.tile(extent, 2)
            turn = float(rng.uniform(-0.2, 0.2)) if rng.random() < 0.4 else 0.0
            matrix = crop_matrix(box + jitter, turn)
            cropped = degrade(crop(self.images[frame, :height, :width], matrix, 2), rng)
            crops[n] = cv2.resize(cropped, (WIDTH // POOL, HEIGHT // POOL), interpolation=cv2.INTER_AREA)
            if rng.random() < _SWAPPED:
                crops[n] = crops[n, ..., ::-1]
            points[n] = to_wholebody(truth)
            points[n, :, :2] = points[n, :, :2] @ matrix[:, :2].T + matrix[:, 2]
        return {"crop": normalised(crops), "points": torch.from_numpy(points)}

    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        rows_x, rows_y, seen = net(batch["crop"].contiguous(memory_format=torch.channels_last))
        xy, visible = batch["points"][..., :2], batch["points"][..., 2]
        inside = ((xy >= 0) & (xy < torch.tensor([WIDTH, HEIGHT]))).all(dim=2)
        weights = torch.from_numpy(point_weights())
        weight = weights * inside * (_HIDDEN + (1 - _HIDDEN) * visible)
        losses = sum(_cross_entropy(rows.float(), xy[..., axis]) for axis, rows in enumerate((rows_x, rows_y)))
        position = (losses * weight).sum() / weight.sum()
        visibility = F.binary_cross_entropy_with_logits(seen.float(), visible * inside, reduction="none")
        visibility = (visibility * weights).sum() / weights.sum() / len(seen)
        return position + visibility, {"place": float(position.detach()), "seen": float(visibility.detach())}

    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(net, PoseNet133)
        names = ["simcc_x", "simcc_y"]
        about = (
            "133 points of a drawn figure (puppet); RTMPose's contract, COCO-WholeBody order. For drawn figures only."
        )
        free = {name: {0: "batch"} for name in ("input", *names)}
        example = torch.zeros(2, 3, HEIGHT, WIDTH)
        return [
            write_onnx(PoseFile(net), folder / "pose_detector.onnx", example, ["input"], names, free=free, about=about)
        ]


def _cross_entropy(rows: Tensor, positions: Tensor) -> Tensor:
    """Cross entropy with a Gaussian target: rows [b,k,bins], positions [b,k] in pixels of the crop -> [b,k]."""
    # A coarse bin is two pixels; after the fourfold resize its centre is at 1.5 fine bins of half a pixel each.
    at = ((positions * 2 - 1.5) / 4).unsqueeze(2)
    target = torch.exp(-((torch.arange(rows.shape[2]) - at) ** 2) / (2 * _SPREAD**2))
    target = target / target.sum(dim=2, keepdim=True).clamp(min=1e-6)
    return -(target * F.log_softmax(rows, dim=2)).sum(dim=2)
