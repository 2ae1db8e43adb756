"""Figures for a paper: which videos are shown, what the strips and plots hold, and that they are vectors."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.evaluate import figures, plots, strips
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.ranking import select
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.files import carries_mark
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.progress import NullReporter
from tests.evaluate.samples import drawn, noisy, write
from tests.waving import waving


def _score(name: str, csim: float = 0.5, frames: int = 6, **changes: Any) -> VideoScore:
    curve = (csim + np.linspace(-0.1, 0.1, frames)).tolist()
    score = VideoScore(
        name=name, predicted={}, target=None, frames=frames, values={"csim_ref": csim, "psnr": 20 + csim},
        counts={"csim_ref": frames}, curves={"csim_ref": curve, "head_yaw": np.linspace(-40, 80, frames).tolist()},
        borders=(), notes=(), pair=Pair(name=name, predicted=Path("made.mp4")),
    )  # fmt: skip
    return replace(score, **changes)


def _never(flags: Any, settings: Any) -> None:
    raise AssertionError("nothing is animated here")


@pytest.mark.parametrize(
    ("count", "rule", "names"),
    [
        (1, "spread", "c"), (2, "spread", "ae"), (3, "spread", "ace"), (9, "spread", "abcde"), (2, "worst", "ab"),
        (2, "best", "de"), (1, "median", "c"), (3, "median", "bcd"), (0, "spread", ""), (1, ("e", "b"), "eb"),
    ],
)  # fmt: skip
def test_videos_are_chosen_by_rank_or_by_name(count: int, rule: Any, names: str) -> None:
    videos = [_score(name, 0.1 * rank) for name, rank in zip("ebdac", (9, 2, 4, 1, 3), strict=True)]
    chosen = select(videos, count, rule)
    assert "".join(video.name for video, _ in chosen) == names
    assert all("abcde"[rank - 1] == video.name for video, rank in chosen)


def test_strips_show_videos_that_every_system_has() -> None:
    systems = {"ours": [_score("a", 0.2), _score("b", 0.4)], "theirs": [_score("b", 0.1)]}
    plan = figures.plan_figures(systems, 3, None)
    assert [video.name for video, _ in plan.shown] == ["b"]
    assert plan.to_json()["strips"] == [{"video": "b", "rank": 1, "value": 0.4}]
    assert [video.name for video, _ in figures.plan_figures(systems, 3, ("a", "b")).shown] == ["b"]


@pytest.fixture
def systems(tmp_path: Path) -> dict[str, VideoScore]:
    """One video of two systems, with its truth, reference and motion."""
    truth = write(tmp_path / "truth" / "v.mp4", drawn(0))
    reference = tmp_path / "picture.png"
    write_image(reference, drawn(1, frames=1)[0])
    save_motion(tmp_path / "poses.npz", waving(12, (64, 64)))
    scores = {}
    for name, amount in (("ours", 2), ("theirs", 20)):
        change = noisy(amount)
        made = write(tmp_path / name / "v.mp4", [change(0, frame) for frame in drawn(0)])
        pair = Pair(name="v", predicted=made, target=truth, reference=reference, poses=tmp_path / "poses.npz")
        scores[name] = _score("v", frames=12, pair=pair)
    return scores


def test_a_strip_holds_the_right_frames_with_ours_last(systems: dict[str, VideoScore]) -> None:
    strip = strips.read_strip(systems, None)
    assert strip.frames == (2, 6, 10)
    assert [title for title, _ in strip.columns] == ["Reference", "Pose", "Ground truth", "theirs", "ours"]
    columns = dict(strip.columns)
    frames = [frame for _, frame in open_clip(systems["theirs"].pair.predicted).frames()]
    for row, frame in enumerate(strip.frames):
        np.testing.assert_array_equal(columns["theirs"][row], frames[frame])
    np.testing.assert_array_equal(columns["Reference"][0], drawn(1, frames=1)[0])
    assert all(image.max() > 100 and np.median(image) == 0 for image in columns["Pose"])


def test_without_a_motion_poses_are_those_of_the_ground_truth(systems: dict[str, VideoScore]) -> None:
    alone = {name: replace(score, pair=replace(score.pair, poses=None)) for name, score in systems.items()}
    assert "Pose" not in dict(strips.read_strip(alone, None).columns)
    seen: list[int] = []

    def detect(frames: Any) -> np.ndarray:
        seen.append(len(frames))
        return waving(3, (64, 64)).keypoints[:, 0]

    assert len(dict(strips.read_strip(alone, detect).columns)["Pose"]) == 3
    assert seen == [3]


def test_all_figures_are_written_as_vectors_and_equal_scores_give_equal_bytes(
    systems: dict[str, VideoScore], tmp_path: Path
) -> None:
    plan = figures.plan_figures({name: [score, _score("w", 0.3)] for name, score in systems.items()}, 1, ("v",))
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        shown = figures.write_figures(plan, out, ["csim_ref", "psnr"], None, NullReporter())
    files = sorted(file.name for file in (first / "figures").iterdir())
    names = ["csim-against-angle", "csim-over-time", "metrics", "strip-1-v"]
    assert files == sorted(name + kind for name in names for kind in (".pdf", ".png"))
    for name in files:
        data = (first / "figures" / name).read_bytes()
        assert data == (second / "figures" / name).read_bytes()
        assert carries_mark(first / "figures" / name)
        if name.endswith(".pdf") and not name.startswith("strip"):
            assert b"/Subtype /Image" not in data
    assert "rank 2 of 2 from the worst by CSIM reference of ours (0.5)" in shown[0]
    assert all(rf"{{figures/{name}.pdf}}" in "\n".join(shown) for name in names)


def test_plots_show_means_over_videos_and_their_intervals() -> None:
    videos = [_score(str(n), 0.5 + 0.01 * n) for n in range(5)]
    short = _score("short", 0.9, frames=2)
    figure = plots.csim_over_time({"one": [*videos, short], "two": videos[:4]})
    assert figure is not None
    (axes,) = figure.axes
    one, two = axes.get_lines()
    assert np.asarray(one.get_xydata())[-1] == pytest.approx((5, 0.62))  # without the short video
    assert np.asarray(one.get_xydata())[0] == pytest.approx((0, (5 * 0.42 + 0.8) / 6))
    assert len(np.asarray(two.get_xydata())) == 6
    assert len(axes.collections) == 1  # four videos have no interval
    angles = plots.csim_against_angle({"one": videos})
    assert angles is not None
    means = np.asarray(angles.axes[0].get_lines()[-1].get_xydata())
    assert means[:, 0] == pytest.approx([8, 16, 36, 56, 80])  # degrees, from the front
    assert plots.csim_over_time({"one": [replace(videos[0], curves={})]}) is None
    assert plots.csim_against_angle({"one": [replace(videos[0], curves={"csim_ref": [0.5]})]}) is None
    assert plots.metric_boxes({"one": videos[:1]}, ["psnr"]) is None  # one value has no quartiles


def test_one_command_scores_and_draws(made: Path, truth: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = {"inputs": [made, truth], "output": out, "strips": 1, "strip_videos": "worst"}
    run(flags=flags, animate=_never)
    told = json.loads((out / "scores.json").read_text())["figures"]
    assert (told["rule"], told["metric"], told["system"], told["of"]) == ("worst", "psnr", made.name, 2)
    assert [strip["video"] for strip in told["strips"]] == ["figure_1"]
    paper = (out / "paper.tex").read_text()
    assert r"\input{scores.tex}" in paper
    for path in re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", paper):
        assert (out / path).is_file()
    with pytest.raises(ConfigError, match="--strip-videos: found 'nobody', expected names of scored videos: figure_0"):
        run(flags=flags | {"strip_videos": "figure_1,nobody", "output": tmp_path / "other"}, animate=_never)
    assert not (tmp_path / "other").exists()
    (out / "figures" / "metrics.pdf").write_bytes(b"mine")
    with pytest.raises(BadInput, match="was not written by sa"):
        run(flags=flags, animate=_never)


def test_a_missing_matplotlib_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(figures, "find_spec", importlib.util.find_spec)
    with pytest.raises(ConfigError, match="--strips: found 'no matplotlib'") as error:
        run(flags={"inputs": [tmp_path / "none", tmp_path / "nowhere"], "strips": 2}, animate=_never)
    assert "pip install" in str(error.value.hint)


@pytest.mark.parametrize(
    "flags",
    [
        {"strip_videos": "worst"}, {"strips": -1}, {"strips": 2, "tally": True}, {"strips": 2, "strip_videos": "a/b"},
    ],
)  # fmt: skip
def test_strips_that_cannot_be_are_refused(flags: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--strip"):
        run(flags={"inputs": [tmp_path, tmp_path], **flags}, animate=_never)
