"""Metrics that survive a kill, losses that are out of proportion, averages, and the picture of the curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stableanimator_cli.errors import BadInput
from stableanimator_cli.train.curves import draw_curves
from stableanimator_cli.train.ema import EMA
from stableanimator_cli.train.metrics_log import Metrics, bad_batch, read_metrics
from tests.conftest import largest_file


def test_lines_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    for step in range(1, 6):
        metrics.write({"step": step, "loss": 1.0})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    again = Metrics(tmp_path, 3)
    again.write({"step": 4, "loss": 2.0})
    again.close()
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0, 1.0, 1.0, 2.0]


def test_what_was_measured_after_a_step_is_in_its_line(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    for step in (1, 2):
        metrics.write({"step": step, "loss": 1.0})
        if step == 1:
            metrics.add({"csim": 0.5, "keypoint_error": None})
    metrics.close()
    rows = [{"step": 1, "loss": 1.0, "csim": 0.5, "keypoint_error": None}, {"step": 2, "loss": 1.0}]
    assert read_metrics(tmp_path) == rows
    Metrics(tmp_path, 0, writes=False).add({"csim": 0.1})  # of another rank: one writes
    assert read_metrics(tmp_path) == rows
    again = Metrics(tmp_path, 1)
    again.close()
    assert read_metrics(tmp_path) == rows[:1]


@pytest.mark.parametrize("left", [0, 1])
def test_what_was_measured_after_a_deleted_line_is_added_to_no_other(tmp_path: Path, left: int) -> None:
    """The hint of a damaged file is to delete it, or its last lines."""
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:left]))
    metrics = Metrics(tmp_path, 2)
    metrics.add({"csim": 0.5})
    metrics.write({"step": 3, "loss": 1.0})
    metrics.close()
    assert read_metrics(tmp_path) == [*rows[:left], {"step": 3, "loss": 1.0}]


def test_a_loss_is_judged_by_the_median_of_late(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    assert metrics.check_spike(1e9, 1.0, 10.0) is None  # nothing to compare with yet
    for step in range(30):
        metrics.write({"step": step + 1, "loss": 2.0})
    metrics.close()
    assert metrics.check_spike(19.9, 1.0, 10.0) is None
    assert "more than 10 times" in str(metrics.check_spike(20.1, 1.0, 10.0))
    assert metrics.check_spike(1e9, 1.0, 0.0) is None
    assert metrics.check_spike(float("inf"), 1.0, 0.0) == "the loss is inf"
    assert metrics.check_spike(1.0, float("nan"), 0.0) == "the gradient norm is nan"


def test_the_worst_sample_is_named_first() -> None:
    samples = [("good", [0, 4], 1.0), ("bad", list(range(9)), float("nan")), ("poor", [3], 7.0)]
    text = str(bad_batch(5, "the loss is nan", samples))
    assert text.index("bad frames 0 to 8 (9)") < text.index("poor frames 3") < text.index("good frames 0,4")


def test_the_average_warms_up_and_follows() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = EMA(0.9)
    average.update({"w": weight}, 1)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update({"w": weight}, 2)
    torch.testing.assert_close(average.values["w"], torch.full((3,), 1 - 3 / 12))
    average.update({"w": weight}, 1000)
    torch.testing.assert_close(average.values["w"], torch.full((3,), 1 - 0.9 * 3 / 12))


def test_curves_are_drawn_and_none_of_nothing(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    rows = [
        {"step": n + 1, "stage": "a" if n < 20 else "b", "loss": 2.0 / (n + 1), "rate": 1e-3, "gradient": None}
        for n in range(40)
    ]
    draw_curves(rows, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture)
    assert (pixels < 120).any(axis=2).sum() > 500  # a line and its words
    draw_curves([*rows[:-1], rows[-1] | {"csim": 0.4, "keypoint_error": None}], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.height == pixels.shape[0] + 220  # one panel more
        added = np.asarray(picture)[660:880]
    inked = np.nonzero((added[40:180, 100:] < 120).any(axis=(0, 2)))[0]
    assert 770 < inked.min() <= inked.max() < 790  # a dot at the last step, 880 from the left, and nowhere else


def test_a_full_disk_is_reported_by_name_also_when_the_file_is_closed(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    with largest_file(200):
        for close in (False, True):
            with pytest.raises(BadInput, match=r"metrics\.jsonl: found no room left to write"):
                metrics.close() if close else metrics.write({"step": 1, "loss": 0.5, "stage": "x" * 400})
