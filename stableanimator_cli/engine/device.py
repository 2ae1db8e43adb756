"""Where and in what type networks run, which of them are on the device now, and what running out of memory means."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stableanimator_cli.config import DeviceConfig
from stableanimator_cli.engine.compiling import require_compiler
from stableanimator_cli.engine.turns import move_all_but_blocks
from stableanimator_cli.errors import ConfigError, OutOfMemory
from stableanimator_cli.nets.quantized import Store

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# of allocators that raise a plain RuntimeError: the host's, Apple's MPS, and CUDA outside of torch's own allocator
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "failed to allocate", "out of memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """Device, weight type and offload policy of one engine; ``pose_budget`` bytes of PoseNet features are kept, and
    the UNet's feed-forward layers run in ``pieces``. ``weights`` is how the UNet's lie in memory (``quantized``).
    With ``groups`` its blocks take turns on the device (``turns``); they are ``compiled``, or its calls are recorded as
    CUDA ``graphs``. ``channels_last``: how kernels of convolutions lie in memory (``memory_order``)."""

    device: torch.device
    dtype: torch.dtype
    swap: bool = False
    pose_budget: int = 1 << 30
    pieces: int = 1
    weights: Store = "plain"
    groups: bool = False
    compiled: bool = False
    graphs: bool = False
    channels_last: bool = False

    @classmethod
    def of(cls, config: DeviceConfig) -> DevicePlan:
        """Resolve ``auto``: the first of CUDA, Apple's MPS, CPU; bfloat16 where the card has it, float32 on a CPU."""
        device = _device(config.device)
        if config.compile == "blocks":
            require_compiler(device.type)
        if config.cuda_graphs and device.type != "cuda":
            hint = f"this run is on {device.type}, which has none: leave it out"
            raise ConfigError("--cuda-graphs", True, "a CUDA card as --device", hint=hint)
        return cls(
            device=device,
            dtype=_automatic_dtype(device) if config.dtype == "auto" else DTYPES[config.dtype],
            swap=config.offload != "none",
            pose_budget=config.pose_budget_mb << 20,
            pieces=config.pieces,
            weights=config.weights,
            groups=config.offload == "groups",
            compiled=config.compile == "blocks",
            graphs=config.cuda_graphs,
            channels_last=config.channels_last,
        )

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        told = {
            f"{self.weights} weights": self.weights != "plain",
            "compiled blocks": self.compiled,
            "CUDA graphs": self.graphs,
            "channels last": self.channels_last,
            "swapping networks": self.swap and not self.groups,
            "blocks in turn": self.groups,
        }
        return ", ".join([name, str(self.dtype).removeprefix("torch."), *(words for words, on in told.items() if on)])


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
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


@contextmanager
def memory_guard(doing: str, hint: str) -> Iterator[None]:
    """Turn any allocator's out-of-memory into ``OutOfMemory`` that says what was being done and what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"out of memory while {doing}", hint=hint) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise OutOfMemory(f"out of memory while {doing}", hint=hint) from error


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free instead of giving it back to the system after every step.

    A step on a CPU frees and asks for the same gigabytes again, and the system hands out pages one fault at a time
    (13 times more faults in a step of the puppet VAE). GNU's library on Linux only; elsewhere nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((-1, 2**31 - 1), (-2, 64 * 2**20), (-3, 32 * 2**20)):  # M_TRIM_, TOP_PAD, M_MMAP_
            mallopt(parameter, value)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most bytes used so far: ``host`` resident size of this process, ``device`` as torch's allocator counts it."""
    peak: dict[str, int] = {}
    if sys.platform != "win32":
        import resource  # not on Windows

        peak["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak


class Networks:
    """Networks by name, loaded when first wanted; ``resident`` says which are on the device now.

    With ``plan.swap`` only the named ones stay on the device, the others wait in host memory; otherwise what was loaded
    stays.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], nn.Module]], plan: DevicePlan) -> None:
        self._loaders = dict(loaders)
        self._plan = plan
        self._loaded: dict[str, nn.Module] = {}
        self._resident: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:  # each name has its own class of nn.Module, which the caller knows
        if name not in self._loaded:
            self._loaded[name] = self._loaders[name]()
        return self._loaded[name]

    def provide(self, name: str, loader: Callable[[], nn.Module]) -> None:
        """Add a network that the model folder does not list by itself."""
        self._loaders.setdefault(name, loader)

    @contextmanager
    def resident(self, *names: str) -> Iterator[None]:
        """Within it the named networks are loaded and on the device; after it, those of the ``with`` around it."""
        before, self._resident = self._resident, names
        self._move(names)
        try:
            yield
        finally:
            self._resident = before
            if self._plan.swap and before:
                self._move(before)

    def _move(self, names: tuple[str, ...]) -> None:
        if self._plan.swap:
            for name, network in self._loaded.items():
                if name not in names:
                    network.to("cpu")
            self._release()
        for name in names:
            if self._plan.groups and name == "unet":
                move_all_but_blocks(self[name], self._plan.device)
            else:
                self[name].to(self._plan.device)

    def close(self) -> None:
        self._loaded.clear()
        self._release()

    def _release(self) -> None:
        gc.collect()
        if self._plan.device.type == "cuda":
            torch.cuda.empty_cache()
