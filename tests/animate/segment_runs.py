"""Runs of ``sa animate`` that are interrupted after chosen steps and resumed, and options that are refused."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest

from stableanimator_cli.animate import checkpoint
from stableanimator_cli.errors import ConfigError, Interrupted


def checkpoint_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "_WRITE_RATIO", 0)


def run_interrupted(
    animate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, saves: Collection[int], **flags: Any
) -> tuple[Any, list[int]]:
    """Interrupt the run at each of ``saves``, counted from 1, and resume it: the last result, and the steps saved."""
    checkpoint_every_step(monkeypatch)
    save, seen = checkpoint.CheckpointManager.save, []

    def interrupt_after(self: checkpoint.CheckpointManager, saved: checkpoint.Checkpoint) -> None:
        save(self, saved)
        seen.append(saved.state.step)
        if len(seen) in saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.CheckpointManager, "save", interrupt_after)
        for _ in saves:
            with pytest.raises(Interrupted):
                animate(**flags)
        return animate(**flags), seen


OF_SEGMENTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"blend": "shifted"}, ("--blend", "segments")),
    ({"sampler": "heun"}, ("--sampler", "scheduler of its folder")),
    ({"anchor": "reference"}, ("--anchor", "reference image")),
    ({"quantize": "int8"}, ("--quantize", "plain or fp8")),
    ({"gpus": 2}, ("--gpus", "follow one another")),
    ({"preset": "paper"}, ("--preset", "standard or fast")),
    ({"window": 10}, ("--window", "4N+1")),
    ({"window": 3}, ("--window: found 3", "try 5")),
    ({"window": 1}, ("--window: found 1", "at least 5", "try 5")),
    ({"overlap": 2}, ("--overlap", "1 or 5")),
    ({"guidance": "1:3"}, ("--guidance", "one number")),
    ({"face_embedding": "face.npy"}, ("--face-embedding", "no face vectors")),
    ({"size": "72x64"}, ("--size", "multiples of 16")),
]
"""Options that no backbone of segments has, and words of the refusal."""


def check_refused(animate: Callable[..., Any], flags: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        animate(**flags)
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(word in said for word in words), said
    assert caught.value.exit_code == 2
