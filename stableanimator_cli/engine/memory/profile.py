"""Counting, not timing: bytes alive at once and FLOPs of a piece of work, the same on every machine.

On the ``meta`` device nothing is computed and nothing allocated, so a network of any size can be counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from stableanimator_cli.engine.throughput import Call, call_of
from stableanimator_cli.nets import time_conv


class PeakMemoryMode(TorchDispatchMode):
    """Within it each storage that an operator makes counts from then until nobody holds it, autograd included.

    ``peak`` is the most that was alive at once, in bytes; what was made before counts nothing. Views and results
    written in place have the storage of another and count once. ``operators`` are those that made something.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
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
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.alive -= size


class FlopCounter(TorchDispatchMode):
    """Within it ``total`` grows by the FLOPs of each operator, two for a multiplication and an addition; ``calls`` says
    how many of them each operator has at each shape.

    The formulas are torch's. Its own counter also follows modules, through hooks that keep every graph with
    checkpoints alive until it is left; this one lets go of what the work lets go of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # what an operator is made of may have a formula
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        work = formula(*args, **kwargs, out_val=result)
        self.total += work
        call = call_of(func, args, kwargs)
        if call is not None:
            self.calls[call] += work
        return result


def alive_bytes(run: Callable[[], object], *, on_cpu: bool = False) -> int:
    """Most bytes that ``run`` on ``meta`` tensors would hold at once beside what was there before: as a card with a
    fused attention kernel runs it, or as a CPU does (``time_conv``; attention is fused there too)."""
    with fused_attention(), _as_a_cpu(on_cpu), PeakMemoryMode() as counted:
        run()
    return counted.peak


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within it attention on the ``meta`` device is the fused kernel that a card runs, which keeps no square matrix.

    Left alone, torch takes the ``meta`` device for one without such a kernel and counts one score a pair of positions.
    """
    plain = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **named: Any):
        if query.device.type != "meta" or attn_mask is not None:
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
        time_conv.MATMUL_DEVICES.add("meta")
    try:
        yield
    finally:
        time_conv.MATMUL_DEVICES.discard("meta")
