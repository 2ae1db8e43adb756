"""One byte a weight: what it saves, how far answers move, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.quantized import quantize_weight, quantize_weights
from stableanimator_cli.nets.time_conv import TimeConv
from stableanimator_cli.nets.unet import AnimationUNet

KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# relative to a channel's largest weight: half a level of 127, and half of e4m3's last bit (2**-4) of the number itself
STEP = {"int8": 0.5 / 127, "fp8": 2**-4}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_comes_back_within_half_a_level(kind):
    weight = noise(0, 8, 24, 3, 3) * torch.logspace(-6, 3, 8).view(-1, 1, 1, 1)  # channels of very unlike size
    weight[3] = 0
    packed, scale = quantize_weight(weight, KINDS[kind])
    assert (packed.dtype, packed.shape, scale.dtype) == (KINDS[kind], weight.shape, torch.float32)
    back = packed.float() * scale.view(-1, 1, 1, 1)
    largest = weight.abs().amax((1, 2, 3), keepdim=True)
    bound = STEP[kind] * (largest if kind == "int8" else weight.abs().maximum(largest * 2**-14))
    assert ((back - weight).abs() <= bound * 1.001).all()
    assert (back[3] == 0).all()
    top = weight.abs().flatten(1).argmax(1)
    here = torch.arange(8)
    assert torch.allclose(back.flatten(1)[here, top], weight.flatten(1)[here, top], rtol=1e-5)  # the largest is met


@pytest.mark.parametrize("kind", KINDS)
def test_layers_compute_what_their_weights_say(kind):
    layers = nn.ModuleDict(
        {
            "linear": nn.Linear(64, 96),
            "conv": nn.Conv2d(16, 32, 3, padding=1, stride=2),
            "time": TimeConv(48, 32, (3, 1, 1), padding=(1, 0, 0)),
            "small": nn.Linear(8, 8),
            "conv_in": nn.Conv2d(16, 32, 3),
        }
    ).requires_grad_(False)
    given = {"linear": noise(1, 5, 64), "conv": noise(2, 2, 16, 8, 8), "time": noise(3, 1, 48, 4, 5, 5)}
    before = {name: layers[name](x) for name, x in given.items()}
    quantize_weights(layers, kind)  # type: ignore[arg-type]
    for name, x in given.items():
        layer = layers[name]
        assert layer.weight.dtype == KINDS[kind]
        after = layer(x)
        assert after.dtype == x.dtype
        assert 0 < (after - before[name]).norm() < 0.05 * before[name].norm(), name
        with torch.no_grad():  # exactly the layer of the weights that come back
            plain = nn.utils.skip_init(type(layer).__mro__[2], *_shape(layer))
            plain.weight, plain.bias = nn.Parameter(layer.kernel()), layer.bias
            assert torch.allclose(plain(x), after, atol=1e-6)
    assert layers["small"].weight.dtype == layers["conv_in"].weight.dtype == torch.float32


def _shape(layer: nn.Module) -> tuple:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding


def test_the_puppets_network_moves_little_and_takes_less(capsys):
    def unet(kind: str) -> AnimationUNet:
        loaded = loaders(open_model("puppet"), torch.float32, "distribution")["unet"]()
        return quantize_weights(loaded, kind)  # type: ignore[arg-type, return-value]

    def call(network: AnimationUNet) -> Tensor:
        width = network.config["cross_attention_dim"]
        context = network.prepare(Context(noise(2, 1, 1, width), noise(3, 1, network.id_tokens, width)))
        ids = torch.tensor([[6.0, 127.0, 0.02]])
        sample = noise(1, 1, 4, network.config["in_channels"], 16, 16)
        pose = noise(4, 4, network.config["block_out_channels"][0], 16, 16)
        return network(sample, 0.5, context, ids, pose)

    def size(network: nn.Module) -> int:
        return sum(t.numel() * t.element_size() for t in network.state_dict().values())

    with torch.no_grad():
        plain = unet("plain")
        answer = call(plain)
        for kind, most in (("int8", 0.07), ("fp8", 0.25)):
            small = unet(kind)
            error = float((call(small) - answer).norm() / answer.norm())
            share = size(small) / size(plain)
            with capsys.disabled():
                print(f"\n{kind}: relative error {error:.2e} of a UNet call, {share:.2f} of the bytes of float32")
            assert 0 < error < most
            assert share < 0.35  # biases and norms stay, and count for more in a small network
