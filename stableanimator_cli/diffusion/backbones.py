"""Earlier name of ``scheduler_hook``, for programs that import it."""

from stableanimator_cli.diffusion.scheduler_hook import FAMILIES, Axes, Fold, refined

__all__ = ["FAMILIES", "Axes", "Fold", "refined"]
