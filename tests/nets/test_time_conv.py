"""Temporal kernels as matrix products: the same answers, gradients and names as the library's convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stableanimator_cli.nets.time_conv import TimeConv, with_time_convs


def conv(**changes) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(4, 5, **{"kernel_size": (3, 1, 1), "padding": (1, 0, 0), **changes})


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_answers_and_gradients_agree(frames):
    plain, quick = conv(), with_time_convs(nn.Sequential(conv()))
    assert isinstance(quick[0], TimeConv)
    x = torch.randn(2, 4, frames, 3, 6, requires_grad=True)
    one, two = plain(x), quick(x)
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(quick(x), two)
    weights = torch.randn_like(one)
    gradients = [
        torch.autograd.grad((y * weights).sum(), [x, *net.parameters()], retain_graph=True)
        for y, net in ((one, plain), (two, quick))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_convolution_without_bias_and_pictures_seen_as_a_clip():
    plain, quick = conv(bias=False), with_time_convs(nn.Sequential(conv(bias=False)))
    pictures = torch.randn(6, 4, 3, 3)
    clip = pictures.unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(quick(clip), plain(clip), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"kernel_size": (3, 3, 3), "padding": 1}, {"padding": 0}, {"stride": (2, 1, 1)}, {"padding_mode": "replicate"}],
)
def test_other_convolutions_stay_what_they_are(changes):
    assert type(with_time_convs(nn.Sequential(conv(**changes)))[0]) is nn.Conv3d


def test_elsewhere_the_library_answers():
    net = with_time_convs(nn.Sequential(conv())).to("meta")
    assert net(torch.empty(1, 4, 3, 2, 2, device="meta")).shape == (1, 5, 3, 2, 2)
