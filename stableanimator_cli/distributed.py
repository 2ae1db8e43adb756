"""Rank and number of the processes that torchrun started, read from its environment variables."""

from __future__ import annotations

import os


def rank() -> int:
    """Rank of this process; 0 outside torchrun."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def world_size() -> int:
    """Number of processes that torchrun started; 1 outside torchrun."""
    present = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if present else 1


def local_world_size() -> int:
    """Number of these processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1
