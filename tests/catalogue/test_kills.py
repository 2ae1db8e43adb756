"""Some kills of ``sa models pull`` and ``import --copy``, and two at once; ``tests.kills_models`` runs more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kills_models import run, trials
from tests.model_server import Server


@pytest.fixture
def slow() -> Iterator[Server]:
    server = Server()
    server.block, server.pause = 1 << 14, 0.01
    yield server
    server.close()


@pytest.mark.parametrize("index", [0, 1], ids=["pull", "import"])
def test_killed_commands_end_as_undisturbed_ones_and_leave_nothing(tmp_path: Path, slow: Server, index: int) -> None:
    trial = trials(tmp_path, slow, size=400_000, convert=False)[index]
    (tmp_path / "homes").mkdir()
    outcome = run(trial, tmp_path / "homes", kills=2, crowds=(2,))
    assert outcome.faults == []
    done, refused = outcome.together[2]
    assert done >= 1
    assert done + refused == 2
