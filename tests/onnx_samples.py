"""Makers of small ONNX files that keep the contracts of the real detectors.

They are not constants: the detectors look for a colour and answer with the rectangle that holds it, so that a test
sees colour order, scaling and padding. All are a few kilobytes but the recogniser.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

OPSET = 13
FAR = 1e6

RED, GREEN, BLUE = 0, 1, 2
"""Colour planes of the input that a detector can look for: a plane counts as lit where it outshines both others."""


class Graph:
    """A graph under construction: nodes in order, constants on the side."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: ArrayLike, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values), np.int64)

    def add(self, op: str, *inputs: str, name: str | None = None, output: str | None = None, **attributes: Any) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name or f"{op}_{output}", **attributes))
        return output

    def save(
        self,
        path: Path,
        inputs: dict[str, Sequence[int | str]],
        outputs: dict[str, Sequence[int | str]],
        opset: int = OPSET,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save_model(self.model(inputs, outputs, opset), str(path))
        return path

    def model(
        self, inputs: dict[str, Sequence[int | str]], outputs: dict[str, Sequence[int | str]], opset: int = OPSET
    ) -> onnx.ModelProto:
        def values(shapes: dict[str, Sequence[int | str]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(key, TensorProto.FLOAT, list(dims)) for key, dims in shapes.items()]

        graph = helper.make_graph(self.nodes, "sample", values(inputs), values(outputs), initializer=self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def rectangle(self, image: str, plane: int, size: tuple[int, int], margin: float) -> tuple[str, str]:
        """The box float[b,4] around all pixels where ``plane`` outshines the others by ``margin``, and float[b,1]:
        1 where there is such a pixel. ``size`` is (height, width); edges are pixel edges, as for a slice."""
        planes = [self.add("Slice", image, self.ints(k), self.ints(k + 1), self.ints(1)) for k in range(3)]
        own = planes.pop(plane)
        lead = self.add("Sub", own, self.add("Max", *planes))
        lit = self.add("Cast", self.add("Greater", lead, self.constant(margin)), to=TensorProto.FLOAT)
        sides: dict[str, tuple[str, str]] = {}
        for axis, other, length in (("x", 2, size[1]), ("y", 3, size[0])):
            line = self.add("ReduceMax", lit, axes=[1, other], keepdims=0)  # [b, length]
            index = self.constant(np.arange(length))
            dark = self.add("Mul", self.add("Sub", self.constant(1.0), line), self.constant(FAR))
            low = self.add("ReduceMin", self.add("Add", index, dark), axes=[1], keepdims=1)
            after = self.add("Mul", line, self.constant(np.arange(length) + 1))
            sides[axis] = low, self.add("ReduceMax", after, axes=[1], keepdims=1)
        found = self.add("ReduceMax", self.add("ReduceMax", lit, axes=[1, 2], keepdims=0), axes=[1], keepdims=1)
        corners = [sides["x"][0], sides["y"][0], sides["x"][1], sides["y"][1]]
        box = self.add("Mul", self.add("Concat", *corners, axis=1), found)
        return box, found


FACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""ArcFace's template in 112 x 112: a square face that ``scrfd`` finds is aligned onto exactly its own rectangle."""


def scrfd(
    path: Path, planes: Sequence[int] = (RED,), size: int = 640, dynamic: bool = False, landmarks: bool = True
) -> Path:
    """A face detector: nine outputs (scores, boxes, landmarks at strides 8, 16, 32), each of rank 2, two anchors a
    cell. A face is the rectangle of a colour plane; the k-th plane answers at anchor k of stride 8, with score .9,
    .8 ... ``dynamic`` declares free height and width as the released files do (the graph still wants ``size``).
    """
    graph = Graph()
    rows = {stride: 2 * (size // stride) ** 2 for stride in (8, 16, 32)}
    scores, boxes, points = [], [], []
    for k, plane in enumerate(planes):
        box, found = graph.rectangle("input.1", plane, (size, size), margin=0.5)
        centre_x = float(k // 2)  # in cells: anchors 2k and 2k+1 share one
        scores.append(graph.add("Mul", found, graph.constant(0.9 - 0.1 * k)))
        units = graph.add("Mul", box, graph.constant([-1 / 8, -1 / 8, 1 / 8, 1 / 8]))
        boxes.append(graph.add("Add", units, graph.constant([centre_x, 0, -centre_x, 0])))
        low = graph.add("Slice", box, graph.ints(0), graph.ints(2), graph.ints(1))
        extent = graph.add("Sub", graph.add("Slice", box, graph.ints(2), graph.ints(4), graph.ints(1)), low)
        tile = graph.ints(1, 5)
        spread = graph.add("Mul", graph.add("Tile", extent, tile), graph.constant(FACE_POINTS.reshape(1, 10) / 112))
        at = graph.add("Mul", graph.add("Add", graph.add("Tile", low, tile), spread), graph.constant(1 / 8))
        points.append(graph.add("Sub", at, graph.constant([centre_x, 0] * 5)))
    outputs: dict[str, Sequence[int | str]] = {}
    for kind, parts, width in (("score", scores, 1), ("bbox", boxes, 4), ("kps", points, 10)):
        if kind == "kps" and not landmarks:
            continue
        first = graph.add("Concat", *parts, axis=0)
        graph.add("Pad", first, graph.ints(0, 0, rows[8] - len(planes), 0), output=f"{kind}_8")
        for stride in (16, 32):
            shape = graph.ints(rows[stride], width)
            graph.add("ConstantOfShape", shape, output=f"{kind}_{stride}")
        outputs |= {f"{kind}_{stride}": (count, width) for stride, count in rows.items()}
    dims: Sequence[int | str] = (1, 3, "h", "w") if dynamic else (1, 3, size, size)
    return graph.save(path, {"input.1": dims}, outputs)


def arcface(path: Path, width: int = 512, seed: int = 0, mxnet: bool = False) -> Path:
    """A recogniser 3 x 112 x 112 -> ``width``: 16 x 16 means through a random matrix (0.3 MB). ``mxnet`` puts the
    normalisation into the graph, in nodes named as MXNet's exporter named them."""
    graph = Graph()
    x = "data"
    if mxnet:
        x = graph.add("Sub", x, graph.constant(127.5), name="_minusscalar0")
        x = graph.add("Mul", x, graph.constant(1 / 128), name="_mulscalar0")
    x = graph.add("AveragePool", x, kernel_shape=[16, 16], strides=[16, 16])
    x = graph.add("Flatten", x, axis=1)
    matrix = np.random.default_rng(seed).standard_normal((147, width))
    graph.add("MatMul", x, graph.constant(matrix), output="fc1")
    return graph.save(path, {"data": ("n", 3, 112, 112)}, {"fc1": ("n", width)})


def faces(folder: Path, planes: Sequence[int] = (RED,), dynamic: bool = False) -> Path:
    """A folder as ``antelopev2``'s: a recogniser and a detector."""
    scrfd(folder / "scrfd_10g_bnkps.onnx", planes=planes, dynamic=dynamic)
    arcface(folder / "glintr100.onnx")
    return folder


def yolox(path: Path, classes: Sequence[tuple[int, int]] = ((RED, 0),), size: int = 640, batch: int | str = 1) -> Path:
    """A person detector of raw YOLOX outputs (b, 8400, 85) from pixels 0..255. ``classes`` pairs a colour plane with
    the class that its rectangle is reported as (0 is a person); the k-th stands in cell k, with score .9, .8 ..."""
    graph = Graph()
    cells = sum((size // stride) ** 2 for stride in (8, 16, 32))
    rows = []
    for k, (plane, label) in enumerate(classes):
        box, found = graph.rectangle("images", plane, (size, size), margin=100.0)
        low = graph.add("Slice", box, graph.ints(0), graph.ints(2), graph.ints(1))
        high = graph.add("Slice", box, graph.ints(2), graph.ints(4), graph.ints(1))
        centre = graph.add("Mul", graph.add("Add", low, high), graph.constant(1 / 16))
        centre = graph.add("Sub", centre, graph.constant([float(k), 0.0]))
        extent = graph.add("Mul", graph.add("Sub", high, low), graph.constant(1 / 8))
        extent = graph.add("Log", graph.add("Max", extent, graph.constant(1e-3)))
        one_hot = np.zeros(81)
        one_hot[[0, 1 + label]] = 0.9 - 0.1 * k, 1.0
        certain = graph.add("Mul", found, graph.constant(one_hot))
        rows.append(graph.add("Unsqueeze", graph.add("Concat", centre, extent, certain, axis=1), graph.ints(1)))
    first = graph.add("Concat", *rows, axis=1)
    graph.add("Pad", first, graph.ints(0, 0, 0, 0, cells - len(rows), 0), output="output")
    return graph.save(path, {"images": (batch, 3, size, size)}, {"output": (batch, cells, 85)})


def simcc(path: Path, points: np.ndarray | None = None, peak: float = 0.8, batch: int | str = "batch") -> Path:
    """A pose network 3 x 384 x 288 -> SimCC rows (b, 133, 576) and (b, 133, 768), two bins a pixel: Gaussians around
    ``points`` float[133,2], in pixels of the crop (by default ``default_points()``), as high as ``peak``."""
    points = default_points() if points is None else points
    graph = Graph()
    pooled = graph.add("ReduceMean", "input", axes=[1, 2, 3], keepdims=1)
    batched = graph.add("Mul", graph.add("Squeeze", pooled, graph.ints(3)), graph.constant(0.0))
    for axis, (name, bins) in enumerate((("simcc_x", 576), ("simcc_y", 768))):
        distance = graph.add("Sub", graph.constant(np.arange(bins)), graph.constant(2 * points[:, axis, None]))
        curve = graph.add("Exp", graph.add("Mul", graph.add("Mul", distance, distance), graph.constant(-1 / 72)))
        graph.add("Add", graph.add("Mul", curve, graph.constant(peak)), batched, output=name)
    return graph.save(
        path, {"input": (batch, 3, 384, 288)}, {"simcc_x": (batch, 133, 576), "simcc_y": (batch, 133, 768)}
    )


def default_points() -> np.ndarray:
    """133 points spread over the crop of 288 x 384 on half pixels, float64[133,2]."""
    return np.round(2 * np.random.default_rng(133).uniform((10, 10), (278, 374), (133, 2))) / 2
