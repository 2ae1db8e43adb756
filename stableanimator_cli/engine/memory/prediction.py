"""The predicted memory of a rendering, by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderMemory:
    """Bytes on the device: (weights, activations) by stage, ``faces`` of the ONNX networks of faces, which stay open
    during the run, and ``reserve`` for allocator and libraries."""

    stages: dict[str, tuple[int, int]]
    faces: int
    reserve: int

    @property
    def allocated(self) -> int:
        """Maximum at once, as an allocator counts it."""
        return max(sum(parts) for parts in self.stages.values())

    @property
    def total(self) -> int:
        return self.allocated + self.faces + self.reserve

    @property
    def worst(self) -> str:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda name: sum(self.stages[name]))

    def to_json(self) -> dict[str, Any]:
        stages = {name: {"weights": weights, "alive": alive} for name, (weights, alive) in self.stages.items()}
        parts = {"allocated": self.allocated, "faces": self.faces, "reserve": self.reserve}
        return {"total": self.total, **parts, "stages": stages}

    def describe(self) -> str:
        weights, alive = self.stages[self.worst]
        faces = f"{_gib(self.faces)} for detector and recogniser of faces, " if self.faces else ""
        return (
            f"{_gib(self.total)} predicted: {_gib(weights)} of weights and {_gib(alive)} of activations in the "
            f"{self.worst}, {faces}{_gib(self.reserve)} for allocator and libraries"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
