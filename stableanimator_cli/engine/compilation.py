"""Whether code can be compiled on this machine, looked at before anything is loaded; and whether it is worth it."""

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

_COMPILED_FP8 = (8, 9)  # compute capability from which on Triton reads float8 e4m3
_LEAVE_OUT = "or leave --compile out"
# Network calls of 16 frames of 576x1024 from which on compiled blocks are taken to make up for minutes of compiling: at
# 0.1 s a call of the fastest card and a fifth of it saved, one minute. Reckoned, not measured.
LONG = 3000
_CALL = 16 * 576 * 1024  # pixels of such a call


def require_compiler(kind: str) -> None:
    """``ConfigError`` where ``--compile blocks`` has not what it needs on a device of this ``kind``."""
    lacking = missing(kind)
    if lacking is not None:
        expected, hint = lacking
        raise ConfigError("--compile", "blocks", expected, hint=hint)


def missing(kind: str) -> tuple[str, str] | None:
    """What is not here of what torch's compiler calls, as (what was expected, what to do); None where all is here.

    On a CPU it writes C++, on a card Triton's language and C that starts it; both include Python's own header.
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
    """Whether ``--max-memory`` switches it on: in long runs on a CUDA card, where a compiler is here."""
    if config.device.compile != "off" or device.type != "cuda" or missing(device.type) is not None:
        return False
    if config.device.quantization == "fp8" and not compiles_fp8(device):
        return False
    windows = config.windows
    plan = plan_windows(frames, length=windows.length, overlap=windows.overlap, blend=windows.blend)
    branches = sum(1 + call.guided for call in denoiser_calls(config.sampling))
    seen = sum(len(window.frames) for window in plan) * size[0] * size[1]
    return branches * seen >= LONG * _CALL
