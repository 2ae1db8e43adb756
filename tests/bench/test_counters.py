"""FLOPs and bytes of known work; attention that keeps no square matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from stableanimator_cli.bench.counters import count_all
from stableanimator_cli.engine.memory.profile import FlopCounter, PeakMemoryMode, fused_attention


def test_a_product_is_counted_to_the_flop_and_the_byte():
    a, b = torch.empty(8, 16, device="meta"), torch.empty(16, 4, device="meta")
    found = count_all(lambda: (a @ b).relu())
    assert (found.flops, found.operators) == (2 * 8 * 16 * 4, 2)
    assert found.bytes == 2 * 8 * 4 * 4  # the product lives until its relu is there


def test_attention_on_meta_keeps_no_square_matrix():
    q = torch.empty(1, 2, 4096, 64, device="meta")
    found = count_all(lambda: F.scaled_dot_product_attention(q, q, q))
    assert found.flops == 4 * 2 * 4096**2 * 64
    assert found.bytes < 4 * q.numel() * 4 < 2 * 4096**2 * 4


def test_attention_elsewhere_is_left_alone():
    q = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    plain, mask = F.scaled_dot_product_attention(q, q, q), torch.eye(8, dtype=torch.bool)
    with fused_attention():
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q), plain)
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q, mask), q)
    assert F.scaled_dot_product_attention.__name__ != "fused"


def step(blocks: nn.ModuleList, pixels: torch.Tensor) -> None:
    for block in blocks:
        pixels = checkpoint(block, pixels, use_reentrant=False)
    pixels.square().sum().backward()


def test_flops_are_torchs_and_the_counter_keeps_nothing_alive():
    """torch's own counter follows modules and keeps graphs with checkpoints; face optimisation then held 4 times as
    much."""
    blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU()) for _ in range(8)).to("meta")
    pixels = torch.empty(1, 4, 32, 32, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as known:
        step(blocks, pixels)
    blocks.zero_grad()
    with PeakMemoryMode() as plain:
        step(blocks, pixels)
    blocks.zero_grad()
    found = count_all(lambda: step(blocks, pixels))
    assert found.flops == known.get_total_flops() > 0
    assert (found.bytes, found.operators) == (plain.peak, plain.operators)


def test_operators_made_of_others_are_counted_by_those():
    features, weight = torch.randn(3, 5), torch.randn(4, 5)
    with torch.inference_mode(), FlopCounter() as found:
        F.linear(features, weight)
    assert found.total == 2 * 3 * 5 * 4
