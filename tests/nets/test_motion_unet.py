"""The UNet of Stable Diffusion with motion modules: against diffusers' own, and what the appearance encoder adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import Tensor

from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.id_adapter import IDAdapter
from stableanimator_cli.nets.motion_unet import MotionUNet

SHAPES: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
}
CONFIG: dict[str, Any] = {
    **SHAPES,
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "motion_max_seq_length": 8,
}
FRAMES = 3


def filled(network: Any, seed: int = 0) -> Any:
    """Random weights in every layer: motion modules start at zero otherwise."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> MotionUNet:
    return filled(MotionUNet(**CONFIG))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(batch: int = 1, size: tuple[int, int] = (8, 8), frames: int = FRAMES) -> Tensor:
    reference = noise(batch, 1, 4, *size, seed=2).expand(-1, frames, -1, -1, -1)
    return torch.cat([noise(batch, frames, 4, *size), reference], dim=2)


def context(batch: int = 1, face: bool = True) -> Context:
    return Context(noise(batch, 1, 48, seed=3), noise(batch, 4, 48, seed=4) if face else None)


def test_without_reference_pose_and_face_it_is_diffusers_unet(unet):
    stock = UNetMotionModel(**CONFIG)
    own = {name: tensor for name, tensor in unet.state_dict().items() if not name.startswith("appearance.")}
    stock.load_state_dict({name: tensor for name, tensor in own.items() if ".id_to_" not in name})
    x, tokens = noise(2, FRAMES, 4, 6, 10), noise(2, 1, 48, seed=3)
    expected = stock(
        x.transpose(1, 2), torch.tensor([421, 30]), tokens.repeat_interleave(FRAMES, 0), return_dict=False
    )[0]
    actual = unet.denoise(x, torch.tensor([421.0, 30.0]), Context(tokens, None), None, {})[0]
    torch.testing.assert_close(actual, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_weights_have_the_published_names(unet):
    names = {name for name in unet.state_dict() if not name.startswith("appearance.") and ".id_to_" not in name}
    image = UNet2DConditionModel(
        **SHAPES,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )
    motion = MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=8,
        motion_max_seq_length=8,
    )  # fmt: skip
    assert names == {*image.state_dict(), *motion.state_dict()}
    appearance = {name.removeprefix("appearance.") for name in unet.state_dict() if name.startswith("appearance.")}
    assert appearance < set(image.state_dict())
    assert all("up_blocks.1" in name or "conv_" in name for name in set(image.state_dict()) - appearance)


def test_the_reference_reaches_every_frame_and_only_by_the_appearance_encoder(unet):
    changed = sample()
    changed[:, :, 4:] += 0.5
    first, second = (unet(x, 500.0, context()) for x in (sample(), changed))
    assert ((first - second).abs().amax(dim=(0, 2, 3, 4)) > 1e-4).all()
    only_frame_0 = sample()
    only_frame_0[:, 1:, 4:] = 7.0  # the reference is one image, repeated
    assert torch.equal(unet(only_frame_0, 500.0, context()), first)


def test_a_batch_equals_its_samples(unet):
    x, inputs = sample(2, (6, 6)), context(2)
    pose = noise(2 * FRAMES, 32, 6, 6, seed=6)
    both = unet(x, torch.tensor([10.0, 900.0]), inputs, None, pose)
    for index, step in enumerate((10.0, 900.0)):
        part = slice(index, index + 1)
        one = unet(
            x[part], step, Context(inputs.image[part], inputs.face[part]), None,
            pose[index * FRAMES : (index + 1) * FRAMES],
        )  # fmt: skip
        torch.testing.assert_close(both[part], one, rtol=1e-4, atol=1e-5)


def test_face_tokens_enter_spatial_attention_alone(unet):
    attentions = unet.spatial_cross_attentions()
    assert len(attentions) == 4  # one down, one middle, two up
    assert all(isinstance(attention.processor, IDAdapter) for attention in attentions.values())
    assert not any("motion_modules" in name or "appearance" in name for name in attentions)
    first, second = (unet(sample(), 500.0, context(face=face)) for face in (True, False))
    assert not torch.allclose(first, second, atol=1e-4)


def test_prepared_attention_is_equal(unet):
    for face in (True, False):
        plain, prepared = context(face=face), unet.prepare(context(face=face))
        assert prepared.layers
        torch.testing.assert_close(unet(sample(), 500.0, prepared), unet(sample(), 500.0, plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_cached_deep_features_of_the_same_call_are_exact(unet, layers, size):
    x, inputs = sample(size=size), context()
    output, deep = unet.forward_caching(x, 500.0, inputs, layers=layers)
    torch.testing.assert_close(output, unet(x, 500.0, inputs))
    again = unet.forward_cached(x, 500.0, inputs, layers=layers, deep=deep)
    torch.testing.assert_close(again, output)
    assert unet.num_up_layers == 4


def test_images_alone_skip_the_motion_modules(unet):
    together = unet(sample(), 500.0, context(), image_only=True)
    x = sample()
    for frame in range(FRAMES):
        alone = unet(x[:, frame : frame + 1], 500.0, context(), image_only=True)
        torch.testing.assert_close(together[:, frame : frame + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, unet(sample(), 500.0, context()), atol=1e-3)


def test_motion_modules_of_a_new_network_change_nothing():
    fresh = filled(MotionUNet(**CONFIG))
    fresh.zero_temporal_branches()
    torch.testing.assert_close(fresh(sample(), 5.0, context()), fresh(sample(), 5.0, context(), image_only=True))


@pytest.mark.parametrize("checkpointing", ["off", "diffusers", "blocks"])
def test_every_parameter_gets_a_gradient_whatever_is_recomputed(checkpointing):
    network = filled(MotionUNet(**CONFIG)).requires_grad_(True)
    network.checkpointing = checkpointing
    network(sample(), 500.0, context(), None, noise(FRAMES, 32, 8, 8)).square().mean().backward()
    # one image token: its attention weight is 1 whatever the query and the key are
    without = {name for name, value in network.named_parameters() if value.grad is None}
    assert without == set()


def test_chunks_of_feed_forward_layers_are_equal(unet):
    expected = unet(sample(), 500.0, context())
    unet.ff_chunks = 4
    try:
        with torch.no_grad():
            torch.testing.assert_close(unet(sample(), 500.0, context()), expected, rtol=1e-4, atol=1e-5)
    finally:
        unet.ff_chunks = 1
