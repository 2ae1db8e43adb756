"""Drawn people with ground truth, to train and test small networks (``docs/design.md``)."""

from __future__ import annotations

from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import Scene, sample_scene

__all__ = ["PuppetFrame", "Scene", "sample_scene"]
