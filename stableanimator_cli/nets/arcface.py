"""ArcFace in torch, executed from its ONNX graph, so that identity has a gradient with respect to pixels.

Face optimisation needs d(cosine)/d(pixels), and released recognisers are ONNX files. Their initialisers have no
reliable names: exporters fold batch norms into convolutions and merge equal tensors. So the graph is executed operator
by operator, not loaded into a network of fixed layers. Weights are frozen buffers; batch norms use their recorded
statistics in any mode.

Sources: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition"; the ONNX operator definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from stableanimator_cli.errors import is_out_of_memory

MXNET = (0.0, 1.0)
"""Mean and standard deviation of pixels 0..255 for graphs with their own normalisation."""

PYTORCH = (127.5, 127.5)
"""Mean and standard deviation of pixels 0..255 for graphs that expect [-1, 1]."""

MIN_OPSET = 7


class ArcFace(nn.Module):
    """A face recogniser's ONNX graph as a differentiable module: pixels [b,3,h,w] -> embeddings [b,d].

    ``graph`` is a parsed model or its bytes. ``size`` is the (height, width) that the graph expects, ``normalisation``
    the (mean, standard deviation) of pixels 0..255 before it. Raises ``ValueError`` with the node for an operator that
    is not implemented, and for a graph that does not map one image to one embedding.
    """

    def __init__(self, graph: onnx.ModelProto | bytes) -> None:
        super().__init__()
        model = graph if isinstance(graph, onnx.ModelProto) else _parse(graph)
        self.normalisation = normalisation(model)
        constants = {t.name: _tensor(t) for t in model.graph.initializer}
        self._input, self._batch, self.size = _signature(model, constants)
        if len(model.graph.output) != 1:
            raise ValueError(f"the graph has {len(model.graph.output)} outputs, a recogniser has one")
        self._output = model.graph.output[0].name
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        if opset < MIN_OPSET:
            raise ValueError(f"the graph is of opset {opset}, expected {MIN_OPSET} or later (numpy's broadcasting)")
        self._steps = _plan_execution(
            [_build_node(node) for node in model.graph.node], constants, self._input, self._output
        )
        if not any(_has_fixed_batch(step, constants, self._batch) for step in self._steps):
            self._batch = None  # declared, but nothing in the graph depends on it
        # Integers are shapes and stay on the CPU; floats move with the module.
        self._slots: dict[str, str] = {}
        self._shapes: dict[str, Tensor] = {}
        used = {name for step in self._steps for name in step.inputs}
        for name in (name for name in constants if name in used):
            value = constants[name]
            if value.is_floating_point():
                self._slots[name] = f"weight_{len(self._slots)}"
                self.register_buffer(self._slots[name], value.contiguous())
            else:
                self._shapes[name] = value
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings [b,d] (raw, not of unit length) of normalised pixels [b,3,h,w]; see ``embed`` for [-1, 1]."""
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, *self.size):
            raise ValueError(f"pixels {list(pixels.shape)}, expected [b, 3, {self.size[0]}, {self.size[1]}]")
        if self._batch is not None and len(pixels) != self._batch:
            if len(pixels) % self._batch:
                raise ValueError(f"{len(pixels)} images for a graph of batches of {self._batch}")
            return torch.cat([self._run(part) for part in pixels.split(self._batch)])
        return self._run(pixels)

    def embed(self, pixels: Tensor) -> Tensor:
        """Raw embeddings [b,d] of RGB pixels [b,3,h,w] in [-1, 1], whichever normalisation the graph expects."""
        mean, deviation = self.normalisation
        if (mean, deviation) != PYTORCH:
            pixels = ((pixels + 1) * 127.5 - mean) / deviation
        return self(pixels)

    def _run(self, pixels: Tensor) -> Tensor:
        values: dict[str, Any] = dict(self._shapes)
        values |= {name: getattr(self, slot) for name, slot in self._slots.items()}
        values[self._input] = pixels
        for step in self._steps:
            values[step.output] = step(values)
            for name in step.free_after:
                del values[name]
        return values[self._output]


