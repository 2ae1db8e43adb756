"""Whether a requested device can exist on this machine, found out without torch, which takes seconds to import."""

from __future__ import annotations

import ctypes
import os
import sys

from stableanimator_cli.distributions import version_of
from stableanimator_cli.errors import ConfigError

_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # drivers of NVIDIA, of WSL, and of AMD, which torch names cuda too
_DRIVERS = ("libcuda.so.1", "libamdhip64.so")


def check_device_exists(device: str) -> None:
    """Raise ``ConfigError`` for a device that certainly is not here. Whatever is uncertain passes: torch decides.

    Certain for ``cuda``: the installed torch is a build for the CPU, or Linux has neither a driver's device file nor
    its library. For ``mps``: the system is not macOS.
    """
    kind = device.partition(":")[0]
    reason = None
    if kind == "cuda":
        reason = _no_cuda()
    elif kind == "mps" and sys.platform != "darwin":
        reason = "only Apple's computers have MPS"
    if reason is not None:
        raise ConfigError("--device", device, "a device of this machine", hint=f"{reason}: use cpu")


def _no_cuda() -> str | None:
    build = version_of("torch")
    if build is None:
        return None
    if build.endswith("+cpu"):
        return f"torch {build} is built for the CPU only"
    if not sys.platform.startswith("linux") or any(map(os.path.exists, _NODES)) or any(map(_loads, _DRIVERS)):
        return None
    return "this machine has no driver of a CUDA card"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
