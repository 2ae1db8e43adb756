"""Networks behind metrics are opened once, however many metrics and systems look through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.engine.metric_networks import Features
from stableanimator_cli.evaluate import networks
from stableanimator_cli.evaluate.networks import MetricNetworks
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.score_builder import ScoreBuilder
from stableanimator_cli.metrics.perceptual import SHORTEST_SIDE
from stableanimator_cli.metrics.result import Missing
from stableanimator_cli.nets.perceptual import MIN_SIDE
from stableanimator_cli.progress import NullProgress, NullReporter


def _brightness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).mean(axis=(1, 2, 3))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of networks as they are opened; AlexNet's is not here."""
    told: list[str] = []

    def features(name: str, plan: Any, **more: Any) -> Features | Missing:
        told.append(name)
        if name == "lpips_alex":
            return Missing(metric=name, reason="not here", command="sa models pull lpips")
        return Features(name=name, run=_brightness, about={"network": name})

    monkeypatch.setattr(networks, "features", features)
    return told


NAMES = ("lpips_vgg", "lpips_vgg_disco", "lpips_alex")


def test_two_metrics_of_one_network_share_it_and_keep_their_own_input(opened: list[str]) -> None:
    measured = MetricNetworks.open(NAMES, "cpu", rules="native")
    assert opened == ["lpips_vgg", "lpips_alex"]
    assert [one.metric for one in measured.missing] == ["lpips_alex"]
    measured.begin("one", None)
    measured.add(np.full((16, 16, 3), 255, np.uint8), np.zeros((16, 16, 3), np.uint8), 0)
    means = {name: running.mean for name, running in measured.end().items()}
    assert means == pytest.approx({"lpips_vgg": 2.0, "lpips_vgg_disco": 1.0})  # -1..1 and 0..1
    assert measured.about() == {name: {"network": "lpips_vgg"} for name in NAMES[:2]}


def test_systems_of_one_run_share_networks_and_no_numbers(opened: list[str]) -> None:
    shared: dict[str, Features | Missing] = {}
    for value in (255, 51):
        measured = MetricNetworks.open(NAMES, "cpu", rules="native", opened=shared)
        measured.begin("one", None)
        measured.add(np.full((16, 16, 3), value, np.uint8), np.zeros((16, 16, 3), np.uint8), 0)
        assert measured.end()["lpips_vgg_disco"].mean == pytest.approx(value / 255)
        assert [one.metric for one in measured.missing] == ["lpips_alex"]
    assert opened == ["lpips_vgg", "lpips_alex"]


def test_frames_below_a_networks_minimum_have_no_value(opened: list[str], tmp_path: Path) -> None:
    """The networks refuse them; the other metrics of such a video are computed, and a note names the minimum."""
    assert {SHORTEST_SIDE[f"lpips_{kind}"] for kind in MIN_SIDE} == set(MIN_SIDE.values())
    measured = MetricNetworks.open(("lpips_vgg",), "cpu", rules="native")
    for name, side in (("small", 15), ("large", 16)):
        measured.begin(name, None)
        measured.add(np.zeros((16, side, 3), np.uint8), np.zeros((16, side, 3), np.uint8), 0)
        scores = ScoreBuilder(Pair(name=name, predicted=tmp_path, target=tmp_path), None, None, None)  # type: ignore[arg-type]
        scores.put_means(measured.end())
        assert np.isnan(scores.values["lpips_vgg"]) == (side == 15)
        assert scores.counts["lpips_vgg"] == (side == 16)
        assert scores.notes == (["no lpips_vgg: its network needs frames of 16 pixels per side or more"] * (side == 15))


class _Bars(NullReporter):
    """Counts the updates of each progress bar."""

    def __init__(self) -> None:
        self.done: dict[tuple[str, int | None], int] = {}

    def progress(self, total: int | None, desc: str, unit: str = "frame", *, initial: int = 0) -> Any:
        bars, key = self, (f"{desc}, {unit}", total)
        bars.done[key] = initial

        class Bar(NullProgress):
            def update(self, n: int = 1, **fields: Any) -> None:
                bars.done[key] += n

        return Bar()


def test_videos_shorter_than_a_clip_are_answered_with_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "features", lambda name, plan: Features(name=name, run=lambda x: x, about={}))
    measured = MetricNetworks.open(("fvd_puppet",), "cpu", rules="native")
    measured.begin("short", None)
    frame = np.zeros((64, 64, 3), np.uint8)
    for number in range(7):
        measured.add(frame, frame, number)
    measured.end()
    rows, [missing] = measured.set_rows(seed=0, samples=100, reporter=NullReporter())
    assert not rows
    assert "found 0 clips, expected 2 or more" in missing.reason
    assert missing.reason.endswith("; a clip has 8 frames")


@pytest.mark.parametrize("videos", [4, 5])
def test_the_bootstrap_of_a_distance_shows_its_progress(monkeypatch: pytest.MonkeyPatch, videos: int) -> None:
    def run(clips: np.ndarray) -> np.ndarray:
        return clips.reshape(len(clips), -1)[:, :3].astype(np.float64)

    monkeypatch.setattr(networks, "features", lambda name, plan: Features(name=name, run=run, about={}))
    measured = MetricNetworks.open(("fvd_puppet",), "cpu", rules="native")
    rng = np.random.default_rng(0)
    for video in range(videos):
        measured.begin(str(video), None)
        for number in range(8):
            first, second = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
            measured.add(first, second, number)
        measured.end()
    bars = _Bars()
    rows, _ = measured.set_rows(seed=0, samples=100, reporter=bars)
    assert bars.done == ({} if videos < 5 else {("bootstrap fvd_puppet, sample", 100): 100})
    assert (rows["fvd_puppet"].interval is None) == (videos < 5)
