"""Counting, not timing: FLOPs, bytes alive at once and operators of a piece of work, the same on every machine.

On the ``meta`` device nothing is computed and nothing allocated, so a network of any size can be counted.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Within it each storage that an operator makes counts from then until nobody holds it, autograd included.

    ``peak`` is the most that was alive at once, in bytes; what was made before counts nothing. Views and results
    written in place have the storage of another and count once. ``operators`` are those that made something.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.operators = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        made = False
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._known and id(storage) not in given:
                    self._count(storage)
                    made = True
        self.operators += made
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size


@dataclass(frozen=True, slots=True)
class Counted:
    """``flops`` (two for a multiplication and addition), most ``bytes`` alive at once, and ``operators``."""

    flops: int
    bytes: int
    operators: int


def flops(run: Callable[[], object]) -> int:
    """FLOPs of one run."""
    with FlopCounterMode(display=False) as found, flash_attention():
        run()
    return found.get_total_flops()


def alive(run: Callable[[], object]) -> LiveBytes:
    """Bytes and operators of one run."""
    with LiveBytes() as found, flash_attention():
        run()
    return found


def counted(run: Callable[[], object]) -> Counted:
    """Run twice, once for each counter: under the FLOP counter a graph with checkpoints holds on to more."""
    live = alive(run)
    return Counted(flops(run), live.peak, live.operators)


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """Within it attention on the ``meta`` device is the fused kernel that a card runs, which keeps no square matrix.

    Left alone, torch takes the ``meta`` device for one without such a kernel and counts one score a pair of positions.
    """
    plain = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **named: Any):
        if query.device.type != "meta" or attn_mask is not None:
            return plain(query, key, value, attn_mask, *more, **named)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    with mock.patch.object(F, "scaled_dot_product_attention", fused):
        yield