def crop_resize(pixels: Tensor, boxes: Tensor | np.ndarray | Sequence[Sequence[int]], size: int = 112) -> Tensor:
    """A box of each image at the recogniser's size: [b,3,h,w] and int [b,4] (x0, y0, x1, y1) -> [b,3,size,size].

    Columns x0..x1 and rows y0..y1 are **inclusive**; parts outside the image are cropped. The aspect ratio changes and
    landmarks are not aligned: bilinear, ``align_corners=False``, as in StableAnimator's face optimisation.
    Differentiable in the pixels. Raises ``ValueError`` for a box without pixels or with fractions.
    """
    corners = torch.as_tensor(boxes).detach().cpu()
    if tuple(corners.shape) != (len(pixels), 4):
        raise ValueError(f"boxes {list(corners.shape)}, expected [{len(pixels)}, 4]")
    if corners.is_floating_point():
        if not torch.equal(corners, corners.round()):
            raise ValueError("boxes with fractions, expected whole pixels")
        corners = corners.long()
    crops = []
    for image, (x0, y0, x1, y1) in zip(pixels, corners.tolist(), strict=True):
        crop = image[:, max(0, y0) : max(0, y1 + 1), max(0, x0) : max(0, x1 + 1)]
        if not crop.numel():
            raise ValueError(f"box ({x0}, {y0}, {x1}, {y1}) meets no pixel of {list(image.shape[1:])}")
        crops.append(F.interpolate(crop[None], size=(size, size), mode="bilinear", align_corners=False))
    return torch.cat(crops)


def normalisation(model: onnx.ModelProto) -> tuple[float, float]:
    """Mean and standard deviation of pixels 0..255 that a graph expects, by insightface's rule.

    A graph with a subtraction and a multiplication, by name, among its first eight nodes normalises itself.
    """
    names = [node.name for node in model.graph.node[:8]]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in names)
    multiplies = any(name.startswith(("Mul", "_mul")) for name in names)
    return MXNET if subtracts and multiplies else PYTORCH


Attributes = Mapping[str, Any]
Operator = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class _Node:
    """One node: its function, the names of its operands, and the values that are freed after it."""

    label: str
    function: Operator
    attributes: Attributes
    inputs: tuple[str, ...]
    output: str
    free_after: tuple[str, ...] = ()

    def __call__(self, values: Mapping[str, Any]) -> Any:
        operands = [values[name] if name else None for name in self.inputs]
        try:
            return self.function(self.attributes, *operands)
        except (RuntimeError, TypeError, IndexError, KeyError) as error:
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise  # the device's failure, not the graph's
            raise ValueError(f"{self.label}: {error}") from error


def _parse(content: bytes) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's error classes differ between its implementations
        raise ValueError(f"not an ONNX model: {error}") from error
    if not model.graph.node:
        raise ValueError("not an ONNX model: its graph is empty")
    return model


def _tensor(proto: onnx.TensorProto) -> Tensor:
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError(f"weights {proto.name!r} are in a second file; expected an ONNX file that holds its weights")
    array = np.array(numpy_helper.to_array(proto))
    return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iub" else np.float32))


def _signature(model: onnx.ModelProto, constants: Mapping[str, Tensor]) -> tuple[str, int | None, tuple[int, int]]:
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} inputs, a recogniser has one")
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4 or dims[1] != 3 or min(dims[2:]) < 1:
        raise ValueError(f"input {inputs[0].name!r} has shape {dims} (0: free), expected [b, 3, height, width]")
    return inputs[0].name, dims[0] or None, (dims[2], dims[3])


def _has_fixed_batch(step: _Node, constants: Mapping[str, Tensor], batch: int | None) -> bool:
    shape = constants.get(step.inputs[1]) if step.function is _reshape and len(step.inputs) > 1 else None
    return shape is not None and bool(shape.numel()) and shape.reshape(-1)[0].item() == batch


def _build_node(node: onnx.NodeProto) -> _Node:
    label = f"node {node.name or node.output[0]!r} ({node.op_type})"
    if node.op_type not in _OPERATORS or node.domain not in ("", "ai.onnx"):
        known = ", ".join(sorted(_OPERATORS))
        raise ValueError(f"{label}: an operator that is not carried out here; known are {known}")
    attributes: dict[str, Any] = {}
    for entry in node.attribute:
        value = onnx.helper.get_attribute_value(entry)
        attributes[entry.name] = value.decode() if isinstance(value, bytes) else value
    return _Node(label, _OPERATORS[node.op_type], attributes, tuple(node.input), node.output[0])


