"""Bytes alive at once, counted on the ``meta`` device, where nothing is computed and nothing allocated."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from stableanimator_cli.nets import time_conv


class AliveBytes(TorchDispatchMode):
    """Within it each storage that an operator makes counts from then until nobody holds it; ``peak`` is the most at
    once, in bytes. Tensors made before count nothing; views share a storage and count once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        before = {id(storage) for storage in given}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._known and id(storage) not in before:
                    self._known[storage] = storage.nbytes()
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return result

    def _gone(self, size: int) -> None:
        self.alive -= size


def alive_bytes(run: Callable[[], object], *, on_cpu: bool = False) -> int:
    """Most bytes that ``run`` on ``meta`` tensors would hold at once beside what was there before: as a card with a
    fused attention kernel runs it, or as a CPU does (``time_conv``; attention is fused there too)."""
    with _fused_attention(), _as_a_cpu(on_cpu), AliveBytes() as counted:
        run()
    return counted.peak


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Within it attention on ``meta`` tensors keeps no square matrix."""
    plain = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **named: Any):
        if attn_mask is not None:
            return plain(query, key, value, attn_mask, *more, **named)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


@contextmanager
def _as_a_cpu(wanted: bool) -> Iterator[None]:
    """Within it temporal convolutions on ``meta`` tensors are the products that a CPU computes."""
    if wanted:
        time_conv.PRODUCTS.add("meta")
    try:
        yield
    finally:
        time_conv.PRODUCTS.discard("meta")
