"""Every bench once, as small as it goes: what is counted and how near the ways are; seconds are not looked at."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stableanimator_cli.bench import drawing, evaluation, face_optimization, preprocessing, rendering, roofline, speed
from stableanimator_cli.bench.context import BenchRun, ClipShape
from stableanimator_cli.bench.networks import load_network, open_bench_model, open_engine
from stableanimator_cli.bench.roofline import Roof
from stableanimator_cli.config.bench import BenchConfig
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.nets.compiled import CompiledBlocks
from tests.tiny import CPU


def bench_run(**options: Any) -> BenchRun:
    """One round on the CPU, with a roof that was not measured."""
    config = BenchConfig(**{"names": ("unet", "sample"), "pairs": 1, "device": "cpu", **options})
    return BenchRun(config=config, plan=CPU, roofs={torch.float32: Roof(torch.float32, 10.0, 10.0)})


def test_ways_of_the_unet_agree(tiny_model: Path):
    ways = ("prepared", "batched", "channels-last")
    (table,) = speed.time_unet(bench_run(networks=str(tiny_model), size=(64, 64), frames=2, variants=ways))
    assert [row["way"] for row in table.rows] == ["plain", *ways]
    assert max(row["greatest error / greatest value"] for row in table.rows) < 1e-5
    flops = {row["way"]: row["TFLOP"] for row in table.rows}
    assert flops["batched"] == pytest.approx(flops["plain"], rel=1e-2)  # positions in time are embedded once for both
    assert flops["plain"] > flops["prepared"] == flops["channels-last"]


@torch.no_grad()
def test_a_way_is_got_ready_and_put_back(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "_compiled", cache(lambda: CompiledBlocks("eager")))
    network = load_network(open_bench_model(str(tiny_model)), "unet", torch.float32)
    ways = speed.unet_variants(network, ClipShape(size=(64, 64), frames=2), CPU)
    speed.configure_variant(network, "plain")
    plain = ways["plain"]()
    speed.configure_variant(network, "channels-last")
    assert not network.conv_in.weight.is_contiguous()
    speed.configure_variant(network, "compiled")
    assert network.conv_in.weight.is_contiguous()
    assert isinstance(network.run, CompiledBlocks)
    assert network.run is speed._compiled()  # compiled once, however often it is its turn
    speed.configure_variant(network, "plain")
    assert torch.equal(ways["plain"](), plain)


def test_ways_of_the_decoder(tiny_model: Path):
    ways = ("channels-last", "chunks of 1")
    (table,) = speed.time_vae(bench_run(networks=str(tiny_model), size=(64, 64), frames=4, variants=ways))
    plain, last, ones = table.rows
    assert last["greatest error / greatest value"] < 1e-4 < ones["greatest error / greatest value"]
    assert ones["GiB alive"] < plain["GiB alive"] / 2


def test_renderings_in_every_plan_are_the_same_frames(tiny_model: Path):
    table, stages = rendering.time_rendering(bench_run(networks=str(tiny_model), size=(64, 64), frames=2, steps=2))
    assert {row["greatest error (levels of 255)"] for row in table.rows} == {0}
    assert [row["frames through PoseNet"] for row in table.rows] == [2, 4, 2]
    assert [row["stage"] for row in stages.rows] == ["encode", "denoise", "decode"]


def test_length_costs_its_latents(tiny_model: Path):
    planned, made = rendering.measure_lengths(bench_run(networks=str(tiny_model), size=(64, 64), frames=24))
    assert [row["frames"] for row in planned.rows] == [16, 16, 16, 24, 24, 24]
    short, longer = made.rows
    assert longer["UNet calls"] == 2 * short["UNet calls"] == 4
    assert longer["MiB alive"] < 1.1 * short["MiB alive"]


def test_both_modes_of_face_optimisation_on_one_clip():
    trial = face_optimization.RefineCase(size=(64, 64), frames=2, chunk=1, iterations=1, margin=8)
    with open_engine(open_bench_model("puppet"), CPU) as engine:
        speeds, near, effect = face_optimization.measure_face_optimization(bench_run(), engine, trial)
    full, crop = speeds.rows
    names = ("full decodes", "statistics decodes", "crop decodes")
    assert [full[name] for name in names] == [2, 0, 0]  # two chunks, an iteration
    assert [crop[name] for name in names] == [0, 2, 2]
    assert crop["error in the box"] < 1e-3  # with this margin the crop is the whole frame
    assert near.rows[0]["gradient cosine"] > 0.5  # in so small a picture the norms follow the face
    assert [row["mode"] for row in effect.rows] == ["full", "crop", "not refined"]
    assert effect.rows[0]["dB background against before"] < 100


def test_a_face_that_is_no_face_is_refused():
    with open_engine(open_bench_model("puppet"), CPU) as engine, pytest.raises(ConfigError, match="--face"):
        face_optimization.draw_clip(engine, face_optimization.RefineCase(size=(64, 64), frames=1, face=4))


def test_decibels_of_a_part():
    a, b = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    where = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    where[..., 0, 0] = True
    b[..., 0, 0] = 0.2
    assert face_optimization.psnr(a, b, where) == pytest.approx(20)
    assert face_optimization.psnr(a, b, ~where) == float("inf")


def test_batches_of_frames_find_the_same_points():
    table = preprocessing.time_detection(bench_run(frames=2))
    apart = [row["points apart from one by one, pixels"] for row in table.rows]
    assert apart[0] == apart[3] == 0
    assert apart[1] < 0.01
    assert apart[2] is None


def test_networks_of_metrics_are_timed_or_named():
    table = evaluation.time_metric_networks(bench_run(), (64, 64))
    rows = {row["what"]: row for row in table.rows}
    assert {"lpips_puppet", "faces of puppet"} <= rows.keys()
    for row in table.rows:
        assert ("not here" in row) != (row.get("frames per second", 0) > 0), row
    assert rows["fvd_disco"].get("not here") or rows["fvd_disco"]["ms"] > 0


def test_every_metric_of_pixels_is_timed():
    table = evaluation.time_pixel_metrics(bench_run(), (64, 64))
    assert {"psnr", "ssim", "mae_unit"} <= {row["metric"] for row in table.rows}
    assert sum(row["% of all"] for row in table.rows) == pytest.approx(100)


def test_metrics_keep_numbers_and_no_pictures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluation, "LENGTHS", (20, 60))
    short, longer = evaluation.count_metric_memory(bench_run(), (64, 64)).rows
    names = [name for name in short if name.startswith("KiB")]
    assert len(names) == 3
    for name in names:  # forty frames more are not one more that is kept: of 64x64 bytes, or 224x224 numbers
        picture = (224 * 224 * 4 if "fvd" in name else 64 * 64) * 3 / 2**10
        assert longer[name] - short[name] < picture, name


def test_a_drawn_clip_can_be_read_again():
    clip = preprocessing.open_or_draw_clip(None, (64, 64), 2)
    first, again = ([frame for _, frame in clip.frames()] for _ in range(2))
    assert np.array_equal(first, again)
    assert len(first) == clip.count == 2


def test_the_roof_counts_its_work_right(monkeypatch: pytest.MonkeyPatch):
    sizes = {"side": 32, "image": 4, "positions": 16, "copy": 1 << 20}
    monkeypatch.setattr(roofline, "best_time", lambda *_: 0.001)
    roof, rows = roofline.measure_roof(CPU, torch.float32, sizes)
    assert [row["GFLOP/s"] for row in rows[:1]] == [pytest.approx(2 * 32**3 / 1e6)]
    assert roof.bandwidth == pytest.approx(2 * 2**20 / 1e6)
    assert roof.percent(roof.gflops * 1e9, 2.0) == pytest.approx(50)


def test_drawing_is_measured_at_every_size():
    table = drawing.time_drawing(bench_run(), frames=2)
    assert [row["size"] for row in table.rows] == ["64x64", "128x128", "256x256", "512x512"]
    assert all(row["frames per second"] > 0 for row in table.rows)