def _plan_execution(
    steps: Iterable[_Node], constants: dict[str, Tensor], source: str, target: str
) -> tuple[_Node, ...]:
    """Compute everything that does not depend on pixels, check operands, and record the last use of each value."""
    known, pending = {source}, []
    for step in steps:
        missing = [name for name in step.inputs if name and name not in constants and name not in known]
        if missing:
            raise ValueError(f"{step.label}: operand {missing[0]!r} is made nowhere before it")
        if all(not name or name in constants for name in step.inputs):
            constants[step.output] = step(constants)
        else:
            known.add(step.output)
            pending.append(step)
    if target not in known:
        raise ValueError(f"output {target!r} does not depend on the image")
    needed, planned = {target}, []
    for step in reversed(pending):
        if step.output not in needed:
            continue
        last = tuple({name for name in step.inputs if name and name not in constants and name not in needed})
        needed.update(step.inputs)
        planned.append(_Node(step.label, step.function, step.attributes, step.inputs, step.output, last))
    return tuple(reversed(planned))


def _pads(a: Attributes, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Padding (left, right, top, bottom), in torch's order, of a window operator on images of ``size`` (h, w)."""
    mode = a.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0, 0, 0, 0]
    if mode == "NOTSET":
        top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
        return [left, right, top, bottom]
    pads: list[int] = []
    strides, dilations = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    for length, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        short = max(0, (-(-length // stride) - 1) * stride + (k - 1) * dilation + 1 - length)
        less, more = short // 2, short - short // 2
        pads = [*([less, more] if mode == "SAME_UPPER" else [more, less]), *pads]
    return pads


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    left, right, top, bottom = _pads(a, x.shape[2:], weight.shape[2:])
    if left == right and top == bottom:
        padding = (top, left)
    else:
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    stride, dilation = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    return F.conv2d(x, weight, bias, stride, padding, dilation, a.get("group", 1))


def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, shift, training=False, eps=a.get("epsilon", 1e-5))


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    channelwise = slope.ndim == x.ndim - 1 and slope.numel() == slope.shape[0] == x.shape[1]
    if slope.numel() == 1 or channelwise:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    x = F.pad(x, _pads(a, x.shape[2:], kernel), value=float("-inf"))
    stride, dilation = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    return F.max_pool2d(x, kernel, stride, 0, dilation, bool(a.get("ceil_mode", 0)))


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel, stride, ceil = a["kernel_shape"], a.get("strides", (1, 1)), bool(a.get("ceil_mode", 0))
    if any(step != 1 for step in a.get("dilations", ())):
        raise TypeError("a dilated average is not carried out here")
    pads = _pads(a, x.shape[2:], kernel)
    pooled = F.avg_pool2d(F.pad(x, pads), kernel, stride, ceil_mode=ceil)
    if any(pads) and not a.get("count_include_pad", 0):
        pooled = pooled / F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), pads), kernel, stride, ceil_mode=ceil)
    return pooled


def _gemm(a: Attributes, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA", 0) else x
    matrix = matrix if a.get("transB", 0) else matrix.T
    out = F.linear(x, matrix) * a.get("alpha", 1.0)
    return out if bias is None else out + bias * a.get("beta", 1.0)


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    dims = shape.tolist()
    if not a.get("allowzero", 0):
        dims = [x.shape[axis] if size == 0 else size for axis, size in enumerate(dims)]
    return x.reshape(dims)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % (x.ndim + 1)
    return x.reshape(x.shape[:axis].numel(), -1)


def _axes(a: Attributes, axes: Tensor | None) -> list[int] | None:
    return a.get("axes") if axes is None else axes.tolist()


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    requested = _axes(a, axes) or []
    for axis in sorted(axis % (x.ndim + len(requested)) for axis in requested):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    requested = _axes(a, axes)
    return x.squeeze() if requested is None else x.squeeze(tuple(requested))


def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(a.get("perm", tuple(reversed(range(x.ndim))))).contiguous()


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    picked = torch.where(index < 0, index + x.shape[axis], index).to(x.device)
    taken = x.index_select(axis, picked.reshape(-1))
    return taken.reshape([*x.shape[:axis], *picked.shape, *x.shape[axis + 1 :]])


def _div(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    integers = not x.is_floating_point() and not y.is_floating_point()
    return torch.div(x, y, rounding_mode="trunc") if integers else x / y


def _constant(a: Attributes) -> Tensor:
    if isinstance(a.get("value"), onnx.TensorProto):
        return _tensor(a["value"])
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        for key in (name, f"{name}s"):
            if key in a:
                return torch.tensor(a[key], dtype=dtype)
    raise TypeError("a constant that is neither numbers nor a tensor")


def _dropout(a: Attributes, x: Tensor, *_: Tensor) -> Tensor:
    return x


_OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concat": lambda a, *parts: torch.cat(parts, dim=a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "PRelu": _prelu,
    "Relu": lambda a, x: F.relu(x),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
