"""A CUDA card that is not here: tensors that are on it, as torch sees them, and compute on the CPU.

A tensor of the card next to one of the host is refused, as by the card, and autocast is the card's. So code that mixes
devices or dtypes fails here as it would there. Kernels, streams and memory are not simulated. torch's engine runs no
backward pass of a card in a build for the CPU: ``backward`` gives leaves random gradients.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("cuda:0")
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # a pointer per type of device
_CUDA, _META = 1, 14  # numbers of types of devices: the guard of meta does nothing
_COPIES = ("aten.copy_.default", "aten._to_copy.default")
_INDEXING = ("aten.index.Tensor", "aten.index_put_.default", "aten._index_put_impl_.default")
_INDICES = (torch.int64, torch.int32, torch.uint8, torch.bool)  # a card's tensor takes them from the host
_SCALARS = ("aten._local_scalar_dense.default", "aten.equal.default")
_hosts: dict[int, Tensor] = {}  # what is computed, by storage: ``.data = `` moves the storage to another object


class _OnCard(Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor) -> _OnCard:
        make: Any = Tensor._make_wrapper_subclass
        made = make(cls, host.shape, strides=host.stride(), dtype=host.dtype, device=CARD)
        _hosts[made.untyped_storage()._cdata] = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_on_card(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _on_host(value: Any) -> Any:
    if _is_on_card(value):
        return _hosts[value.untyped_storage()._cdata]
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, tensors = str(func), [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if not _is_on_card(tensor) and tensor.dim()]
    uses_card = any(map(_is_on_card, tensors))
    if name in _INDEXING and _is_on_card(tensors[0]):
        here = [tensor for tensor in here if tensor.dtype not in _INDICES]
    if uses_card and here and name not in _COPIES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
    if uses_card and name == "aten._fused_sdp_choice.default":
        return 0  # products and a softmax: the fused kernels are the CPU's
    result = func(*tree_map(_on_host, args), **tree_map(_on_host, kwargs))
    returns = func._schema.returns
    if len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        return kwargs.get("out", args[0])
    device = kwargs.get("device")
    if name in _SCALARS or not (uses_card if device is None else torch.device(device).type == "cuda"):
        return result.clone() if name in _COPIES else result
    return tree_map(lambda value: _OnCard(value) if isinstance(value, Tensor) else value, result)


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Functions that torch implements below its operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return func(*args, **kwargs | {"device": None}).to(CARD)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _without_lists(args[1]), *args[2:])
        return func(*args, **kwargs)


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _backward(output: Tensor, *_: object, **__: object) -> None:
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaf, gradient = node.variable, torch.randn_like(node.variable)
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        waiting += [following for following, _ in node.next_functions]


class _Nothing:
    """Streams, events and guards of devices."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextmanager
def pretended_card(memory: int = 24 << 30) -> Iterator[None]:
    """One card of compute capability 9.0 within it. Nothing of it may be used afterwards."""
    about = SimpleNamespace(name="pretended", total_memory=memory, major=9, minor=0)
    functions: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "_lazy_init": None,
        "get_device_name": about.name, "get_device_capability": (9, 0), "get_device_properties": about,
        "is_bf16_supported": True, "max_memory_allocated": 0, "reset_peak_memory_stats": None, "synchronize": None,
        "empty_cache": None, "set_device": None, "set_rng_state": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }  # fmt: skip
    with ExitStack() as stack:
        for name, value in functions.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=value))
        for name in ("device", "Stream", "Event", "stream", "current_stream"):
            stack.enter_context(mock.patch.object(torch.cuda, name, _Nothing))
        stack.enter_context(mock.patch.object(Tensor, "backward", _backward))
        stack.callback(_hosts.clear)
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, _GUARDS)
        stack.callback(guards.__setitem__, _CUDA, guards[_CUDA])
        guards[_CUDA] = guards[_META]
        stack.enter_context(_Operators())
        stack.enter_context(_Functions())
        yield
