"""Reports of a finished training and of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """A finished run: ``model`` is the checkpoint to use, ``loss`` the mean of the last hundred steps.

    ``validation`` is the last row of ``validation/scores.jsonl``.
    """

    run: Path
    model: Path
    steps: int
    samples: int
    loss: float
    seconds: float
    best: int | None = None
    validation: Mapping[str, Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"run": str(self.run), "model": str(self.model), "seconds": round(self.seconds, 3)}

    def summary(self) -> str:
        return str(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """The exported ``checkpoint`` and the written ``files``."""

    output: Path
    checkpoint: Path
    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        files = [str(file) for file in self.files]
        return {"output": str(self.output), "checkpoint": str(self.checkpoint), "files": files}

    def summary(self) -> str:
        return str(self.output)
