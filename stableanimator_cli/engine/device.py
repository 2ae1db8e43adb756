"""Device and dtype of the networks, the networks on the device, and out-of-memory handling."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from stableanimator_cli.cards import Card
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.compilation import compiles_fp8, require_compiler
from stableanimator_cli.engine.group_offload import GroupOffload, outside_blocks, pack_blocks
from stableanimator_cli.engine.host_weights import HostCopy, named_tensors
from stableanimator_cli.errors import ConfigError, OutOfMemory, is_out_of_memory

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_NATIVE_BFLOAT16 = (8, 0)  # compute capability; older GPUs emulate it


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """The ``device`` and ``dtype`` of one engine, resolved, and the configuration that they were resolved from.

    ``config.device``, ``config.dtype`` and ``config.gpus`` are what was requested.
    """

    device: torch.device
    dtype: torch.dtype
    config: DeviceConfig = field(default_factory=DeviceConfig)
    card: Card | None = None

    @classmethod
    def of(cls, config: DeviceConfig, card: Card | None = None) -> DevicePlan:
        """Resolve ``auto``: the first of CUDA, MPS and CPU; bfloat16 if the GPU computes in it, float32 on a CPU.

        With ``card`` the plan is for that card, which need not be here: nothing can be run. Raises ``ConfigError`` for
        settings that this machine cannot run.
        """
        if card is not None:
            if config.device != "auto":
                raise ConfigError("--device", config.device, "no --device with --card", hint="leave one of the two out")
            automatic = torch.float16 if card.bf16 is None else torch.bfloat16
            dtype = automatic if config.dtype == "auto" else DTYPES[config.dtype]
            return cls(device=torch.device("cuda"), dtype=dtype, config=config, card=card)
        device = _device(config.device)
        if config.compile == "blocks":
            require_compiler(device.type)
        if config.cuda_graphs and device.type != "cuda":
            hint = f"{device.type} has no CUDA graphs: leave --cuda-graphs out"
            raise ConfigError("--cuda-graphs", True, "a CUDA card as --device", hint=hint)
        dtype = _automatic_dtype(device) if config.dtype == "auto" else DTYPES[config.dtype]
        if config.tf32 and (device.type != "cuda" or dtype != torch.float32):
            hint = f"this run computes in {dtype_name(dtype)} on {device.type}: leave --tf32 out"
            raise ConfigError("--tf32", True, "--dtype float32 and a CUDA card as --device", hint=hint)
        if config.compile == "blocks" and config.quantization == "fp8" and not compiles_fp8(device):
            expected = "a card of compute capability 8.9 or newer with --compile"
            raise ConfigError("--quantize", "fp8", expected, hint="use --quantize int8, or leave --compile out")
        return cls(device=device, dtype=dtype, config=config)

    def describe(self, *, offload: bool = True) -> str:
        """Device, dtype and settings that change the output's bytes; ``offload`` is exact and can be left out.

        Records contain this text: replays and resumed runs compare it.
        """
        config = self.config
        name = self.card.name if self.card else device_name(self.device)
        settings = {
            "TF32": config.tf32,
            f"{config.quantization} weights": config.quantization != "plain",
            "compiled blocks": config.compile == "blocks",
            "CUDA graphs": config.cuda_graphs,
            "channels last": config.channels_last,
            "swapping networks": offload and config.offload == "model",
            "blocks in turn": offload and config.offload == "group",
        }
        return ", ".join([name, dtype_name(self.dtype), *(text for text, used in settings.items() if used)])

    def advice(self) -> str:
        """What a plan adds to ``describe``: the type that computes faster here, if none was requested."""
        slow = self.device.type == "cpu" and self.config.dtype == "auto" and has_bfloat16(self.device)
        return "; this processor also computes in bfloat16, which is faster: --dtype bfloat16" if slow else ""


def device_name(device: torch.device) -> str:
    """The model of a CUDA card, else the type of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device", name, "a device of this machine", hint="this torch sees no CUDA card: use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError("--device", name, f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device", name, "a device of this machine", hint="this torch sees no MPS device: use cpu")
    return device


def _automatic_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if has_bfloat16(device) else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware; where it is emulated, float32 is faster.

    ``torch.cuda.is_bf16_supported`` also counts emulation. False on a CPU if this torch cannot say.
    """
    if device.type == "cpu":
        return any(_cpu_bfloat16().values())
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _NATIVE_BFLOAT16


def _cpu_bfloat16() -> dict[str, bool]:
    """The processor's instructions for bfloat16, by name; empty if this torch does not know the processor."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, object])()
    names = ("avx512_bf16", "amx_bf16", "bf16")  # the last one is ARM's
    return {name: bool(capabilities[name]) for name in names if name in capabilities}


def emulation_warning(device: torch.device, dtype: torch.dtype) -> str | None:
    """A warning if a CPU is known to compute ``dtype`` in software."""
    found = _cpu_bfloat16()
    if device.type != "cpu" or dtype != torch.bfloat16 or not found or any(found.values()):
        return None
    return "this processor computes bfloat16 in software, several times slower than float32: use --dtype float32"


_PRECISION_LOCK = threading.Lock()
_PRECISIONS: dict[object, tuple[bool, bool]] = {}
"""``allow_tf32`` of products and convolutions: before all blocks (None), and in those that are open."""


@contextmanager
def float32_precision(*, tf32: bool) -> Iterator[None]:
    """Compute float32 products and convolutions on CUDA GPUs exactly, or in TF32 (ten bits of mantissa).

    Torch's default is TF32 for convolutions alone. This sets ``allow_tf32``: torch's compiler and ``cudnn.flags`` read
    it and refuse the newer settings. They hold for all threads: blocks that overlap, as of a plan and a run of
    ``sa app``, may end in any order, and the last one that is open counts.
    """
    matmul, cudnn = cast(Any, torch.backends.cuda.matmul), cast(Any, torch.backends.cudnn)
    block = object()
    with _PRECISION_LOCK:
        if not _PRECISIONS:
            _PRECISIONS[None] = matmul.allow_tf32, cudnn.allow_tf32
        _PRECISIONS[block] = tf32, tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        with _PRECISION_LOCK:
            del _PRECISIONS[block]
            matmul.allow_tf32, cudnn.allow_tf32 = next(reversed(_PRECISIONS.values()))
            if len(_PRECISIONS) == 1:
                _PRECISIONS.clear()


@contextmanager
def memory_guard(doing: str, hint: str) -> Iterator[None]:
    """Turn any allocator's out-of-memory error into ``OutOfMemory`` with the current work and a remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory while {doing}", hint=hint) from error


def synchronize(device: torch.device) -> None:
    """Wait until the device has computed what was launched: a CUDA GPU returns from calls before that."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory instead of returning it to the system after every step.

    A step on a CPU frees and allocates the same gigabytes again, with one page fault per page (13 times more faults in
    a step of the puppet VAE). Without mappings of their own, which glibc always returns, large tensors stay too. Only
    glibc on Linux is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((-1, 2**31 - 1), (-2, 64 * 2**20), (-4, 0)):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX
            mallopt(parameter, value)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes: ``host`` resident size of this process so far, and ``device`` as torch's CUDA allocator counts since
    ``reset_peak_memory``."""
    peak: dict[str, int] = {}
    if sys.platform != "win32":
        import resource  # not on Windows

        peak["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak


def reset_peak_memory(device: torch.device) -> None:
    """Start to count the peak of ``device`` from what is on it now."""
    if device.type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats(device)


class Networks:
    """Networks by name, loaded on first use; ``resident`` selects those on the device.

    With offloading, all weights stay in host memory (``host_weights``) and only resident networks have a copy on the
    device. Otherwise loaded networks stay on the device.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], nn.Module]], plan: DevicePlan) -> None:
        self._loaders = dict(loaders)
        self._device = plan.device
        self._offload = plan.config.offload
        self._loaded: dict[str, nn.Module] = {}
        self._copies: dict[str, HostCopy] = {}
        self._resident: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:  # each name has its own class of nn.Module
        if name not in self._loaded:
            self._loaded[name] = self._loaders[name]()
        return self._loaded[name]

    def provide(self, name: str, loader: Callable[[], nn.Module]) -> None:
        """Add a network that the model folder does not list."""
        self._loaders.setdefault(name, loader)

    @contextmanager
    def resident(self, *names: str) -> Iterator[None]:
        """Load the named networks and move them to the device; on exit restore those of the enclosing ``with``."""
        before, self._resident = self._resident, names
        self._move(names)
        try:
            yield
        finally:
            self._resident = before
            if self._offload != "none" and before:
                self._move(before)

    def _move(self, names: tuple[str, ...]) -> None:
        if self._offload != "none":
            for name in self._loaded:
                if name not in names:
                    self._leave(name)
            self._release()
        for name in names:
            if getattr(self[name], "places_itself", False):  # diffusers' group offloading
                continue
            if self._keeps_host_copy(name):
                if name not in self._copies:
                    self._copies[name] = self._host_copy(name)
                self._copies[name].up()
            else:
                self[name].to(self._device)

    def _leave(self, name: str) -> None:
        network = self._loaded[name]
        if getattr(network, "places_itself", False):
            return
        if name not in self._copies:
            network.to("cpu")
            return
        self._copies[name].down()
        if isinstance(run := getattr(network, "run", None), GroupOffload):
            run.release()

    def _keeps_host_copy(self, name: str) -> bool:
        """Apple's host and device share their memory, so a copy would use it twice there."""
        by_groups = self._offload == "group" and name == "unet"
        return by_groups or (self._offload != "none" and self._device.type != "mps")

    def _host_copy(self, name: str) -> HostCopy:
        """A copy of all weights; with group offload without the UNet's blocks, which ``GroupOffload`` moves."""
        network = self[name]
        if name != "unet" or self._offload != "group":
            return HostCopy(network, self._device)
        moved = {id(tensor) for tensor in outside_blocks(network)}
        if self._device.type == "cuda":
            pack_blocks(network, pin=True)
        names = [key for key, tensor in named_tensors(network).items() if id(tensor) in moved]
        return HostCopy(network, self._device, names)

    def close(self) -> None:
        self._loaded.clear()
        self._copies.clear()
        self._release()

    def _release(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int:
    """Bytes of memory of a CUDA card, else of this machine or the control group that limits it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total
