"""The two detectors of boxes: people (YOLOX's raw outputs) and faces with five landmarks (SCRFD's nine outputs).

Both pool their input by four and predict at the centre of an object. Sources: Ge et al., "YOLOX"; Guo et
al., "Sample and Computation Redistribution for Efficient Face Detection" (SCRFD); Zhou et al., "Objects as Points" (the
target of the scores); Rezatofighi et al., "Generalized Intersection over Union".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.puppets.sample import derive_rng
from tools.figure_networks.augment import degrade
from tools.figure_networks.blocks import Residual, conv, write_onnx
from tools.figure_networks.data import FRAME_SIDE, FRAMES, person_box, present
from tools.figure_networks.loop import Batch, Task

POOL = 4
SIDE = FRAME_SIDE  # of a training image; times four it is the 640 of the real detectors
_MAX_PEOPLE = 3  # in an image
_SWAPPED = 0.3  # fraction of images with red and blue exchanged
_STEEPER = 3.0


@dataclass(frozen=True, slots=True)
class Anchor:
    """An anchor on the grid of ``stride`` input pixels, for boxes whose long side is ``low`` to ``high``."""

    stride: int
    low: float
    high: float


# Faces: SCRFD's two anchors per cell, of 16 to 512 pixels; each takes the boxes nearer to it than to the next anchor.
# People fill at least a quarter of an image, so the grid of 8 is unused; the contract requires its outputs.
FACE_ANCHORS = (
    Anchor(8, 0, 23), Anchor(8, 23, 45), Anchor(16, 45, 91), Anchor(16, 91, 181), Anchor(32, 181, 362),
    Anchor(32, 362, 1e9),
)  # fmt: skip
PERSON_ANCHORS = (Anchor(16, 0, 150), Anchor(32, 150, 1e9))


class BoxNet(nn.Module):
    """Pooled image [b,3,h,w] -> raw outputs per anchor [b,5 + 2 * points,h',w']: score, box, landmarks."""

    def __init__(self, anchors: Sequence[Anchor], points: int, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        low, middle, high = widths
        self.anchors, self.width = tuple(anchors), 5 + 2 * points
        self.stem = conv(3, low, 2)
        self.middle = nn.Sequential(conv(low, middle, 2), Residual(middle))
        self.high = nn.Sequential(conv(middle, high, 2), Residual(high), Residual(high), Residual(high))
        self.context = nn.Sequential(nn.Linear(high, high), nn.ReLU(), nn.Linear(high, high))
        strides = sorted({anchor.stride for anchor in anchors})
        self.to_middle, self.to_low = nn.Conv2d(high, middle, 1), nn.Conv2d(middle, low, 1)
        self.mix = nn.ModuleDict()
        self.out = nn.ModuleDict()
        for stride in strides:
            width = {8: low, 16: middle, 32: high}[stride]
            count = sum(anchor.stride == stride for anchor in anchors)
            self.mix[str(stride)] = conv(width, width)
            last = nn.Conv2d(width, count * self.width, 1)
            nn.init.normal_(last.weight, std=0.01)
            with torch.no_grad():
                assert last.bias is not None
                last.bias.zero_().view(count, self.width)[:, 0] = -4.0  # most cells are empty
            self.out[str(stride)] = last

    def forward(self, x: Tensor) -> list[Tensor]:
        low = self.stem(x)
        middle = self.middle(low)
        high = self.high(middle)
        high = high + self.context(high.mean(dim=(2, 3)))[:, :, None, None]
        middle = torch.relu(middle + F.interpolate(self.to_middle(high), scale_factor=2.0, mode="nearest"))
        maps = {"32": high, "16": middle}
        if "8" in self.out:
            maps["8"] = torch.relu(low + F.interpolate(self.to_low(middle), scale_factor=2.0, mode="nearest"))
        outputs = {
            stride: self.out[stride](self.mix[stride](maps[stride])).split(self.width, dim=1) for stride in self.out
        }
        return [part for stride in self.out for part in outputs[stride]]


class BoxTask(Task):
    """The common parts of both detectors: augmentation, assignment of boxes to cells, loss."""

    anchors: Sequence[Anchor]
    points: int
    pad: int
    scales: tuple[float, float]
    middle: float  # the score that separates true from false detections best; the file maps it to 0.5
    steps, batch_size = 1800, 16
    recipes = (FRAMES,)

    def network(self) -> BoxNet:
        return BoxNet(self.anchors, self.points)

    def load(self, folder: Path) -> None:
        data = self.recipes[0].load(folder)
        self.images, self.sizes = data["image"], data["size"]
        n = len(self.images)
        self.boxes = np.full((n, _MAX_PEOPLE, 4), np.nan, np.float32)
        self.marks = np.zeros((n, _MAX_PEOPLE, 5, 2), np.float32)
        for k in range(n):
            self.set_targets(data, k)

    def set_targets(self, data: dict[str, np.ndarray], k: int) -> None:
        raise NotImplementedError

    def decode(self, raw: Tensor, anchor: Anchor) -> Tensor:
        """Raw box outputs [n,4] relative to their cells -> (x0, y0, x1, y1) from the cell's corner, in strides."""
        raise NotImplementedError

    def batch(self, step: int) -> Batch:
        rng = derive_rng(self.name, step)
        images = np.full((self.batch_size, SIDE, SIDE, 3), self.pad, np.float32)
        boxes = np.full((self.batch_size, _MAX_PEOPLE, 4), np.nan, np.float32)
        marks = np.zeros((self.batch_size, _MAX_PEOPLE, 5, 2), np.float32)
        for n, pick in enumerate(rng.integers(len(self.images), size=self.batch_size)):
            width, height = (int(side) for side in self.sizes[pick])
            image = degrade(self.images[pick, :height, :width], rng)
            letterboxed = rng.random() < 0.5
            scale = SIDE / max(width, height)
            shift = np.zeros(2)
            if not letterboxed:
                scale *= float(np.exp(rng.uniform(*np.log(self.scales))))
                room = SIDE - scale * np.array([width, height])
                shift = np.array([rng.uniform(min(0, r), max(0, r)) for r in room])
            matrix = np.array([[scale, 0, shift[0] + scale / 2 - 0.5], [0, scale, shift[1] + scale / 2 - 0.5]])
            interpolation = cv2.INTER_LINEAR if scale > 0.6 else cv2.INTER_AREA
            if interpolation == cv2.INTER_AREA:  # warpAffine cannot average: shrink first
                image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation)
                matrix = np.array([[1.0, 0, shift[0]], [0, 1.0, shift[1]]])
            images[n] = cv2.warpAffine(image, matrix, (SIDE, SIDE), borderValue=(self.pad,) * 3)
            if rng.random() < _SWAPPED:
                images[n] = images[n, ..., ::-1]
            unclipped = self.boxes[pick] * scale + np.tile(shift, 2)
            boxes[n] = unclipped.clip(0, SIDE)
            marks[n] = self.marks[pick] * scale + shift
            with np.errstate(invalid="ignore"):
                visible = np.prod(boxes[n, :, 2:] - boxes[n, :, :2], 1) / np.prod(
                    unclipped[:, 2:] - unclipped[:, :2], 1
                )
                boxes[n, ~(visible > 0.4)] = np.nan
            if rng.random() < 0.5:
                images[n] = images[n, :, ::-1]
                boxes[n] = (SIDE - boxes[n])[:, [2, 1, 0, 3]] * (1, -1, 1, -1) + (0, SIDE, 0, SIDE)
                marks[n, ..., 0] = SIDE - marks[n, ..., 0]
                marks[n] = marks[n][:, [1, 0, 2, 4, 3]]
        arrays = {"image": images.transpose(0, 3, 1, 2), "boxes": boxes * POOL, "marks": marks * POOL}
        return {key: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for key, value in arrays.items()}

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels 0..255 with the normalisation of the file's input."""
        raise NotImplementedError

    def loss(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        outputs = net(self.normalise(batch["image"]).contiguous(memory_format=torch.channels_last))
        positive = negative = torch.zeros(())
        overlaps, points, count = [], [], 0
        for anchor, output in zip(self.anchors, outputs, strict=True):
            output = output.float()
            heat, where, boxes, marks, core = _targets(batch["boxes"], batch["marks"], anchor, output.shape[2:])
            logit = output[:, 0]
            p = torch.sigmoid(logit).clamp(1e-5, 1 - 1e-5)
            top = heat > 0.999
            positive = positive - ((1 - p) ** 2 * torch.log(p))[top].sum()
            negative = negative - ((1 - heat) ** 4 * p**2 * torch.log(1 - p))[~top].sum()
            count += int(core)
            if len(where[0]):
                cells = output.permute(0, 2, 3, 1)[where]
                corner = torch.stack([where[2], where[1]], dim=1).float()
                box = self.decode(cells[:, 1:5], anchor) + corner.repeat(1, 2)
                overlaps.append(1 - _giou(box, boxes / anchor.stride))
                if self.points:
                    size = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) / anchor.stride
                    target = marks / anchor.stride - corner.repeat(1, self.points)
                    points.append(
                        F.smooth_l1_loss(cells[:, 5:] / size, target / size, beta=0.02, reduction="none").mean(1)
                    )
        count = max(count, 1)
        score = (positive + negative) / count
        overlap = torch.cat(overlaps).mean() if overlaps else torch.zeros(())
        mark = torch.cat(points).mean() if points else torch.zeros(())
        shown = {"score": float(score.detach()), "overlap": float(overlap.detach()), "marks": float(mark.detach())}
        return score + 2 * overlap + 10 * mark, shown


