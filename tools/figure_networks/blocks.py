"""Building blocks of the small networks, and their export to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from stableanimator_cli.files import atomic_write, translate_os_errors

OPSET = 13
_LARGE = 256  # numbers; smaller tensors are not worth a node


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    """Two convolutions with a shortcut (He et al., "Deep Residual Learning")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


def write_onnx(
    net: nn.Module,
    path: Path,
    example: Tensor,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    free: Mapping[str, Mapping[int, str]] | None = None,
    about: str,
    half: bool = True,
) -> Path:
    """Write ``net`` as one ONNX file without external data; returns ``path``.

    ``free`` names the axes of inputs and outputs that may have any length; ``about`` is the file's description.
    ``half`` stores the weights as float16, and the graph casts them to float32: half the size, the same arithmetic.
    """
    net = net.eval().float()
    with TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its successor and every fixed shape
        exported = Path(folder) / "network.onnx"
        torch.onnx.export(
            net, (example,), exported, input_names=list(inputs), output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name, axes in (free or {}).items()}, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        model = onnx.load_model_from_string(exported.read_bytes())
    model.doc_string, model.producer_name, model.producer_version = about, "stableanimator-cli", ""
    for node in model.graph.node:
        node.doc_string = ""
    with torch.no_grad():
        results = net(example)
    for value, result in zip(model.graph.output, [results] if isinstance(results, Tensor) else results, strict=True):
        # The exporter loses lengths after a reshape; callers check them.
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis not in (free or {}).get(value.name, {}):
                dim.dim_value = result.shape[axis]
    if half:
        _halve(model.graph)
    onnx.checker.check_model(model)
    with atomic_write(path) as temp, translate_os_errors(path):
        temp.write_bytes(model.SerializeToString())
    return path


def _halve(graph: onnx.GraphProto) -> None:
    casts = []
    for tensor in graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype != np.float32 or weights.size < _LARGE:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
