"""Memory of an ONNX network from its graph, beside what such a graph holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.detect.onnx_memory import onnx_memory
from tests.onnx_samples import Graph

FLOAT = 4


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Convolution, sigmoid and product (SiLU), then an average: three values of the image's size at once."""
    graph = Graph()
    weight = graph.constant(np.zeros((16, 3, 3, 3)))
    hidden = graph.add("Conv", "image", weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    gated = graph.add("Mul", hidden, graph.add("Sigmoid", hidden))
    graph.add("GlobalAveragePool", gated, output="out")
    return graph.save(tmp_path / "network.onnx", {"image": ["n", 3, "h", "w"]}, {"out": ["n", 16, 1, 1]})


def test_values_are_counted_while_they_are_read(network: Path) -> None:
    memory = onnx_memory(network, (2, 3, 20, 30))
    pixels = 2 * 20 * 30 * FLOAT
    assert memory.weights == 16 * 3 * 9 * FLOAT
    assert memory.activations == (3 + 3 * 16) * pixels
    assert memory.shape == (2, 3, 20, 30)


def test_dimensions_of_the_file_win(tmp_path: Path) -> None:
    graph = Graph()
    graph.add("Relu", "image", output="out")
    path = graph.save(tmp_path / "fixed.onnx", {"image": [1, 3, 8, 8]}, {"out": [1, 3, 8, 8]})
    assert onnx_memory(path, (4, 3, 100, 100)).shape == (1, 3, 8, 8)
    assert onnx_memory(path, (4, 3, 100, 100)).activations == 2 * 3 * 64 * FLOAT


def test_large_weights_are_no_activations(tmp_path: Path) -> None:
    graph = Graph()
    weight = graph.constant(np.zeros((64, 3, 5, 5)))
    graph.add("Conv", "image", weight, kernel_shape=[5, 5], pads=[2, 2, 2, 2], output="out")
    path = graph.save(tmp_path / "wide.onnx", {"image": [1, 3, 8, 8]}, {"out": [1, 64, 8, 8]})
    memory = onnx_memory(path, (1, 3, 8, 8))
    assert memory.weights == 64 * 75 * FLOAT
    assert memory.activations == (3 + 64) * 64 * FLOAT


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ValueError, match="not an ONNX model"):
        onnx_memory(path, (1, 3, 8, 8))
