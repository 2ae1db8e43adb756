"""One model that finds red rectangles, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.preprocess.run import run
from tests.preprocess import drawn


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; not to be written into."""
    return drawn.write_model(tmp_path_factory.mktemp("rectangles") / "model")


@pytest.fixture
def preprocess(rectangles: Path) -> Callable[..., Any]:
    """``run`` with that model on the CPU: ``preprocess(*inputs, **flags)``."""

    def go(*inputs: Path, plan_only: bool = False, reporter: Any = None, **flags: Any) -> Any:
        given = {"input": inputs, "model": str(rectangles), "device": "cpu", **flags}
        return run(flags=given, plan_only=plan_only, reporter=reporter)

    return go