def _targets(
    boxes: Tensor, marks: Tensor, anchor: Anchor, grid: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor, Tensor, int]:
    """Targets of one anchor: the heat map [b,h,w], the cells (image, row, column) that predict, their boxes and
    landmarks, and the number of boxes.

    A box's own cell has heat 1, its neighbours less; all nine predict the box.
    """
    h, w = int(grid[0]), int(grid[1])
    heat = torch.zeros(len(boxes), h, w)
    best = torch.full((len(boxes), h, w), -1, dtype=torch.long)
    rows, columns = torch.arange(h)[:, None], torch.arange(w)[None]
    sizes = (boxes[..., 2:] - boxes[..., :2]).amax(dim=2)
    owned = torch.nonzero((sizes >= anchor.low) & (sizes < anchor.high)).tolist()  # a missing person has size NaN
    for n, k in owned:
        box, size = boxes[n, k], float(sizes[n, k])
        centre = (box[:2] + box[2:]) / 2 / anchor.stride
        x, y = centre.tolist()
        spread = max(0.6, size / anchor.stride / 12)
        own_x, own_y = min(int(x), w - 1), min(int(y), h - 1)
        bell = torch.exp(-(((columns - own_x) ** 2 + (rows - own_y) ** 2) / (2 * spread**2)))
        near = ((columns - own_x).abs() <= 1) & ((rows - own_y).abs() <= 1)
        stronger = bell > heat[n]
        best[n][near & stronger] = k
        heat[n] = torch.maximum(heat[n], bell)
    where = torch.nonzero(best >= 0, as_tuple=True)
    owner = best[where]
    return heat, where, boxes[where[0], owner], marks[where[0], owner].flatten(1), len(owned)  # type: ignore[return-value]


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes [n,4]; inverted ones count as empty."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    area = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - shared
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(dim=1)
    return shared / area.clamp(min=1e-6) - (hull - area) / hull.clamp(min=1e-6)


