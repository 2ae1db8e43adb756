"""Compiled blocks: the same answers, one graph for all blocks of a shape, and nothing that falls back unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from stableanimator_cli.bench.networks import random_weights
from stableanimator_cli.engine.weights import fill
from stableanimator_cli.nets import unet as nets_unet
from stableanimator_cli.nets.compiled import CompiledBlocks
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.memory_format import set_channels_last
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.nets.unet_blocks import call_block
from tests.random_model import TINY


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build() -> AnimationUNet:
    return AnimationUNet(**TINY["unet"])


@pytest.fixture
def unet() -> AnimationUNet:
    return fill(build, random_weights(build), torch.float32, Path("random"))  # type: ignore[return-value]


def call(unet: AnimationUNet) -> Tensor:
    width = unet.config["cross_attention_dim"]
    context = unet.prepare(Context(noise(2, 1, 1, width), noise(3, 1, unet.id_tokens, width)))
    return unet(noise(1, 1, 2, 8, 8, 8), 0.5, context, torch.tensor([[6.0, 127.0, 0.02]]), noise(4, 2, 32, 8, 8))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@torch.no_grad()
def test_blocks_of_one_shape_share_their_code(unet: AnimationUNet):
    """Whose weights differ, and whose cross-attention was prepared for them alone."""
    torch._dynamo.reset()
    blocks = [unet.get_submodule(f"up_blocks.1.attentions.{n}.transformer_blocks.0") for n in range(2)]
    width = unet.config["cross_attention_dim"]
    context = unet.prepare(Context(noise(2, 1, 1, width), noise(3, 1, unet.id_tokens, width)))
    run, before, answers = CompiledBlocks("eager"), graphs(), []
    for block in blocks:
        given = (block, noise(5, 2, 64, 32), *nets_unet.block_context(context, block), 2, 1)
        answers.append(run(nets_unet._spatial_block, *given))
        assert torch.allclose(answers[-1], call_block(nets_unet._spatial_block, *given), atol=1e-6)
    assert graphs() == before + 1
    assert not torch.allclose(*answers, atol=0.1)


@torch.no_grad()
def test_compiled_code_of_this_machine_agrees(unet: AnimationUNet):
    """One feed-forward layer through the compiler that is here; a whole network would take minutes."""
    block = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0")
    given = (block.norm3, block.ff, noise(6, 2, 16, 32), 1)
    found = CompiledBlocks()(nets_unet.feed_forward, *given)
    expected = call_block(nets_unet.feed_forward, *given)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_channels_last_changes_the_order_alone(unet: AnimationUNet):
    plain = call(unet)
    set_channels_last(unet)
    kernel = unet.get_parameter("down_blocks.0.resnets.0.spatial_res_block.conv1.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    assert torch.allclose(call(unet), plain, atol=1e-5)
    assert set_channels_last(unet, enabled=False).conv_in.weight.is_contiguous()
