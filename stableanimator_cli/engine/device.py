"""Where and in what type networks run, which of them are on the device now, and what running out of memory means."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.compilation import compiles_fp8, require_compiler
from stableanimator_cli.engine.group_offload import GroupOffload, pack_blocks, staying
from stableanimator_cli.engine.host_weights import HostCopy, named_tensors
from stableanimator_cli.errors import ConfigError, OutOfMemory, is_out_of_memory
from stableanimator_cli.nets.quantized import Quantization

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_NATIVE_BFLOAT16 = (8, 0)  # compute capability from which on a CUDA card computes in it; older ones emulate it


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """Device, weight type and offload policy of one engine; ``pose_budget`` bytes of PoseNet features are kept, and
    the UNet's feed-forward layers run in ``pieces``. ``weights`` is how the UNet's lie in memory (``quantized``).
    With ``groups`` its blocks take turns on the device (``turns``); they are ``compiled``, or its calls are recorded as
    CUDA ``graphs``. ``channels_last``: how kernels of convolutions lie in memory (``memory_order``). ``tf32``: float32
    products and convolutions are computed in TF32, which has ten bits of mantissa."""

    device: torch.device
    dtype: torch.dtype
    swap: bool = False
    pose_budget: int = 1 << 30
    pieces: int = 1
    weights: Quantization = "plain"
    groups: bool = False
    compiled: bool = False
    graphs: bool = False
    channels_last: bool = False
    tf32: bool = False

    @classmethod
    def of(cls, config: DeviceConfig) -> DevicePlan:
        """Resolve ``auto``: the first of CUDA, Apple's MPS, CPU; bfloat16 where the card has it, float32 on a CPU."""
        device = _device(config.device)
        if config.compile == "blocks":
            require_compiler(device.type)
        if config.cuda_graphs and device.type != "cuda":
            hint = f"this run is on {device.type}, which has none: leave it out"
            raise ConfigError("--cuda-graphs", True, "a CUDA card as --device", hint=hint)
        dtype = _automatic_dtype(device) if config.dtype == "auto" else DTYPES[config.dtype]
        if config.tf32 and (device.type != "cuda" or dtype != torch.float32):
            found = f"this run is in {str(dtype).removeprefix('torch.')} on {device.type}: leave it out"
            raise ConfigError("--tf32", True, "--dtype float32 and a CUDA card as --device", hint=found)
        if config.compile == "blocks" and config.quantization == "fp8" and not compiles_fp8(device):
            hint = "use --quantize int8, or leave --compile out"
            raise ConfigError(
                "--quantize", "fp8", "a card of compute capability 8.9 or newer with --compile", hint=hint
            )
        return cls(
            device=device,
            dtype=dtype,
            swap=config.offload != "none",
            pose_budget=config.pose_budget_mb << 20,
            pieces=config.ff_chunks,
            weights=config.quantization,
            groups=config.offload == "group",
            compiled=config.compile == "blocks",
            graphs=config.cuda_graphs,
            channels_last=config.channels_last,
            tf32=config.tf32,
        )

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        told = {
            "TF32": self.tf32,
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
        return torch.bfloat16 if has_bfloat16(device) else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA card computes in bfloat16 itself. ``torch.cuda.is_bf16_supported`` also counts emulation."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _NATIVE_BFLOAT16


@contextmanager
def float32_precision(*, tf32: bool) -> Iterator[None]:
    """Within it float32 products and convolutions on CUDA cards are exact, or in TF32. By default torch takes TF32 for
    convolutions alone.

    Set by ``allow_tf32``, which torch's compiler and ``cudnn.flags`` read: they refuse settings of the newer kind.
    """
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def memory_guard(doing: str, hint: str) -> Iterator[None]:
    """Turn any allocator's out-of-memory into ``OutOfMemory`` that says what was being done and what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"out of memory while {doing}", hint=hint) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
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

    With ``plan.swap`` only the named ones are on the device. The weights of the others are in host memory, where they
    stay all the time (``host_weights``): what leaves the device is dropped. Otherwise what was loaded stays.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], nn.Module]], plan: DevicePlan) -> None:
        self._loaders = dict(loaders)
        self._plan = plan
        self._loaded: dict[str, nn.Module] = {}
        self._copies: dict[str, HostCopy] = {}
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
            for name in self._loaded:
                if name not in names:
                    self._leave(name)
            self._release()
        for name in names:
            if self._comes_from_host(name):
                if name not in self._copies:
                    self._copies[name] = self._host_copy(name)
                self._copies[name].up()
            else:
                self[name].to(self._plan.device)

    def _leave(self, name: str) -> None:
        network = self._loaded[name]
        if name not in self._copies:
            network.to("cpu")
            return
        self._copies[name].down()
        if isinstance(run := getattr(network, "run", None), GroupOffload):
            run.release()

    def _comes_from_host(self, name: str) -> bool:
        """Whether a copy of the weights stays in host memory. A Mac's memory is the host's and the device's: there it
        would be used twice."""
        in_groups = self._plan.groups and name == "unet"
        return in_groups or (self._plan.swap and self._plan.device.type != "mps")

    def _host_copy(self, name: str) -> HostCopy:
        """What of a network comes and goes: with ``plan.groups`` not the UNet's blocks, which take turns."""
        network, device = self[name], self._plan.device
        if name != "unet" or not self._plan.groups:
            return HostCopy(network, device)
        stay = {id(tensor) for tensor in staying(network)}
        if device.type == "cuda":
            pack_blocks(network, pin=True)
        return HostCopy(network, device, [key for key, tensor in named_tensors(network).items() if id(tensor) in stay])

    def close(self) -> None:
        self._loaded.clear()
        self._copies.clear()
        self._release()

    def _release(self) -> None:
        gc.collect()
        if self._plan.device.type == "cuda":
            torch.cuda.empty_cache()
