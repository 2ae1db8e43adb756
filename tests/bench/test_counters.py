"""FLOPs and bytes of known work; attention that keeps no square matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stableanimator_cli.bench.counters import counted, flash_attention


def test_a_product_is_counted_to_the_flop_and_the_byte():
    a, b = torch.empty(8, 16, device="meta"), torch.empty(16, 4, device="meta")
    found = counted(lambda: (a @ b).relu())
    assert (found.flops, found.operators) == (2 * 8 * 16 * 4, 2)
    assert found.bytes == 2 * 8 * 4 * 4  # the product lives until its relu is there


def test_attention_on_meta_keeps_no_square_matrix():
    q = torch.empty(1, 2, 4096, 64, device="meta")
    found = counted(lambda: F.scaled_dot_product_attention(q, q, q))
    assert found.flops == 4 * 2 * 4096**2 * 64
    assert found.bytes < 4 * q.numel() * 4 < 2 * 4096**2 * 4


def test_attention_elsewhere_is_left_alone():
    q = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    plain, mask = F.scaled_dot_product_attention(q, q, q), torch.eye(8, dtype=torch.bool)
    with flash_attention():
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q), plain)
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q, mask), q)
    assert F.scaled_dot_product_attention.__name__ != "fused"
