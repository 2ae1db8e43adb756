"""``sa bench train``, as small as it goes: what is counted and how near the ways are; seconds are not looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stableanimator_cli.bench import training
from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.networks import open_bench_model
from stableanimator_cli.bench.roofline import Roof
from stableanimator_cli.config.bench import BenchConfig
from tests.tiny import CPU


def bench_run(size: tuple[int, int], frames: int) -> BenchRun:
    config = BenchConfig(names=("train",), pairs=1, device="cpu", size=size, frames=frames)
    return BenchRun(config=config, plan=CPU, roofs={torch.float32: Roof(torch.float32, 10.0, 10.0)})


@pytest.mark.parametrize("weights", ["its own", "made up"])
def test_a_cached_step_is_the_same_step_with_less_to_do(
    tiny_model: Path, weights: str, monkeypatch: pytest.MonkeyPatch
):
    model = open_bench_model(str(tiny_model))
    if weights == "made up":  # as for the released shapes, which have no files
        model = replace(model, files={})
    monkeypatch.setattr(BenchRun, "model", lambda self: model)
    table = training.compare_caching(bench_run((64, 64), 2))
    encoding, cached = table.rows
    assert [row["frames decoded per step"] for row in table.rows] == [3, 0]  # two and the reference
    assert cached["TFLOP"] < encoding["TFLOP"]
    assert encoding["greatest error of a loss / loss"] == 0
    assert 0 < cached["greatest error of a loss / loss"] < 1e-2  # caches are float16
    assert encoding["times faster than encoding"] is None
    assert cached["times faster than encoding"].value > 0


def test_forgetting_keeps_the_gradients_and_costs_work(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(BenchRun, "model", lambda self: open_bench_model(str(tiny_model)))
    table = training.compare_checkpointing(bench_run((64, 96), 4))
    off, diffusers, blocks = table.rows
    assert blocks["MiB alive"] < diffusers["MiB alive"] < off["MiB alive"]
    assert off["TFLOP"] < diffusers["TFLOP"] < blocks["TFLOP"]
    assert diffusers["of diffusers'"] == 1
    assert max(row["greatest error of a gradient / greatest gradient"] for row in table.rows) < 1e-5


def test_released_shapes_are_counted(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "open_bench_model", lambda _: open_bench_model(str(tiny_model)))
    table = training.count_full_size(bench_run((128, 128), 4))
    off, diffusers, blocks = (row["of diffusers'"] for row in table.rows)
    assert blocks < diffusers == 1 < off
    assert table.rows[2]["TFLOP"] > table.rows[0]["TFLOP"]