class PersonTask(BoxTask):
    name = "person"
    anchors, points, pad, scales = PERSON_ANCHORS, 0, 114, (0.35, 1.3)
    middle = 0.42

    def set_targets(self, data: dict[str, np.ndarray], k: int) -> None:
        for n, points in enumerate(data["keypoints"][k]):
            if present(points):
                self.boxes[k, n] = person_box(points, tuple(self.sizes[k]))

    def decode(self, raw: Tensor, anchor: Anchor) -> Tensor:
        half = torch.exp(raw[:, 2:].clamp(max=6)) / 2
        return torch.cat([raw[:, :2] - half, raw[:, :2] + half], dim=1)

    def normalise(self, images: Tensor) -> Tensor:
        return images / 255

    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(net, BoxNet)
        about = "People of drawn pictures (puppet); YOLOX's raw outputs, one class. For drawn figures only."
        free = {"images": {0: "batch"}, "output": {0: "batch"}}
        example = torch.zeros(2, 3, SIDE * POOL, SIDE * POOL)
        path = folder / "person_detector.onnx"
        return [write_onnx(PersonFile(net, self.middle), path, example, ["images"], ["output"], free=free, about=about)]


class PersonFile(nn.Module):
    """``images`` [b,3,640,640] in 0..255 -> ``output`` [b,8400,6]: centre and log size in cells, objectness, person."""

    def __init__(self, net: BoxNet, middle: float) -> None:
        super().__init__()
        self.net, self.middle = net, middle

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.net(F.avg_pool2d(x, POOL) / 255)
        rows = []
        for output in outputs:
            score = _score(output[:, :1], self.middle)
            cells = torch.cat([output[:, 1:5], score, torch.ones_like(score)], dim=1)
            rows.append(cells.flatten(2).transpose(1, 2))
        small = (x.shape[2] // 8) * (x.shape[3] // 8)
        # The finest grid is unused: its rows are zeros, computed here rather than stored.
        return F.pad(torch.cat(rows, dim=1), (0, 0, small, 0))


class FaceTask(BoxTask):
    name = "face"
    anchors, points, pad, scales = FACE_ANCHORS, 5, 0, (0.18, 1.7)
    middle = 0.3

    def set_targets(self, data: dict[str, np.ndarray], k: int) -> None:
        self.boxes[k] = data["face"][k]
        self.marks[k] = np.nan_to_num(data["landmarks"][k])

    def decode(self, raw: Tensor, anchor: Anchor) -> Tensor:
        return _distances(raw, anchor) * torch.tensor([-1.0, -1.0, 1.0, 1.0])

    def normalise(self, images: Tensor) -> Tensor:
        return (images - 127.5) / 128

    def export(self, net: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(net, BoxNet)
        about = "Faces of drawn figures with five landmarks (puppet); SCRFD's nine outputs. For drawn figures only."
        names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]
        free = {"input.1": {2: "height", 3: "width"}} | {name: {0: f"n_{name}"} for name in names}
        example = torch.zeros(1, 3, SIDE * POOL, SIDE * POOL)
        path = folder / "scrfd_puppet.onnx"
        return [write_onnx(FaceFile(net, self.middle), path, example, ["input.1"], names, free=free, about=about)]


class FaceFile(nn.Module):
    """``input.1`` [1,3,h,w], (pixel - 127.5) / 128, sides multiples of 32 -> scores, boxes and landmarks of the strides
    8, 16, 32: [n,1], [n,4] as distances to the left, top, right, bottom, and [n,10], all in strides from the cell."""

    def __init__(self, net: BoxNet, middle: float) -> None:
        super().__init__()
        self.net, self.middle = net, middle

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.net(F.avg_pool2d(x, POOL))
        kinds: dict[str, list[Tensor]] = {"score": [], "box": [], "marks": []}
        for stride in (8, 16, 32):
            pairs = [(a, r) for a, r in zip(self.net.anchors, outputs, strict=True) if a.stride == stride]
            # Each cell has two anchors, in adjacent rows.
            rows = torch.stack([r[0].permute(1, 2, 0) for _, r in pairs], dim=2).reshape(-1, 15)
            kinds["score"].append(_score(rows[:, :1], self.middle))
            size = torch.stack([_half_size(a) for a, _ in pairs]).reshape(-1, 1)
            boxes = rows[:, 1:5].reshape(-1, len(pairs), 4)
            kinds["box"].append(((boxes + 1) * size).reshape(-1, 4))
            kinds["marks"].append(rows[:, 5:])
        return (*kinds["score"], *kinds["box"], *kinds["marks"])


def _score(logit: Tensor, middle: float) -> Tensor:
    """Map the score ``middle`` to 0.5 and spread the others.

    The loss leaves scores low and close together; after this, callers' thresholds (0.3, 0.5, 0.7) decide alike.
    """
    return torch.sigmoid(_STEEPER * (logit - math.log(middle / (1 - middle))))


def _half_size(anchor: Anchor) -> Tensor:
    """Half the size of a typical box of this anchor, in strides."""
    return torch.tensor([max(anchor.low, 12) * 0.66 / anchor.stride])


def _distances(raw: Tensor, anchor: Anchor) -> Tensor:
    return (raw + 1) * _half_size(anchor)
