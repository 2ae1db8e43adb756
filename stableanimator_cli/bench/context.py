"""State of one run of ``sa bench``, which every bench gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stableanimator_cli.bench import roofline
from stableanimator_cli.bench.harness import Rounds, time_interleaved
from stableanimator_cli.bench.networks import FULL, open_bench_model
from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.roofline import Roof, synchronizer
from stableanimator_cli.config.bench import BenchConfig
from stableanimator_cli.engine.device import DevicePlan, dtype_name
from stableanimator_cli.records import STRIDE, ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """``size`` (width, height) in pixels and ``frames``."""

    size: tuple[int, int]
    frames: int

    @property
    def latent(self) -> tuple[int, int]:
        """(height, width)."""
        return self.size[1] // STRIDE, self.size[0] // STRIDE

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.size[0]}x{self.size[1]}"


@dataclass(slots=True, kw_only=True)
class BenchRun:
    """Options, device plan, tables so far, and ``tick``, which is called after each piece of work."""

    config: BenchConfig
    plan: DevicePlan
    tick: Callable[[], object] = lambda: None
    roofs: dict[torch.dtype, Roof] = field(default_factory=dict)
    tables: dict[str, list[Table]] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return dtype_name(self.plan.dtype)

    @property
    def rounds(self) -> int:
        return self.config.value("pairs")

    def roof(self) -> Roof:
        """The roof in the networks' type, measured before it is first needed."""
        if self.plan.dtype not in self.roofs:
            table, roofs = roofline.roofline_table(self.plan, (self.plan.dtype,))
            self.tables.setdefault("roofline", []).append(table)
            self.roofs |= roofs
            self.tick()
        return self.roofs[self.plan.dtype]

    def shape(self, size: tuple[int, int], frames: int) -> ClipShape:
        """``--size`` and ``--frames``, or what suits the bench."""
        return ClipShape(size=self.config.size or size, frames=self.config.frames or frames)

    def model(self) -> ModelFolder:
        return open_bench_model(self.config.value("networks"))

    def detector_model(self) -> str:
        """``--networks`` for benches that need detectors, which the released shapes lack."""
        networks = self.config.value("networks")
        return "puppet" if networks == FULL else networks

    def time(self, variants: Mapping[str, Callable[[], object]], **how: Any) -> Rounds:
        """Time the variants in turns on the device; see ``time_interleaved``."""
        return time_interleaved(
            variants, self.rounds, synchronize=synchronizer(self.plan.device), tick=self.tick, **how
        )
