"""LPIPS reads the published files' names and computes what the paper says."""

from __future__ import annotations

import pytest
import torch

from stableanimator_cli.nets.perceptual import MIN_SIDE, TAPS, Kind, LinearHeads, Lpips, Trunk, trunk_tensors
from tests.nets import metric_nets

KINDS: tuple[Kind, ...] = ("alex", "vgg")


@pytest.fixture(scope="module", params=KINDS)
def network(request) -> Lpips:
    made, heads = Trunk(request.param), LinearHeads(request.param)
    made.load_state_dict(trunk_tensors(metric_nets.trunk(request.param)))
    heads.load_state_dict(metric_nets.linears(request.param))
    return Lpips(made, heads).eval().requires_grad_(False)


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(48, 40), (35, 51)])
def test_it_agrees_with_a_forward_pass_written_by_hand(network, height, width):
    kind = network.trunk.kind
    a, b = pictures(2, height, width), pictures(2, height, width, seed=1)
    expected = metric_nets.lpips_by_hand(kind, metric_nets.trunk(kind), metric_nets.linears(kind), a, b)
    assert expected.min() > 0.1
    assert torch.allclose(network(a, b), expected, rtol=1e-5, atol=1e-6)


def test_a_picture_is_no_distance_from_itself_and_order_does_not_matter(network):
    a, b = pictures(2, 48, 48), pictures(2, 48, 48, seed=1)
    assert network(a, a).tolist() == [0, 0]
    assert torch.allclose(network(a, b), network(b, a), rtol=1e-5)
    assert (network(a, a + 0.1 * b) < network(a, b)).all()


def test_a_batch_is_its_pictures_one_by_one(network):
    a, b = pictures(3, 32, 40), pictures(3, 32, 40, seed=1)
    singles = torch.cat([network(a[n : n + 1], b[n : n + 1]) for n in range(3)])
    assert torch.allclose(network(a, b), singles, rtol=1e-5)


def test_the_range_of_the_input_matters(network):
    """Why 0..1 has a name of its own."""
    a, b = pictures(1, 64, 64), pictures(1, 64, 64, seed=1)
    assert not torch.isclose(network((a + 1) / 2, (b + 1) / 2), network(a, b), rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_taken_after_relus_of_the_right_width(kind):
    net, side = Trunk(kind).requires_grad_(False), MIN_SIDE[kind]
    maps = net(torch.zeros(1, 3, side, side))
    assert [m.shape[1] for m in maps] == list(TAPS[kind].values()) == list(metric_nets.CHANNELS[kind])
    assert maps[-1].shape[-1] == 1
    assert all(isinstance(net.features[index], torch.nn.ReLU) for index in TAPS[kind])


def test_small_and_unequal_pictures_are_refused(network):
    least = MIN_SIDE[network.trunk.kind]
    with pytest.raises(ValueError, match=f"one shape of {least} or more"):
        network(pictures(1, least - 1, 64), pictures(1, least - 1, 64))
    with pytest.raises(ValueError, match="one shape"):
        network(pictures(1, 64, 64), pictures(1, 64, 48))
    with pytest.raises(ValueError, match="expected alex or vgg"):
        Trunk("squeeze")  # type: ignore[arg-type]
