"""Losses and savings of approximate settings: paired by clip, counted, resumed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stableanimator_cli.bench.cost import CachedCost, cached_cost
from stableanimator_cli.bench.networks import open_bench_model
from tools.bench import approximations
from tools.bench.approximations import GUIDED, PLAIN, ApproximationRun, losses, main
from tools.puppet_training.heldout import open_scene

CACHED, WITHIN = "--cache-features 2", "--guidance 2 --guidance-interval 0.5:50"
TRIAL = ApproximationRun(features=(2,), layers=(2,))
COST = CachedCost(100, {2: (20, 0)})


def row(psnr: float, limbs: float | None, own: float | None, unet: int, shallow: int = 0, near: Any = None) -> dict:
    return {"psnr": psnr, "limbs": limbs, "own": own, "near": near, "unet": unet, "shallow": shallow}


def clips() -> list[dict[str, dict[str, Any]]]:
    """Clips that differ much more than settings do."""
    rows = []
    for hard in np.random.default_rng(0).uniform(0, 9, 8):
        rows.append(
            {
                PLAIN: row(20 + hard, 0.05 * hard, 0.1 * hard, 12),
                CACHED: row(19.9 + hard, 0.05 * hard + 0.01, 0.1 * hard - 0.02, 12, 6, 30.0),
                GUIDED: row(15 + hard, 0.05, None, 24),
                WITHIN: row(15 + hard, None, 0.5, 17, 0, 25.0),
            }
        )
    return rows


def test_losses_are_paired_and_positive_if_worse():
    table = {one["setting"]: one for one in losses(clips(), TRIAL, COST).rows}
    assert list(table) == [PLAIN, CACHED, GUIDED, WITHIN] == [setting.name for setting in TRIAL.settings()]
    cached = table[CACHED]
    for title, expected in (
        ("dB to the truth", 0.1),
        ("limb error, fraction of the side", 0.01),
        ("similarity of faces", 0.02),
    ):
        loss = cached[f"{title}: loss"]
        assert (loss.low, loss.value, loss.high) == pytest.approx((expected, expected, expected))
        assert table[PLAIN][f"{title}: loss"] is None
    assert cached["dB to the exact path"].value == 30
    assert cached["UNet FLOPs relative to the exact path"] == pytest.approx((6 + 6 * 0.2) / 12)
    assert table[WITHIN]["UNet FLOPs relative to the exact path"] == pytest.approx(17 / 24)


def test_a_clip_without_a_figure_is_left_out():
    found = clips()
    found[0][CACHED]["own"] = None
    table = {one["setting"]: one for one in losses(found, TRIAL, COST).rows}
    assert table[CACHED]["similarity of faces: loss"].value == pytest.approx(0.02)
    assert table[WITHIN]["limb error, fraction of the side: loss"] is None
    assert table[WITHIN]["similarity of faces: loss"] is None


def test_shallow_calls_of_the_small_model_are_counted():
    model = open_bench_model("puppet")
    counted = cached_cost(model, (64, 64), 2, torch.float32, (1, 2, 4))
    ratios = [counted.ratio(layers) for layers in (1, 2, 4)]
    assert 0 < ratios[0] < ratios[1] < ratios[2] < 1
    # from the second layer on features are those before the upsampler: a quarter of the positions, twice the channels
    assert counted.layers[1][1] == 2 * counted.layers[2][1] == 2 * 64 * 8 * 8 * 4


def test_layers_that_the_decoder_lacks_are_refused_before_anything_is_rendered(tmp_path: Path, capsys):
    assert approximations.main([str(tmp_path / "work"), "--count", "1", "--layers", "9"]) == 2
    assert "sampling.cache_layers: found 9, expected 1 to 4 with this model" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_clips_are_rendered_once_and_read_again(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(approximations, "savings", lambda layers: losses(clips(), TRIAL, COST))  # full-size networks
    monkeypatch.setattr(approximations, "open_scene", partial(open_scene, size=(128, 128)))
    words = [str(tmp_path / "work"), "--count", "1", "--steps", "2", "--cache-features", "2", "--layers", "2"]
    words += ["--guidance-interval", "", "--page", str(tmp_path / "page.md")]
    assert main(words) == 0
    out = capsys.readouterr().out
    lines = (tmp_path / "work" / "clips.jsonl").read_text().splitlines()
    (clip,) = (json.loads(line) for line in lines[1:])
    assert (clip[CACHED]["unet"], clip[CACHED]["shallow"]) == (2, 1)
    assert clip[CACHED]["near"] < 100  # not the same frames
    assert f"| {CACHED} | 2 | 1 |" in out
    page = (tmp_path / "page.md").read_text()
    assert "python -m tools.bench.approximations work --count 1" in page
    monkeypatch.setattr(approximations, "render", lambda *_: 1 / 0)
    assert main(words) == 0
    assert capsys.readouterr().out == out
    assert main([*words, "--seed", "1"]) == 3
    assert "rows of other settings (seed)" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "expected"), [(["--cache-features", "1"], "--cache-features: found '1'")])
def test_mistakes_are_reported(tmp_path: Path, capsys, words: list[str], expected: str):
    assert main([str(tmp_path), *words]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("layers", ["x", "1,0", "1,2.5"])
def test_layers_that_are_no_numbers_are_refused(tmp_path: Path, capsys, layers: str):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--layers", layers])
    assert "argument --layers: " in capsys.readouterr().err
