"""``sa train --track tensorboard``: the curves are in the event file as they are in ``metrics.jsonl``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.train import checkpoint_writer, run
from stableanimator_cli.train.metrics_log import read_metrics
from tests.train.clip_folders import write_clip


def flags(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    write_clip(folder / "data" / "clip", 4)
    given = {
        "dataset": [folder / "data"], "model": str(model), "output": folder / "run", "steps": 3, "frames": 1,
        "warmup": 2, "rate": 1e-3, "train": "adapters", "workers": 0, "device": "cpu", "checkpointing": "off",
        "track": "tensorboard",
    }  # fmt: skip
    return given | more


def test_the_event_file_holds_what_metrics_hold(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(config: Any, stage: Any, folder: Path, step: int, *more: Any) -> dict[str, Any]:
        csim = 0.25 * step  # as of a model without a pose detector
        return {"step": step, "csim": csim, "keypoint_error": None, "score": csim, "absent": False}

    monkeypatch.setattr(checkpoint_writer, "validate", measured)
    torch.set_num_threads(1)
    run.run(flags=flags(tmp_path, tiny_model, validate=[tmp_path / "data"], validate_every=2))
    rows = read_metrics(tmp_path / "run")
    assert [row.get("csim") for row in rows] == [None, 0.5, 0.75]
    events = EventAccumulator(str(tmp_path / "run" / "sa-train"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "rate", "gradient", "csim"}
    for name in ("loss", "rate", "gradient", "csim"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({row["step"]: row[name] for row in rows if row.get(name) is not None}, rel=1e-6)


def test_without_the_package_it_says_what_to_install(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.tracking, "is_tensorboard_available", lambda: False)
    with pytest.raises(ConfigError, match="--track: found 'tensorboard', expected a package that is installed") as told:
        run.run(flags=flags(tmp_path, tiny_model))
    assert told.value.exit_code == 2
    assert str(told.value.hint).startswith("pip install tensorboard")
    assert not (tmp_path / "run").exists()
