"""Whether blocks can be compiled on this machine, checked before anything is loaded, and whether it pays."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.denoiser_calls import denoiser_calls
from stableanimator_cli.errors import ConfigError

_COMPILED_FP8 = (8, 9)  # compute capability for float8 e4m3 in Triton
_LEAVE_OUT = "or leave --compile out"
# network calls of 16 frames of 576x1024 from which compiling pays. Estimated: a fifth of 0.1 s per call on the fastest
# GPU saves one minute
LONG = 3000
_CALL = 16 * 576 * 1024  # pixels of such a call


def require_compiler(kind: str) -> None:
    """Raise ``ConfigError`` if ``--compile blocks`` cannot run on a device of this ``kind``."""
    requirement = missing(kind)
    if requirement is not None:
        expected, hint = requirement
        raise ConfigError("--compile", "blocks", expected, hint=hint)


def missing(kind: str) -> tuple[str, str] | None:
    """The first missing requirement of torch's compiler as (expected, hint), or None.

    For a CPU it generates C++, for a GPU Triton kernels and C that launches them. Both include Python's header.
    """
    if kind not in ("cpu", "cuda"):
        return f"off on {kind}: compiled blocks are for CPUs and CUDA cards", "leave --compile out"
    if kind == "cuda" and find_spec("triton") is None:
        return "the package triton on this machine", f"it comes with torch's builds for CUDA: install one, {_LEAVE_OUT}"
    variable, names = ("CXX", _cpp_names()) if kind == "cpu" else ("CC", ("gcc", "clang", "cc"))
    if not any(shutil.which(name) for name in ([os.environ[variable]] if os.environ.get(variable) else names)):
        language = "C++" if kind == "cpu" else "C"
        found = os.environ.get(variable) or names[0]
        return f"a {language} compiler ({found}) on this machine", f"install one, {_LEAVE_OUT}"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python.h, which compiled code includes", f"install Python's headers (python3-dev), {_LEAVE_OUT}"
    return None


def compiles_fp8(device: torch.device) -> bool:
    """Whether compiled code can read fp8 weights on this device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= _COMPILED_FP8


def _cpp_names() -> tuple[str, ...]:
    return {"darwin": ("clang++",), "win32": ("cl",)}.get(sys.platform, ("g++",))


def pays_to_compile(config: AnimateConfig, device: torch.device, size: tuple[int, int], frames: int) -> bool:
    """Whether ``--max-memory`` enables compilation: in long runs on a CUDA GPU, if a compiler is installed."""
    if config.device.compile != "off" or device.type != "cuda" or missing(device.type) is not None:
        return False
    if config.device.quantization == "fp8" and not compiles_fp8(device):
        return False
    windows = config.windows
    plan = plan_windows(frames, length=windows.length, overlap=windows.overlap, blend=windows.blend)
    branches = sum(1 + call.guided for call in denoiser_calls(config.sampling))
    pixels = sum(len(window.frames) for window in plan) * size[0] * size[1]
    return branches * pixels >= LONG * _CALL
