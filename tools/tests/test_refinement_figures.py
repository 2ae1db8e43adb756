"""Cases are scored against the drawn truth, stored at once, and averaged over puppets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.puppets.scene import Scene
from tools.bench import refinement_figures as figures

PLAN = figures.Plan(model="puppet", size=(64, 64), frames=2, steps=1)


def case(puppet: int, seed: int, mode: str, judge: float) -> figures.Case:
    return figures.Case(
        puppet=puppet, seed=seed, mode=mode, frames=2, judge=judge, recogniser=judge, face_psnr=20.0,
        sharpness=0.8, background_psnr=30.0,
    )  # fmt: skip


@pytest.fixture
def fake_videos(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The truth instead of videos, with a slightly wrong background; returns the requested cases."""
    requested: list[tuple[int, str]] = []

    def animate(scene: Scene, plan: figures.Plan, seed: int, mode: str, folder: Path) -> np.ndarray:
        requested.append((seed, mode))
        frames = list(scene.clip())
        video = np.stack([frame.image for frame in frames])
        for image, frame in zip(video, frames, strict=True):
            image[~figures.face_mask(frame)] ^= 1
        return video

    monkeypatch.setattr(figures, "animate", animate)
    return requested


def test_the_truth_itself_is_perfect_but_for_its_background(fake_videos: list, tmp_path: Path):
    (measured,) = figures.cases(PLAN, 1, 1, ["off"], tmp_path)
    assert measured.face_psnr > 100
    assert measured.sharpness == pytest.approx(1, abs=0.01)  # the Laplacian at the box's border sees the background
    assert measured.background_psnr == pytest.approx(48.13, abs=0.01)  # an error of one level
    assert measured.judge > 0.5  # another pose of the same person
    assert measured.recogniser > 0.3


def test_a_blurred_face_is_less_sharp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def blurred(scene: Scene, *_: object) -> np.ndarray:
        return np.stack([cv2.GaussianBlur(frame.image, (0, 0), 1.0) for frame in scene.clip()])

    monkeypatch.setattr(figures, "animate", blurred)
    (measured,) = figures.cases(PLAN, 1, 1, ["off"], tmp_path)
    assert 0.05 < measured.sharpness < 0.7


def test_stored_cases_are_not_measured_again(fake_videos: list, tmp_path: Path):
    first = list(figures.cases(PLAN, 1, 2, ["off"], tmp_path))
    assert fake_videos == [(0, "off"), (1, "off")]
    path = tmp_path / "cases.jsonl"
    path.write_bytes(path.read_bytes()[:-5])  # interrupted while the last line was written
    again = list(figures.cases(PLAN, 1, 2, ["off", "crop"], tmp_path))
    assert fake_videos[2:] == [(1, "off"), (0, "crop"), (1, "crop")]
    assert [one for one in again if one.mode == "off"] == first
    assert len(path.read_text().splitlines()) == 1 + 4


def test_after_the_time_limit_only_stored_cases_follow(fake_videos: list, tmp_path: Path):
    first = list(figures.cases(PLAN, 1, 1, ["off"], tmp_path))
    assert list(figures.cases(PLAN, 2, 2, ["off", "paper"], tmp_path, minutes=0.0)) == first
    assert len(fake_videos) == 1


def test_the_papers_sampler_has_its_own_steps_and_its_own_baseline():
    plan = figures.Plan(model="puppet", size=(64, 64), frames=2, steps=4, paper_steps=9)
    assert {mode: plan.steps_of(mode) for mode in figures.MODES} == {
        "off": 4, "full": 4, "crop": 4, "paper-off": 9, "paper": 9,
    }  # fmt: skip
    cases = [case(0, 0, mode, judge) for mode, judge in (("off", 0.5), ("paper-off", 0.1), ("paper", 0.3))]
    row = figures.table(cases).splitlines()[-1]
    assert row.startswith("| paper | 1 | 0.300 (0.300 to 0.300); +0.200")
    assert "over paper-off" in row


def test_the_page_names_the_command_without_its_folders(
    fake_videos: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "page.md"
    words = [str(tmp_path / "work"), "--puppets", "2", "--seeds", "1", "--modes", "off,paper", "--size", "64x64"]
    assert figures.main([*words, "--page", str(page)]) == 0
    text = page.read_text()
    assert "refinement_figures work --puppets 2 --seeds 1 --modes off,paper --size 64x64" in text
    assert capsys.readouterr().out in text
    assert str(tmp_path) not in text


def test_an_unknown_mode_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        figures.main([str(tmp_path), "--modes", "best"])
    assert "expected some of off, full, crop, paper-off, paper" in capsys.readouterr().err


def test_cases_of_other_settings_are_refused(fake_videos: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [str(tmp_path), "--puppets", "1", "--seeds", "1", "--modes", "off", "--size", "64x64"]
    assert figures.main([*words, "--frames", "2"]) == 0
    assert capsys.readouterr().out.startswith("| mode | cases | similarity by the judge |")
    assert figures.main([*words, "--frames", "3"]) == 3
    assert "rows of other settings (frames)" in capsys.readouterr().err


def test_a_case_without_a_face_has_no_similarity():
    row = {"puppet": 0, "seed": 0, "mode": "off", "frames": 2, "judge": None, "recogniser": None}
    assert np.isnan(figures.case_of(row | {"face_psnr": 1.0, "sharpness": None, "background_psnr": 2.0}).judge)


def test_seeds_are_averaged_before_puppets_are_resampled():
    cases = [case(0, 0, "off", 0.0), case(0, 1, "off", 0.2), case(1, 0, "off", 0.5), case(1, 1, "off", float("nan"))]
    assert figures.mean_over_puppets(cases, "judge", "off").value == pytest.approx((0.1 + 0.5) / 2)


def test_a_difference_is_taken_case_by_case():
    """Puppets differ more than modes do, so only the interval of the difference is narrow."""
    rng = np.random.default_rng(0)
    cases = []
    for puppet in range(8):
        start = rng.uniform(0, 0.8)
        cases += [case(puppet, 0, "off", start), case(puppet, 0, "crop", start + 0.05 + rng.normal(0, 0.005))]
    gain = figures.mean_over_puppets(cases, "judge", "crop", "off")
    assert 0.03 < gain.low <= gain.value <= gain.high < 0.07
    row = figures.table(cases).splitlines()[-1]
    assert row.startswith("| crop | 8 |")
    assert "over off" in row


def test_each_puppet_is_another_person():
    people = {repr(figures.scene_of(puppet, PLAN).people[0].identity) for puppet in range(5)}
    assert len(people) == 5


def test_one_real_case_of_the_shipped_model(tmp_path: Path):
    scene: Any = figures.scene_of(0, PLAN)
    video = figures.animate(scene, PLAN, 0, "crop", tmp_path)
    assert video.shape == (2, 64, 64, 3)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["config"]["refine"]["face"] == "crop"
    scores = figures.score_video(video, scene, figures.Judges(catalogue.open_model("puppet")))
    assert scores["background_psnr"] < 40
