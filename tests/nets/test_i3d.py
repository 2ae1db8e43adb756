"""I3D and the 3D ResNet read the published names and compute what their papers say."""

from __future__ import annotations

import re

import pytest
import torch

from stableanimator_cli.nets.i3d import I3D, rename_weights
from stableanimator_cli.nets.resnet3d import ResNet3D, extract_weights
from tests.nets import metric_nets


@pytest.fixture(scope="module")
def tensors() -> metric_nets.Tensors:
    return metric_nets.i3d()


def filled(tensors: metric_nets.Tensors) -> I3D:
    net = I3D()
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False)


def clips(count: int, frames: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, frames, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def as_a_port(tensors: metric_nets.Tensors) -> metric_nets.Tensors:
    """The same weights as hassony2's port names them, without what old torch did not write."""
    branches = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1", "b2a": "branch_2.0", "b2b": "branch_2.1"}
    branches["b3b"] = "branch_3.1"
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        parts = name.split(".")
        parts[0] = "conv3d_0c_1x1" if parts[0] == "logits" else re.sub("^[CM]", lambda m: m[0].lower(), parts[0])
        made[".".join({"bn": "batch3d", **branches}.get(part, part) for part in parts)] = tensor
    return made


def test_names_and_shapes_are_the_recorded_ones(tensors):
    with torch.device("meta"):
        net = I3D()
    assert {name: t.shape for name, t in net.state_dict().items()} == {name: t.shape for name, t in tensors.items()}
    assert len(tensors) == 344
    assert sum(t.numel() for t in tensors.values()) == 12_711_881


@pytest.mark.parametrize("frames", [3, 4])
def test_it_agrees_with_a_forward_pass_written_by_hand(tensors, frames):
    x = clips(1, frames, 224)
    expected = metric_nets.i3d_by_hand(tensors, x)
    assert expected.shape == (1, 400)
    assert expected.std() > 0.05
    assert torch.allclose(filled(tensors)(x), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_both_layouts_and_old_files_become_the_same(tensors):
    old = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    assert len(old) == len(as_a_port(tensors)) == 287
    for layout in (tensors, old, as_a_port(tensors)):
        found = rename_weights(layout)
        assert set(found) == set(tensors)
        assert all(found[name] is tensors[name] for name in old)


def test_unknown_names_are_kept_to_be_complained_of():
    odd = ("Mixed_9z.b0.conv3d.weight", "mixed_3b.branch_7.conv3d")
    assert list(rename_weights(dict.fromkeys(odd, torch.zeros(1)))) == [odd[0], "Mixed_3b.branch_7.conv3d"]


@pytest.mark.parametrize("shape", [(1, 3, 16, 112, 112), (1, 1, 16, 224, 224), (3, 16, 224, 224), (1, 3, 0, 224, 224)])
def test_other_sizes_are_refused(shape):
    with torch.device("meta"):
        net = I3D()
    with pytest.raises(ValueError, match=r"\[b,3,t,224,224\]"):
        net(torch.zeros(shape, device="meta"))


def test_the_3d_resnet_agrees_with_a_forward_pass_written_by_hand():
    tensors = metric_nets.resnet3d()
    net = ResNet3D()
    net.load_state_dict(extract_weights({"epoch": 3, "state_dict": tensors}))
    net.eval().requires_grad_(False)
    x = clips(1, 8, 48) * 60
    expected = metric_nets.resnet3d_by_hand(tensors, x)
    assert expected.shape == (1, 2048)
    assert expected.std() > 0.05
    assert torch.allclose(net(x), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_the_checkpoint_is_unwrapped_or_taken_as_it_is():
    tensors = metric_nets.resnet3d()
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    for given in ({"state_dict": tensors, "arch": "resnet-50"}, tensors, bare):
        found = extract_weights(given)
        assert not any(name.startswith(("module.", "fc.")) for name in found)
        assert set(found) == set(names_of_the_resnet())


def names_of_the_resnet() -> list[str]:
    with torch.device("meta"):
        return list(ResNet3D().state_dict())
