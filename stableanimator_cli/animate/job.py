"""The parts of one run that its stages share."""

from __future__ import annotations

from dataclasses import dataclass, field

from stableanimator_cli.animate.checkpoint import CheckpointManager
from stableanimator_cli.animate.driving import Driving
from stableanimator_cli.animate.reference_face import ReferenceFace
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.diffusion.face_optimization import FaceOptimization
from stableanimator_cli.engine.engine import Distribute, Engine
from stableanimator_cli.engine.render import RenderRequest, Timings
from stableanimator_cli.progress import WarningLog


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimateJob:
    """One run, resolved and checked. ``distribute`` is set if other processes denoise too."""

    config: AnimateConfig
    engine: Engine
    request: RenderRequest
    driving: Driving
    face: ReferenceFace
    refine: FaceOptimization | None
    checkpoints: CheckpointManager
    reporter: WarningLog
    distribute: Distribute | None = None
    timings: Timings = field(default_factory=Timings)

    @property
    def resumed(self) -> int:
        """How many times the run was resumed."""
        restored = self.checkpoints.restored
        return 0 if restored is None else restored.resumed + 1
