"""The differentiable recogniser: equal to torch and to ONNX Runtime, in values and in gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as F

from stableanimator_cli.detect.onnx import session_options
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.errors import OutOfMemory
from stableanimator_cli.nets.arcface import ArcFace, crop_resize
from tests import onnx_samples
from tests.nets.iresnet import IResNet, filled, to_onnx
from tests.onnx_samples import Graph


@pytest.fixture(scope="module")
def small() -> IResNet:
    return filled(IResNet(widths=(4, 8, 8, 16), features=32, stem=4))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1


def runtime(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(
        model.SerializeToString(), session_options(threads=1), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {session.get_inputs()[0].name: pixels})[0])


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("style", ["flatten", "reshape", "shape"])
def test_values_equal_torch_and_onnxruntime(small: IResNet, pixels: torch.Tensor, folded: bool, style: str) -> None:
    model = to_onnx(small, folded=folded, style=style)
    out = ArcFace(model)(pixels)
    torch.testing.assert_close(out, small(pixels), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(out.numpy(), runtime(model, pixels.numpy()), atol=1e-5, rtol=1e-5)


def test_the_golden_network_at_full_width(pixels: torch.Tensor) -> None:
    net = filled(IResNet())
    out = ArcFace(to_onnx(net, folded=True).SerializeToString())(pixels[:1])
    assert out.shape == (1, 64)
    torch.testing.assert_close(out, net(pixels[:1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folded", [False, True])
def test_gradients_equal_torch(small: IResNet, pixels: torch.Tensor, folded: bool) -> None:
    recogniser = ArcFace(to_onnx(small, folded=folded, style="shape"))
    target = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
    grads = []
    for network in (small, recogniser):
        x = pixels.clone().requires_grad_(True)
        (1 - F.cosine_similarity(network(x), target)).mean().backward()
        grads.append(x.grad)
    assert grads[0].abs().max() > 1e-6
    torch.testing.assert_close(grads[1], grads[0], atol=1e-8, rtol=1e-4)


def test_gradient_is_that_of_finite_differences(small: IResNet, pixels: torch.Tensor) -> None:
    recogniser = ArcFace(to_onnx(small)).double()
    x = pixels[:1].double().requires_grad_(True)
    recogniser(x).sum().backward()
    step = torch.zeros_like(x)
    assert x.grad is not None
    step[0, 1, 50:60, 50:60] = 1e-4
    with torch.no_grad():
        slope = (recogniser(x + step).sum() - recogniser(x - step).sum()) / 2e-4
    torch.testing.assert_close(slope, (x.grad * step).sum() / 1e-4, rtol=1e-4, atol=1e-6)


def test_weights_are_frozen_and_batch_norms_do_not_learn(small: IResNet, pixels: torch.Tensor) -> None:
    recogniser = ArcFace(to_onnx(small))
    assert not list(recogniser.parameters())
    buffers = dict(recogniser.named_buffers())
    assert buffers
    assert all(b.is_contiguous() and b.is_floating_point() for b in buffers.values())
    before = {name: b.clone() for name, b in buffers.items()}
    first = recogniser(pixels)
    torch.testing.assert_close(recogniser.train()(pixels), first, atol=0, rtol=0)
    assert all(torch.equal(before[name], b) for name, b in recogniser.named_buffers())


def test_a_batch_is_its_pictures_even_where_the_graph_fixes_one(small: IResNet, pixels: torch.Tensor) -> None:
    free = ArcFace(to_onnx(small))(pixels)
    for style in ("flatten", "reshape"):
        single = ArcFace(to_onnx(small, style=style, batch=1))
        torch.testing.assert_close(single(pixels), free, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(single(pixels[1:]), free[1:], atol=1e-5, rtol=1e-5)


def test_normalisation_is_read_as_insightface_reads_it(tmp_path, pixels: torch.Tensor) -> None:
    files = {mxnet: onnx_samples.arcface(tmp_path / f"{mxnet}.onnx", mxnet=mxnet) for mxnet in (False, True)}
    plain, own = ArcFace(files[False].read_bytes()), ArcFace(files[True].read_bytes())
    assert plain.normalisation == (127.5, 127.5)
    assert own.normalisation == (0.0, 1.0)
    torch.testing.assert_close(plain.embed(pixels), plain(pixels), atol=0, rtol=0)
    torch.testing.assert_close(own.embed(pixels), plain(pixels) * 127.5 / 128, atol=1e-4, rtol=1e-4)
    inside = (pixels.numpy() + 1) * 127.5
    np.testing.assert_allclose(own.embed(pixels), runtime(onnx.load(files[True]), inside), atol=1e-4)


def graph_of(build: Callable[[Graph, str], str], size: int = 13, opset: int = 13) -> onnx.ModelProto:
    """A graph of one operator or a few on [b,3,size,size], flattened to [b,d]."""
    graph = Graph()
    graph.add("Flatten", build(graph, "data"), output="out")
    return graph.model({"data": ("n", 3, size, size)}, {"out": ("n", "d")}, opset)


def weight(g: Graph, *shape: int, seed: int = 0) -> str:
    return g.constant(np.random.default_rng(seed).standard_normal(shape))


OPERATORS: dict[str, Callable[[Graph, str], str]] = {
    "asymmetric pads": lambda g, x: g.add("Conv", x, weight(g, 4, 3, 3, 3), pads=[0, 1, 2, 3], strides=[2, 1]),
    "groups, dilations, bias": lambda g, x: g.add(
        "Conv", x, weight(g, 6, 1, 3, 3), weight(g, 6), group=3, dilations=[2, 1], pads=[2, 1, 2, 1]
    ),
    "same upper": lambda g, x: g.add("Conv", x, weight(g, 4, 3, 4, 2), auto_pad="SAME_UPPER", strides=[2, 3]),
    "same lower": lambda g, x: g.add("Conv", x, weight(g, 4, 3, 4, 2), auto_pad="SAME_LOWER", strides=[2, 3]),
    "valid": lambda g, x: g.add("Conv", x, weight(g, 4, 3, 3, 3), auto_pad="VALID"),
    "max pool": lambda g, x: g.add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]),
    "max pool, ceil": lambda g, x: g.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "mean pool": lambda g, x: g.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 2]),
    "mean pool with pads": lambda g, x: g.add(
        "AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 2], count_include_pad=1
    ),
    "global mean": lambda g, x: g.add("GlobalAveragePool", x),
    "shared slope": lambda g, x: g.add("PRelu", x, g.constant([0.3])),
    "slope a channel": lambda g, x: g.add("PRelu", x, weight(g, 3, 1, 1)),
    "slope a column": lambda g, x: g.add("PRelu", x, weight(g, 13)),
    "slope of rank 4": lambda g, x: g.add("PRelu", x, weight(g, 1, 3, 1, 1)),
    "leaky, relu": lambda g, x: g.add("Add", g.add("LeakyRelu", x, alpha=0.2), g.add("Relu", x)),
    "sigmoid gate": lambda g, x: g.add("Mul", x, g.add("Sigmoid", g.add("GlobalAveragePool", x))),
    "div, sub": lambda g, x: g.add("Div", g.add("Sub", x, weight(g, 3, 1, 1)), g.constant(3.0)),
    "gemm, all flags": lambda g, x: g.add(
        "Gemm",
        g.add("Squeeze", g.add("GlobalAveragePool", x), g.ints(2, 3)),
        weight(g, 3, 5),
        weight(g, 5),
        alpha=0.5,
        beta=2.0,
    ),
    "gemm, transposed": lambda g, x: g.add(
        "Gemm",
        g.add("Transpose", g.add("Flatten", g.add("GlobalAveragePool", x)), perm=[1, 0]),
        weight(g, 5, 3),
        transA=1,
        transB=1,
    ),
    "transpose, concat": lambda g, x: g.add("Concat", x, g.add("Transpose", x, perm=[0, 1, 3, 2]), axis=1),
    "reshape with zeros": lambda g, x: g.add("Reshape", x, g.ints(0, -1, 13)),
    "squeeze, unsqueeze": lambda g, x: g.add(
        "Unsqueeze", g.add("Squeeze", g.add("GlobalAveragePool", x), g.ints(3)), g.ints(-1, 1)
    ),
    "gather": lambda g, x: g.add("Gather", x, g.constant([[2, -1], [0, 1]], np.int64), axis=1),
    "constants": lambda g, x: g.add(
        "Add", x, g.add("Add", g.add("Constant", value_float=2.0), g.add("Identity", g.constant(0.5)))
    ),
    "dropout": lambda g, x: g.add("Dropout", x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_equal_onnxruntime(name: str) -> None:
    model = graph_of(OPERATORS[name])
    x = torch.randn(2, 3, 13, 13, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(ArcFace(model)(x).numpy(), runtime(model, x.numpy()), atol=2e-6, rtol=1e-5)


def test_axes_as_attributes_of_older_graphs() -> None:
    def build(g: Graph, x: str) -> str:
        return g.add("Unsqueeze", g.add("Squeeze", g.add("GlobalAveragePool", x), axes=[2, 3]), axes=[1])

    model = graph_of(build, opset=11)
    x = torch.randn(2, 3, 13, 13, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(ArcFace(model)(x).numpy(), runtime(model, x.numpy()), atol=1e-6)


def test_what_it_does_not_know_is_named() -> None:
    model = graph_of(lambda g, x: g.add("Erf", x, name="strange_7"))
    with pytest.raises(ValueError, match=r"node 'strange_7' \(Erf\): an operator that is not carried out here"):
        ArcFace(model)


def test_broken_graphs_are_named() -> None:
    model = graph_of(lambda g, x: g.add("Relu", x, name="first"))
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ValueError, match=r"node 'first' \(Relu\): operand 'nowhere'"):
        ArcFace(model)
    with pytest.raises(ValueError, match="not an ONNX model"):
        ArcFace(b"\x08\x08not a model")
    with pytest.raises(ValueError, match="not an ONNX model"):
        ArcFace(b"")
    mismatched = ArcFace(graph_of(lambda g, x: g.add("Add", x, weight(g, 5, 1, 1), name="sum")))
    with pytest.raises(ValueError, match=r"node 'sum' \(Add\)"):
        mismatched(torch.zeros(1, 3, 13, 13))
    constant = graph_of(lambda g, x: g.add("Relu", g.constant([[1.0]])))
    with pytest.raises(ValueError, match="does not depend on the image"):
        ArcFace(constant)


def test_other_networks_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="9 outputs"):
        ArcFace(onnx.load(onnx_samples.scrfd(tmp_path / "s.onnx")))
    old = graph_of(lambda g, x: g.add("Relu", x))
    old.opset_import[0].version = 6
    with pytest.raises(ValueError, match="opset 6"):
        ArcFace(old)
    external = graph_of(lambda g, x: g.add("PRelu", x, weight(g, 3, 1, 1)))
    external.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="second file"):
        ArcFace(external)


def test_wrong_pixels_are_refused(small: IResNet) -> None:
    recogniser = ArcFace(to_onnx(small))
    assert recogniser.size == (112, 112)
    for shape in ((3, 112, 112), (1, 3, 111, 112), (1, 1, 112, 112)):
        with pytest.raises(ValueError, match=r"expected \[b, 3, 112, 112\]"):
            recogniser(torch.zeros(shape))


def test_crops_hold_both_ends_of_a_box() -> None:
    pixels = torch.arange(2 * 3 * 20 * 30, dtype=torch.float32).reshape(2, 3, 20, 30)
    crops = crop_resize(pixels, [[4, 2, 7, 5], [0, 0, 29, 19]], size=4)
    torch.testing.assert_close(crops[0], pixels[0, :, 2:6, 4:8], atol=0, rtol=0)
    whole = F.interpolate(pixels[1:], size=(4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(crops[1:], whole, atol=0, rtol=0)
    assert crop_resize(pixels, np.array([[3, 3, 3, 3]] * 2)).shape == (2, 3, 112, 112)


def test_crops_are_clipped_and_refused() -> None:
    pixels = torch.rand(1, 3, 20, 30)
    outside = crop_resize(pixels, torch.tensor([[-5.0, -3.0, 40.0, 25.0]]))
    torch.testing.assert_close(outside, crop_resize(pixels, [[0, 0, 29, 19]]), atol=0, rtol=0)
    for box in ([30, 0, 40, 5], [-9, 0, -1, 5], [5, 5, 4, 9]):
        with pytest.raises(ValueError, match="meets no pixel"):
            crop_resize(pixels, [box])
    with pytest.raises(ValueError, match="fractions"):
        crop_resize(pixels, torch.tensor([[0.5, 0, 3, 3]]))
    with pytest.raises(ValueError, match=r"expected \[1, 4\]"):
        crop_resize(pixels, [[0, 0, 3, 3]] * 2)


def test_crop_gradients_stay_in_the_box() -> None:
    pixels = torch.rand(1, 3, 20, 30, requires_grad=True)
    crop_resize(pixels, [[4, 2, 9, 8]], size=16).sum().backward()
    assert pixels.grad is not None
    inside = torch.zeros(20, 30, dtype=torch.bool)
    inside[2:9, 4:10] = True
    assert bool((pixels.grad[..., inside] > 0).all())
    assert not pixels.grad[..., ~inside].any()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"),
        RuntimeError("CUDA error: out of memory"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_the_device_cannot_do_is_not_the_graphs_fault(small: IResNet, pixels, monkeypatch, error) -> None:
    def fails(*_: object, **__: object) -> torch.Tensor:
        raise error

    recogniser = ArcFace(to_onnx(small))
    monkeypatch.setattr(F, "conv2d", fails)
    with pytest.raises(type(error)) as caught:
        recogniser(pixels)
    assert caught.value is error
    if "illegal" not in str(error):
        with pytest.raises(OutOfMemory), memory_guard("optimising faces", "less"):
            recogniser(pixels)
    monkeypatch.setattr(F, "conv2d", lambda *_: (_ for _ in ()).throw(RuntimeError("sizes do not match")))
    with pytest.raises(ValueError, match=r"\(Conv\): sizes do not match"):
        recogniser(pixels)
