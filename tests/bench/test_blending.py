"""Blends are compared clip by clip, by intervals of paired differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.bench import blending
from stableanimator_cli.bench.results import put_on_page
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.scoring import VideoScore


def scored(**figures: float) -> VideoScore:
    return VideoScore(
        name="x", predicted={}, truth=None, frames=64, values=figures, counts={}, curves={}, borders=(), notes=(),
        pair=Pair(name="x", predicted=Path("x.mp4")),
    )  # fmt: skip


def found(gain: float, psnr: float, points: float) -> blending.Scored:
    """Clips that differ much more than blends do."""
    rng = np.random.default_rng(0)
    out: blending.Scored = {blending.THEIRS: [], blending.OURS: []}
    for _ in range(8):
        hard, jitter = rng.uniform(1, 3), rng.normal(0, 0.01)
        same = {"seam_worst": 2 * hard, "flicker_excess": 0.0}
        out[blending.THEIRS].append(scored(seam_score=hard, psnr=20 + hard, keypoint_error=0.03, **same))
        out[blending.OURS].append(
            scored(seam_score=hard - gain + jitter, psnr=20 + hard + psnr, keypoint_error=0.03 + points, **same)
        )
    return out


def test_a_gain_smaller_than_what_clips_differ_by_is_seen():
    assert [mark.holds for mark in blending.marks(found(0.1, 0.0, 0.0))] == [True, True, True]
    seams = blending.difference(found(0.1, 0.0, 0.0), "seam_score")
    assert -0.12 < seams.low <= seams.value <= seams.high < -0.08


@pytest.mark.parametrize(
    ("gain", "psnr", "points", "missed"),
    [(0.0, 0.0, 0.0, 0), (0.1, -0.2, 0.0, 1), (0.1, 0.0, 0.01, 2)],
)
def test_each_mark_can_be_missed(gain: float, psnr: float, points: float, missed: int):
    assert [mark.holds for mark in blending.marks(found(gain, psnr, points))].index(False) == missed


def test_a_clip_that_one_way_has_no_figure_for_is_left_out():
    pairs = found(0.1, 0.0, 0.0)
    pairs[blending.OURS][0] = scored(psnr=20.0)
    row = blending.tables(pairs, blending.Trial())[0].rows[0]
    assert row["clips lower"] == "7 of 7"
    assert np.isfinite(row["smooth - upstream"].value)


def test_real_clips_are_made_once_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    words = [str(tmp_path / "w"), "--clips", "1", "--frames", "12", "--steps", "1", "--page", str(tmp_path / "page.md")]
    (tmp_path / "w").mkdir()
    assert blending.main(words) in (0, 8)  # one step of one clip says nothing about blends
    first = capsys.readouterr().out
    made = {way: (tmp_path / "w" / way / "00000.mp4").stat().st_mtime_ns for way in blending.WAYS}
    monkeypatch.setattr(blending, "_animate", lambda flags, settings: pytest.fail("animated again"))
    assert blending.main(words) in (0, 8)
    assert capsys.readouterr().out == first
    assert {way: (tmp_path / "w" / way / "00000.mp4").stat().st_mtime_ns for way in blending.WAYS} == made
    page = (tmp_path / "page.md").read_text()
    assert page.count("<!-- bench blending: generated -->") == 1
    assert "| seams (lower is better) |" in page
    assert str(tmp_path) not in page


def test_what_cannot_be_animated_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert blending.main([str(tmp_path), "--clips", "0"]) == 2
    assert capsys.readouterr().err.startswith("--videos: found 0, expected 1 to")


def test_parts_of_a_page_are_put_between_their_own_markers(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# P\n\ntext\n")
    put_on_page(page, {"a": "one", "b": "two"})
    put_on_page(page, {"a": "three"})
    assert page.read_text() == (
        "# P\n\ntext\n\n<!-- bench a: generated -->\nthree\n<!-- bench a: end -->\n\n"
        "<!-- bench b: generated -->\ntwo\n<!-- bench b: end -->\n"
    )
