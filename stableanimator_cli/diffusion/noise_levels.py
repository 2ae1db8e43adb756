"""Noise levels of a number of steps, by the name of ``--schedule``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from stableanimator_cli.diffusion.discrete import ddim_sigmas
from stableanimator_cli.diffusion.schedule import ays_sigmas, karras_sigmas

SCHEDULES: Mapping[str, Callable[[int], Tensor]] = MappingProxyType(
    {"karras": karras_sigmas, "ays": ays_sigmas, "ddim": ddim_sigmas}
)
