"""Count peak memory and FLOPs of a computation, with the same result on every machine.

On the ``meta`` device nothing is computed or allocated, so a network of any size can be counted.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from stableanimator_cli.engine.memory.peak_mode import PeakMemoryMode
from stableanimator_cli.engine.throughput import Call, call_of
from stableanimator_cli.nets import time_conv, unet_blocks
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.id_adapter import PreparedCrossAttention
from stableanimator_cli.nets.unet import AnimationUNet

_PATCHES = threading.RLock()
"""Held while a count replaces functions and settings, which hold for all threads: ``sa app`` plans while it renders."""


def _add_formulas() -> None:
    """Give torch's table the formulas that it lacks: the fused attention of CPUs, which cannot be decomposed."""
    formulas = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
        ),
    }
    for operator, formula in formulas.items():  # of shapes
        if operator not in flop_registry:
            register_flop_formula(operator)(formula)


_add_formulas()


class FlopCounter(TorchDispatchMode):
    """Count FLOPs in ``total``, two per multiply-add, and in ``calls`` by operator and shape.

    The formulas are torch's. Its own counter also tracks modules, with hooks that keep the graphs of checkpointed
    blocks alive; this one frees what the computation frees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # the operators of its decomposition may have formulas
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        work = formula(*args, **kwargs, out_val=result)
        self.total += work
        call = call_of(func, args, kwargs)
        if call is not None:
            self.calls[call] += work
        return result


def peak_bytes(run: Callable[[], object], *, on_cpu: bool = False) -> int:
    """Maximum bytes that ``run`` on ``meta`` tensors allocates at once, on a GPU with fused attention or on a CPU."""
    with fused_attention(), _like_a_cpu(on_cpu), PeakMemoryMode() as counter:
        run()
    return counter.peak


@contextmanager
def fused_attention() -> Iterator[None]:
    """Run attention on the ``meta`` device as the fused kernel, which allocates no matrix of scores.

    By default torch uses the unfused attention on ``meta``.
    """

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **named: Any):
        if query.device.type != "meta" or attn_mask is not None:
            return plain(query, key, value, attn_mask, *more, **named)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    with _PATCHES:
        plain = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = fused
        try:
            yield
        finally:
            F.scaled_dot_product_attention = plain


@contextmanager
def _like_a_cpu(enabled: bool) -> Iterator[None]:
    """Compute ``meta`` tensors as a CPU would: temporal convolutions as products, feed-forward layers in chunks."""
    sets = (time_conv.MATMUL_DEVICES, unet_blocks.CACHED_DEVICES) if enabled else ()
    for devices in sets:
        devices.add("meta")
    try:
        yield
    finally:
        for devices in sets:
            devices.discard("meta")


def prepare_context(unet: AnimationUNet, image: Tensor, face: Tensor, regions: Tensor | None = None) -> Context:
    """``AnimationUNet.prepare`` for a valid face without reading values, for the ``meta`` device."""
    with torch.no_grad():
        layers: dict[nn.Module, PreparedCrossAttention] = dict(unet.prepare(Context(image, None)).layers)
        attentions: dict[str, Any] = dict(unet.spatial_cross_attentions())
        for attn in attentions.values():
            keys, values = attn.processor.project_face(face)
            layers[attn] = PreparedCrossAttention(base=attn.to_v(image), keys=keys, values=values)
    return Context(image, face, layers, regions=regions)
