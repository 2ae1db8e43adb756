"""``report.html`` of a thousand long videos: small, linked rather than embedded, dips of one frame still to be seen.

``python -m tests.evaluate.test_report_page DIR [COUNT]`` leaves such a page there, with a video and pictures that open,
to be looked at in a browser.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.protocols import PROTOCOLS
from stableanimator_cli.evaluate.report_html import BOTTOM, LEFT, PLOTS, RIGHT, TOP, _scale, write_page
from stableanimator_cli.evaluate.scores import PAGE, Scores, Section, summarise
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.evaluate.side_by_side import WorstFrame, write_pair
from tests.evaluate.samples import drawn, write

VIDEOS, FRAMES = 1000, 300
DIP = 123  # a frame that is worse than all others


def _video(n: int, frames: int) -> VideoScore:
    rng = np.random.default_rng(n)
    curves = {name: rng.uniform(low, high, frames) for name, low, high in (
        ("csim_ref", 0.6, 0.8), ("psnr", 20, 24), ("change", 0.01, 0.02), ("change_truth", 0.01, 0.02),
        ("keypoint_error", 0.01, 0.03),
    )}  # fmt: skip
    if frames > DIP:
        curves["csim_ref"][DIP] = -0.5
    values = {"csim_ref": curves["csim_ref"].mean(), "psnr": curves["psnr"].mean(), "flicker": 0.01, "seam_score": 1.2}
    return VideoScore(
        name=f"video {n:04d} & #?", predicted={}, target=None, frames=frames,
        values={name: float(value) for name, value in values.items()}, counts=dict.fromkeys(values, frames),
        curves={name: curve.round(5).tolist() for name, curve in curves.items()}, borders=(16, 32), notes=(),
        pair=Pair(name=f"video {n:04d} & #?", predicted=Path("made.mp4")),
    )  # fmt: skip


def _written(out: Path, count: int) -> Scores:
    """A page of ``count`` videos, which are all one file, with one picture each."""
    video = write(out / "drawn.mp4", drawn(0, frames=2))
    pair = Pair(name="first", predicted=video, target=video)
    (picture,) = write_pair(
        VideoScore(name="first", predicted={}, target=None, frames=2, values={}, counts={}, curves={"psnr": [3.0, 2.0]},
                   borders=(), notes=(), pair=pair), out)  # fmt: skip
    videos = [_video(n, FRAMES) for n in range(count)]
    pictures = {}
    for one in videos:
        (out / "videos" / f"{one.name}.mp4").hardlink_to(out / "videos" / "first.mp4")
        beside = picture.path.with_name(f"{one.name}.psnr.jpg")
        beside.hardlink_to(picture.path)
        picture.path.with_name(f"{one.name}.poster.jpg").hardlink_to(picture.path.with_name("first.poster.jpg"))
        pictures[one.name] = [WorstFrame(frame=1, why=picture.why, path=beside)]
    rules = PROTOCOLS["native"]
    scores = Scores(
        output=out, protocol=rules, rows=summarise(videos, rules, about={}), missing=(),
        videos=tuple(videos), about={},
    )  # fmt: skip
    write_page(scores, pictures)
    return scores


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return (_written(tmp_path_factory.mktemp("page"), VIDEOS).output / PAGE).read_text(encoding="utf-8")


def test_a_thousand_videos_are_linked_and_wait_to_be_played(page: str) -> None:
    assert page.count("<video ") == page.count('preload="none" poster="pictures/video%20') == VIDEOS
    assert page.count('src="videos/video%20') == VIDEOS
    assert page.count("<template><div") == VIDEOS  # a browser would read a thousand posters at once
    assert page.count("<img ") == page.count('<img loading="lazy" ') == VIDEOS
    assert 'src="pictures/video%200007%20%26%20%23%3F.psnr.jpg"' in page
    assert "data:" not in page
    assert "content-visibility:auto" in page


def test_the_page_is_small(page: str) -> None:
    assert len(page.encode()) < 10e6  # 300 frames of five curves would be 18 MB if all were drawn


def test_a_thinned_curve_keeps_its_worst_frame(page: str) -> None:
    first = page.index('<div class="clip"')
    points = re.findall(r'points="([^"]*)"', page[first : page.index('<div class="clip"', first + 1)])
    lines = [np.array([point.split(",") for point in line.split()], float) for line in points]
    assert max(map(len, lines)) <= 2 * 60
    worst = lines[0][lines[0][:, 1].argmax()]  # y points down
    assert worst == pytest.approx((LEFT + (RIGHT - LEFT) * DIP / (FRAMES - 1), BOTTOM), abs=0.06)  # the scale's -0.5
    assert (np.diff(lines[0][:, 0]) > 0).all()


def test_all_videos_share_the_axes_and_their_scale(page: str) -> None:
    assert page.count('<g id="axes-') == len(PLOTS)
    assert page.count('<use href="#axes-0"/>') == VIDEOS
    axes = page[page.index('<g id="axes-0"') : page.index('<g id="axes-1"')]
    assert re.findall(r'text-anchor="end">(.*?)<', axes) == ["-0.5", "0", "0.5", "1"]


def test_scales_end_at_round_numbers_and_hold_every_value() -> None:
    for values in ([0.0123, 0.0456], [21.7, 24.1], [-0.5, 0.8], [3.0, 3.0], [0.0, 0.0], [-1e-9, 1e6]):
        video = replace(_video(0, 2), curves={"psnr": values})
        scale = _scale([video], ("psnr",), False)
        assert scale is not None
        assert all(TOP - 1e-6 <= scale.y(value) <= BOTTOM + 1e-6 for value in values)
        assert 2 <= len(scale.ticks) <= 5
        assert scale.ticks[0][1] == f"{BOTTOM:.1f}"
    assert _scale([replace(_video(0, 2), curves={})], ("psnr",), True) is None


def test_sides_are_named_by_what_they_show(tmp_path: Path) -> None:
    text = (_written(tmp_path, 1).output / PAGE).read_text(encoding="utf-8")
    assert text.count('<div class="sides"><span>prediction</span><span>nothing</span></div>') == 2
    assert "<template>" not in text  # a short page needs no script
    assert (tmp_path / "pictures" / "first.poster.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_the_table_of_videos_begins_with_what_it_is_sorted_by_and_has_no_empty_column(tmp_path: Path) -> None:
    videos = tuple(
        replace(one, values={**one.values, "seam_score": float("nan"), "psnr_disco": 9.0})
        for one in (_video(0, 4), _video(1, 4))
    )
    rules = PROTOCOLS["native"]
    rows = summarise(videos, rules, about={})
    write_page(Scores(output=tmp_path, protocol=rules, rows=rows, missing=(), videos=videos, about={}), {})
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    heads = re.findall(r'<button data-by="\d+">(.*?)</button>', page)
    assert heads == ["csim_ref", "psnr", "flicker", "psnr_disco"]
    assert '<option value="0" selected>csim_ref' in page


def test_identity_of_other_systems_is_drawn_beside_ours(tmp_path: Path) -> None:
    """One plot with a line and a key per system, on the scale of all; a longer video of theirs widens it."""
    ours = replace(_video(0, 4), curves={"csim_ref": [0.5, None, 0.7, 0.8]}, borders=())
    curves = {"better & co": [0.9, 0.9, 0.9, 0.9, 1.0], "worse": [0.0, None, 0.0, 0.0], "faceless": [None] * 4}
    sections = tuple(
        Section(system=name, data="", rows={}, videos=(replace(ours, frames=len(curve), curves={"csim_ref": curve}),))
        for name, curve in curves.items()
    )
    rules = PROTOCOLS["native"]
    write_page(
        Scores(output=tmp_path, protocol=rules, rows={}, missing=(), videos=(ours,), about={}, sections=sections), {}
    )
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    own, together = re.findall(r"<figure><svg.*?</figure>", page, re.DOTALL)
    assert "<polyline class=" not in own
    assert ">3</text>" in own
    assert ">4</text>" in together
    assert together.count('<use href="#axes-0"/>') == 1
    assert re.findall(r"<polyline(?: class=\"(.*?)\")?", together) == ["s1", "s2", "s2", "", ""]  # gaps
    for style, name in (("", "ours"), ("s1", "better &amp; co"), ("s2", "worse")):
        assert f'<span class="key {style}">{name}</span>' in together
    assert f' {RIGHT}.0,{TOP}.0"' in together  # the last frame of the longest, 1.0
    assert f'points="{LEFT}.0,{BOTTOM}.0 {LEFT}.0,{BOTTOM}.0"' in together  # a frame between gaps is a dot


def test_the_worst_frame_lies_beside_the_page(tmp_path: Path) -> None:
    _written(tmp_path, 1)
    assert (tmp_path / "pictures" / "first.psnr.jpg").read_bytes()[:2] == b"\xff\xd8"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    print(_written(target, int(sys.argv[2]) if len(sys.argv) > 2 else VIDEOS).output / PAGE)
