"""A local Ray cluster asks for a token: without one, whoever reaches its ports runs code on this machine."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import pytest

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.preprocess import workers


@pytest.mark.parametrize("address", ["local", "ray://cluster:10001"])
def test_a_local_cluster_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path, address: str) -> None:
    seen: list[tuple[str | None, str | None]] = []

    def init(**settings: Any) -> None:
        seen.append((os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN")))
        raise RuntimeError("no cluster in a test")

    ray = ModuleType("ray")
    ray.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setattr(workers, "_with_absolute_paths", lambda job, sources: (job, sources))
    job = type("Job", (), {"out": tmp_path})()
    for _ in range(2):
        with pytest.raises(ConfigError, match="--ray"):
            list(workers.on_ray(job, [], address))
    if address == "local":
        assert [mode for mode, _ in seen] == ["token", "token"]
        first, second = (token for _, token in seen)
        assert first != second
        assert len(first or "") == 64
    else:  # that of its owner
        assert seen == [("disabled", "")] * 2
