"""Memory that an ONNX network needs on a CPU, counted from its graph; nothing is computed.

Without ONNX Runtime's arena (``onnx.session_options``) a session holds its weights, and while it runs the values of its
graph that a later node still reads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

_FEW = 1024  # values of an initialiser that may be a shape; larger ones are weights
_BYTES: Mapping[int, int] = {  # of a value, by ``elem_type``
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.INT64: 8,
    onnx.TensorProto.BOOL: 1,
}


@dataclass(frozen=True, slots=True)
class OnnxMemory:
    """Bytes of ``weights`` while a session is open, and of ``activations`` at once while it runs on ``shape``."""

    weights: int
    activations: int
    shape: tuple[int, ...]


@functools.lru_cache(maxsize=16)
def onnx_memory(path: Path, shape: tuple[int, ...]) -> OnnxMemory:
    """Memory of the network ``path`` for one input of ``shape``; the dimensions that its file fixes win.

    A value whose shape the graph does not determine counts nothing. Raises ``ValueError`` for a file that is no graph.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's error classes differ between its implementations
        raise ValueError(f"not an ONNX model: {error}") from error
    graph = model.graph
    weights = sum(math.prod(tensor.dims) * _BYTES.get(tensor.data_type, 4) for tensor in graph.initializer)
    constants = {tensor.name for tensor in graph.initializer}
    source = next((value for value in graph.input if value.name not in constants), None)
    if source is None:
        raise ValueError("not an ONNX model: its graph has no input")
    dims = source.type.tensor_type.shape.dim
    for dim, size in zip(dims, shape, strict=False):
        if dim.dim_value <= 0:
            dim.dim_value = size
    fixed = tuple(dim.dim_value for dim in dims)
    _drop_weights(graph, constants)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    sizes = {value.name: _size(value.type.tensor_type) for value in values if value.name not in constants}
    return OnnxMemory(weights, _peak(inferred, sizes), fixed)


def _drop_weights(graph: onnx.GraphProto, constants: set[str]) -> None:
    """Turn large initialisers into inputs: shapes need their dimensions only."""
    declared = {value.name for value in graph.input}
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > _FEW]
    small = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= _FEW]
    graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in large
        if tensor.name not in declared
    )
    del graph.initializer[:]
    graph.initializer.extend(small)


def _size(kind: onnx.TypeProto.Tensor) -> int:
    dims = [dim.dim_value for dim in kind.shape.dim] if kind.HasField("shape") else [0]
    return math.prod(dims) * _BYTES.get(kind.elem_type, 4)


def _peak(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    """Maximum of the bytes alive while the nodes run in order; input and outputs live to the end."""
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last |= dict.fromkeys((value.name for value in graph.output), len(graph.node))
    given = {value.name for value in graph.input}
    alive = sum(sizes.get(name, 0) for name in given)
    peak = alive
    for index, node in enumerate(graph.node):
        alive += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        done = {name for name in (*node.input, *node.output) if last.get(name, index) == index and name not in given}
        alive -= sum(sizes.get(name, 0) for name in done)
    return peak
