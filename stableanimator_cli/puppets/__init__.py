"""Puppets: drawn people with known truth, to train and to test small networks on (``docs/design.md`` §1)."""

from __future__ import annotations

from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import Scene, sample_scene

__all__ = ["PuppetFrame", "Scene", "sample_scene"]
