"""``--plan`` and ``--max-memory`` of ``sa train``: what is told before is what is counted, and what is chosen runs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.cli.verbs import app
from stableanimator_cli.engine.memory.train import predict
from stableanimator_cli.engine.training.model import TrainingSettings
from stableanimator_cli.errors import OutOfMemory
from stableanimator_cli.progress import NullReporter, WarningLog
from stableanimator_cli.train import run
from stableanimator_cli.train.metrics_log import read_metrics
from stableanimator_cli.train.plan import TrainPlan
from tests.train.clip_folders import write_clip

SIDE, FRAMES, BATCH = 128, 2, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_clip(folder / "clip", 4)
    torch.set_num_threads(1)
    return folder


@pytest.fixture(scope="module")
def totals(tiny_model: Path) -> dict[str, int]:
    """Bytes with one sample at once, counted while nothing else is; ``all``: both samples, nothing forgotten."""
    model, settings = catalogue.open_model(tiny_model), {"train": "adapters"}

    def total(way: Any, micro: int = 1) -> int:
        asked = TrainingSettings(**settings, checkpointing=way)
        size = (SIDE, SIDE)
        return predict(model, asked, size=size, frames=FRAMES, micro_batch=micro, cached=False, on_cpu=True).total

    return {way: total(way) for way in ("off", "diffusers", "blocks")} | {"all": total("off", BATCH)}


def train(data: Path, model: Path, out: Path, *more: object) -> None:
    words = ["train", data, "-o", out, "--model", model, "--frames", FRAMES, "--batch", BATCH, "--warmup", 0]
    words += ["--sizes", f"{SIDE}x{SIDE}", "--rate", 1e-3, "--train", "adapters", "--workers", 0, "--device", "cpu"]
    app([str(word) for word in (*words, *more)], standalone_mode=False)


def test_a_plan_says_memory_and_time_and_writes_nothing(
    data: Path, tiny_model: Path, totals: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(*more: object) -> Any:
        train(data, tiny_model, tmp_path / "run", "--steps", 1000, "--plan", "--json", *more)
        return json.loads(capsys.readouterr().out)

    plain = planned("--checkpointing", "off")
    told = planned("--max-memory", totals["blocks"])
    assert not (tmp_path / "run").exists()
    assert plain["peak_bytes"] == totals["all"]
    # FLOPs are counted too; while they are, what checkpointing forgets stays alive, and memory must not be read then
    assert told["peak_bytes"] == told["stages"][0]["bytes"] == totals["blocks"]
    assert (told["config"]["memory"]["checkpointing"], told["config"]["memory"]["micro_batch"]) == ("blocks", 1)
    assert plain["stages"][0]["flops_a_step"] < told["stages"][0]["flops_a_step"]  # blocks are computed twice
    assert 0 < told["hours"] < 10
    said = TrainPlan(data=told).summary()
    assert "stage      train: 1000 steps of 2 x 2 frames, adapters, about " in said
    assert f"memory     {totals['blocks'] / 2**20:.1f} MiB (weights " in said


@pytest.mark.parametrize(
    ("cache", "loaded"), [("latents", True), ("embeddings", True), ("embeddings,latents", False), ("off", True)]
)
def test_encoders_of_which_one_is_not_cached_are_counted(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: str, loaded: bool
) -> None:
    train(data, tiny_model, tmp_path / "run", "--steps", 1, "--plan", "--cache", cache)
    assert (", encoders " in capsys.readouterr().out) == loaded


@pytest.mark.parametrize(
    ("length", "said"),
    [
        ({"steps": 20}, "500 steps is longer than its 20 steps. Its highest learning rate is 4e-07 instead of 1e-05; "
         "--warmup 2 reaches it"),
        ({"epochs": 60}, "500 steps is longer than its 30 steps. Its highest learning rate is 6e-07 instead of 1e-05; "
         "--warmup 3 reaches it"),
        ({"steps": 500}, None),
        ({"steps": 20, "warmup": 20}, None),
    ],
)  # fmt: skip
def test_a_warmup_that_outlasts_its_stage_is_reported(
    data: Path, tiny_model: Path, tmp_path: Path, length: dict[str, int], said: str | None
) -> None:
    flags = {"dataset": [data], "output": tmp_path / "run", "model": str(tiny_model), "frames": 2, "batch": 2} | length
    reporter = WarningLog(NullReporter())
    run.run(flags=flags | {"device": "cpu"}, plan_only=True, reporter=reporter)
    assert reporter.warnings == ([] if said is None else [f"stage 'train': the warmup of {said}"])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("64x64,128x64", "no clip is trained at 128x64, as another size is as near to its aspect ratio or nearer"),
        ("64x64,32x32,128x64", "no clip is trained at 32x32 or 128x64, as another size"),
        ("128x64", None),
    ],
)
def test_sizes_that_no_clip_is_trained_at_are_reported(
    data: Path, tiny_model: Path, tmp_path: Path, sizes: str, said: str | None
) -> None:
    flags = {"dataset": [data], "output": tmp_path / "run", "model": str(tiny_model), "frames": 2, "sizes": sizes}
    reporter = WarningLog(NullReporter())
    run.run(flags=flags | {"steps": 1, "warmup": 0, "device": "cpu"}, plan_only=True, reporter=reporter)
    assert len(reporter.warnings) == (said is not None)
    assert said is None or reporter.warnings[0].startswith(f"sizes {sizes}: {said}")


def test_what_fits_is_chosen_and_runs_to_the_same_losses(
    data: Path, tiny_model: Path, totals: dict[str, int], tmp_path: Path
) -> None:
    assert totals["blocks"] < totals["diffusers"] < totals["off"] < totals["all"]
    losses = {}
    for name, limit, checkpointing, micro in (
        ("plenty", 2 * totals["all"], "off", BATCH),
        ("single", totals["off"], "off", 1),
        ("least", totals["blocks"], "blocks", 1),
    ):
        train(data, tiny_model, tmp_path / name, "--steps", 2, "--max-memory", limit, "--quiet")
        memory = tomllib.loads((tmp_path / name / "config.toml").read_text())["memory"]
        assert (memory["checkpointing"], memory["micro_batch"]) == (checkpointing, micro)
        losses[name] = [row["loss"] for row in read_metrics(tmp_path / name)]
        assert len(losses[name]) == 2
    assert losses["single"] == pytest.approx(losses["plenty"], rel=1e-5)
    assert losses["least"] == pytest.approx(losses["single"], rel=1e-5)


def test_what_cannot_fit_says_what_would(data: Path, tiny_model: Path, totals: dict[str, int], tmp_path: Path) -> None:
    least = f"{totals['blocks'] / 2**20:.1f} MiB"
    with pytest.raises(OutOfMemory, match=rf"needs at least {least} .*checkpointing blocks.*; 2.0 MiB were") as caught:
        train(data, tiny_model, tmp_path / "run", "--steps", 2, "--max-memory", "2MiB", "--quiet")
    assert caught.value.exit_code == 6
    assert "--cache latents,embeddings" in str(caught.value.hint)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_plan_is_of_the_largest_size_that_has_clips(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(sizes: str, *more: Path) -> tuple[Any, str]:
        train(data, tiny_model, tmp_path / "run", *more, "--steps", 1, "--plan", "--json", "--sizes", sizes)
        found = json.loads(capsys.readouterr().out)
        return found, TrainPlan(data=found).summary()

    (small, _), (large, _) = planned("64x64"), planned("256x128")
    mixed, summary = planned("64x64,256x128")  # the only clip is square
    assert small["peak_bytes"] < large["peak_bytes"]
    assert mixed["peak_bytes"] == small["peak_bytes"]
    assert mixed["stages"][0]["flops_a_step"] == small["stages"][0]["flops_a_step"]
    assert (mixed["stages"][0]["largest_size"], mixed["stages"][0]["sizes"]) == ("64x64", 1)
    assert "of 2 x 2 frames, adapters" in summary
    write_clip(tmp_path / "wide", 4, size=(128, 64))
    both, summary = planned("64x64,256x128", tmp_path / "wide")
    assert both["peak_bytes"] == large["peak_bytes"]
    assert "of 2 x 2 frames of up to 256x128, adapters" in summary
