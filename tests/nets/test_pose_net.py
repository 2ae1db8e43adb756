"""PoseNet lands on the latent grid, starts silent, and treats pictures one by one."""

from __future__ import annotations

import math

import pytest
import torch

from stableanimator_cli.nets.pose_net import PoseNet


@pytest.fixture(scope="module")
def trained() -> PoseNet:
    """Random weights also where training starts at zero."""
    torch.manual_seed(3)
    net = PoseNet(32)
    torch.nn.init.normal_(net.final_proj.weight, std=0.1)
    return net.requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 40)])
def test_features_have_the_size_of_the_latents(trained, height, width):
    assert trained(torch.rand(2, 3, height, width)).shape == (2, 32, height // 8, width // 8)


def test_a_fresh_network_says_nothing():
    assert not PoseNet(8)(torch.rand(1, 3, 16, 16)).any()


def test_a_batch_is_its_pictures_one_by_one(trained):
    pictures = torch.rand(3, 3, 32, 32) * 2 - 1
    together = trained(pictures)
    assert together.std() > 0.01
    for index in range(3):
        assert (trained(pictures[index : index + 1]) - together[index]).abs().max() <= 1e-5


def test_the_learned_factor_scales_all_of_the_output(trained):
    pictures = torch.rand(1, 3, 16, 16)
    before = trained(pictures)
    assert float(trained.scale) == 2.0
    trained.scale.data.mul_(3)
    try:
        assert torch.allclose(trained(pictures), 3 * before, rtol=1e-5, atol=1e-6)
    finally:
        trained.scale.data.div_(3)


def test_weights_start_as_the_reference_implementations():
    torch.manual_seed(0)
    net = PoseNet(320)
    assert sum(p.numel() for p in net.parameters()) == 205_557
    for layer in net.conv_layers:
        if isinstance(layer, torch.nn.Conv2d) and layer.weight.numel() > 4000:
            expected = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.in_channels))
            assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.05)
            assert not layer.bias.any()


def test_half_precision_stays_half():
    """Under autocast too, where parameters are float32: else the UNet's first feature map and all that is added to it
    afterwards would be float32."""
    net, pictures = PoseNet(8), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = net(pictures)
    assert features.dtype == torch.bfloat16
    features.sum().backward()
    assert net.scale.grad.dtype == torch.float32
    assert PoseNet(8).to(torch.bfloat16)(pictures.bfloat16()).dtype == torch.bfloat16
    assert PoseNet(8)(pictures).dtype == torch.float32
