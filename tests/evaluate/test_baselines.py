"""Videos of other systems without a bench: per-video values, paired differences, memory, side by side."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing
from stableanimator_cli.evaluate.baselines import own_name
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.metrics.paired import INTERVAL
from tests.evaluate.samples import changed, drawn, noisy, write

COUNT = 5


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of ours; a copy of them; and a system whose frames are the truth but for one grey level."""
    root = tmp_path_factory.mktemp("systems")
    for figure in range(COUNT):
        name = f"v{figure}.mp4"
        truth = write(root / "truth" / name, [frame // 2 + 40 for frame in drawn(figure, frames=4)])
        changed(truth, root / "made" / name, noisy(6 + figure, seed=figure))
        changed(truth, root / "others" / "better" / name, lambda index, frame: frame + 1)
    shutil.copytree(root / "made", root / "others" / "copy")
    record = {"stableanimator-cli": "0", "output": {"frames": 4}, "peak_bytes": {"device": 3 << 30, "host": 1}}
    (root / "others" / "better" / "v1.json").write_text(json.dumps(record))
    return root


def _never(flags: Any, settings: Any) -> None:
    raise AssertionError("nothing is animated here")


def _run(sides: Path, out: Path, *inputs: str, **flags: Any) -> Scores:
    given = {"inputs": [sides / name for name in inputs], "output": out, "baselines": sides / "others", **flags}
    scores = run(flags=given, animate=_never)
    assert isinstance(scores, Scores)
    return scores


@pytest.fixture(scope="module")
def scores(sides: Path, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Without a model: pixels alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SA_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("SA_MODEL", raising=False)
        return _run(sides, tmp_path_factory.mktemp("scores"), "made", "truth")


def test_a_copy_of_ours_differs_by_exactly_nothing(scores: Scores) -> None:
    told = json.loads((scores.output / "scores.json").read_text())["paired_differences"]["copy"]
    assert {"psnr", "ssim", "mae_unit", "flicker_distance"} <= set(told)
    for name, one in told.items():
        assert (one["mean"], one["p_value"], one["win_rate"]) == (0, 1, 0.5), name
        assert (one["interval"], one["interval_method"]) == ([0, 0], INTERVAL), name
        assert set(one["per_video"].values()) == {0}, name


def test_a_better_system_is_found_by_what_it_is_better(scores: Scores) -> None:
    one = scores.about["paired_differences"]["better"]["mae_unit"]
    ours = {video.name: video.values["mae_unit"] for video in scores.videos}
    assert one["per_video"] == {name: pytest.approx(value - 1 / 255) for name, value in ours.items()}
    low, high = one["interval"]
    assert 0 < low < one["mean"] < high
    assert (one["wins"], one["losses"], one["p_value"]) == (0, COUNT, pytest.approx(2 / 2**COUNT))
    assert "flicker" not in scores.about["paired_differences"]["better"]


def test_differences_stand_in_every_file(scores: Scores) -> None:
    lines = list(csv.DictReader((scores.output / "scores.csv").read_text().splitlines()))
    paired = [one for one in lines if one["data"] == "ours minus this system"]
    differences = [one for one in paired if one["metric"] == "psnr difference"]
    assert [one["video"] for one in differences if one["system"] == "copy"] == ["", *(f"v{n}" for n in range(COUNT))]
    (mean,) = [one for one in differences if one["system"] == "better" and not one["video"]]
    assert float(mean["low"]) < float(mean["value"]) < float(mean["high"]) < 0
    metrics = {one["metric"] for one in paired if one["metric"].startswith("ssim")}
    assert metrics == {"ssim difference", "ssim Wilcoxon p", "ssim win rate"}
    assert [one["video"] for one in lines if (one["system"], one["metric"], one["data"]) == ("better", "ssim", "")] == [
        "", *(f"v{n}" for n in range(COUNT))
    ]  # fmt: skip
    latex = (scores.output / "scores.tex").read_text()
    assert latex.index("ours minus better") < latex.index("protocol native")  # LaTeX keeps the order of wide and narrow
    page = (scores.output / "report.html").read_text()
    for title in ("ours minus better, paired by video (5 videos)", "systems"):
        assert title in latex
        assert title in page


def test_systems_are_columns_with_the_memory_that_a_record_has(scores: Scores) -> None:
    title, columns, rows = scores.tables[0]
    assert (title, columns) == ("systems", ["metric", "", "ours", "better", "copy"])
    by_name = {row[0]: row for row in rows}
    assert by_name["mae_unit"][2] == by_name["mae_unit"][4]
    assert by_name["mae_unit"][3].startswith("0.003922 [")
    assert rows[-1][1:] == ["memory of the recorded run", "–", "3.00G (4 frames)", "–"]
    assert scores.about["rival_memory"] == {"better": {"bytes": 3 << 30, "frames": 4}, "copy": None}


def test_a_system_of_our_name_is_told_from_ours() -> None:
    assert own_name("made", ["better"]) == "made"
    assert own_name("better", ["better"]) == "ours"
    assert own_name("ours", ["ours", "better"]) == "ours (ours)"
    assert own_name("better", ["ours", "better"]) == "better (ours)"


def test_videos_are_shown_beside_ours(scores: Scores, sides: Path) -> None:
    path = scores.output / "videos" / "better" / "v2.mp4"
    clip = open_clip(path)
    assert (clip.size, clip.count) == ((128, 64), 4)
    (_, shown), *_ = clip.frames()
    (_, theirs), *_ = open_clip(sides / "others" / "better" / "v2.mp4").frames()
    assert np.abs(shown[:, 64:].astype(int) - theirs).mean() < 4
    page = (scores.output / "report.html").read_text()
    assert 'src="videos/better/v2.mp4"' in page
    assert "<span>ours</span><span>better</span>" in page
    assert "copy: 4 frames; mae_unit" in page
    assert 'poster="pictures/better/v2.poster.jpg"' in page
    assert (scores.output / "pictures" / "better" / "v2.poster.jpg").is_file()


def test_without_a_ground_truth_too_and_of_unequal_length(sides: Path, tmp_path: Path) -> None:
    """A rival may have made more frames than ours: each is scored in full, and a warning names both counts."""
    warnings: list[str] = []
    (tmp_path / "others" / "longer").mkdir(parents=True)
    write(tmp_path / "others" / "longer" / "any-name.mp4", drawn(0, frames=6))

    class Heard:
        from stableanimator_cli.progress import NullReporter

        info, progress = NullReporter.info, NullReporter.progress

        def warning(self, text: str) -> None:
            warnings.append(text)

    write_image(tmp_path / "ref.png", drawn(0, frames=1)[0])
    flags = {
        "inputs": [sides / "made" / "v0.mp4"], "output": tmp_path / "out", "baselines": tmp_path / "others",
        "reference_picture": tmp_path / "ref.png", "borders": "2",
    }  # fmt: skip
    scores = run(flags=flags, animate=_never, reporter=Heard())  # type: ignore[arg-type]
    assert isinstance(scores, Scores)
    assert any("v0: ours has 4 frames, longer has 6" in text for text in warnings)
    (one,) = scores.about["paired_differences"].values()
    assert (one["seam_score"]["videos"], one["seam_score"]["interval"]) == (1, None)
    assert open_clip(tmp_path / "out" / "videos" / "longer" / "v0.mp4").count == 4


def test_a_system_may_be_named_like_a_video_of_ours(sides: Path, tmp_path: Path) -> None:
    """`videos/v0.mp4` was a file of ours and the folder of that system."""
    for name in ("v0.mp4", "v0.mp4-", "V0.Poster.JPG"):
        shutil.copytree(sides / "others" / "copy", tmp_path / "others" / name)
    for _ in range(2):  # the second run replaces its own files alone
        scores = _run(sides, tmp_path / "out", "made", "truth", baselines=tmp_path / "others")
        assert [section.system for section in scores.sections] == ["V0.Poster.JPG", "v0.mp4", "v0.mp4-"]
        page = (tmp_path / "out" / "report.html").read_text()
        for source in re.findall(r'(?:src|poster)="(.*?)"', page):
            assert (tmp_path / "out" / source).is_file(), source
        assert page.count('src="videos/v0.mp4-/') == page.count('src="videos/v0.mp4--/') == COUNT
        assert "<span>ours</span><span>v0.mp4</span>" in page


def test_scores_do_not_go_where_a_system_is_linked_from(sides: Path, tmp_path: Path) -> None:
    shutil.copytree(sides / "others" / "copy", tmp_path / "out" / "animated")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "linked").symlink_to(tmp_path / "out" / "animated")
    with pytest.raises(BadInput, match=r"the output contains the input .*linked"):
        _run(sides, tmp_path / "out", "made", "truth", baselines=tmp_path / "others")


def test_a_system_with_missing_videos_is_refused(sides: Path, tmp_path: Path) -> None:
    shutil.copytree(sides / "others", tmp_path / "others")
    (tmp_path / "others" / "better" / "v3.mp4").unlink()
    with pytest.raises(BadInput, match=r"better: found no video named v3, expected one for each of the 5 in .*made"):
        _run(sides, tmp_path / "out", "made", "truth", baselines=tmp_path / "others")
    with pytest.raises(BadInput, match="no folders, expected one folder per system"):
        _run(sides, tmp_path / "out", "made", "truth", baselines=sides / "made")
    shutil.copy(sides / "made" / "v0.mp4", tmp_path / "others" / "better" / "v3.mp4")
    write(tmp_path / "others" / "better" / "v3.mp4", drawn(0, frames=3))
    with pytest.raises(BadInput, match=r"v3\.mp4: found 3 frames, expected 4"):
        _run(sides, tmp_path / "out", "made", "truth", baselines=tmp_path / "others")
    assert not (tmp_path / "out").exists()


def test_ours_with_pasted_faces_is_one_more_system(sides: Path, tmp_path: Path) -> None:
    """``--face-paste`` needs no folder of videos; a system of its name keeps its own."""
    write_image(tmp_path / "ref.png", drawn(2, frames=1, size=(128, 128))[0])
    for figure in range(2):
        write(tmp_path / "made" / f"v{figure}.mp4", drawn(figure, frames=2, size=(128, 128)))
    flags: dict[str, Any] = {
        "inputs": [tmp_path / "made"],
        "reference_picture": tmp_path / "ref.png",
        "face_paste": True,
    }
    flags["model"] = "puppet"
    scores = run(flags={**flags, "output": tmp_path / "out", "strips": 1}, animate=_never)
    assert isinstance(scores, Scores)
    (section,) = scores.sections
    assert section.system == "face-paste"
    assert section.rows["csim_ref"].shown > scores.rows["csim_ref"].shown + 0.3
    assert (tmp_path / "out" / "animated" / "face-paste" / "v1.mp4").is_file()
    assert (tmp_path / "out" / "videos" / "face-paste" / "v1.mp4").is_file()
    assert scores.about["paired_differences"]["face-paste"]["csim_ref"]["losses"] == 2
    assert len(list((tmp_path / "out" / "figures").glob("strip-1-*.pdf"))) == 1
    shutil.copytree(tmp_path / "made", tmp_path / "others" / "face-paste")
    scores = run(flags={**flags, "output": tmp_path / "out2", "baselines": tmp_path / "others"}, animate=_never)
    assert isinstance(scores, Scores)
    assert [one.system for one in scores.sections] == ["face-paste", "face-paste (ours)"]
    assert set(scores.about["paired_differences"]["face-paste"]["csim_ref"]["per_video"].values()) == {0}


def test_faces_are_pasted_only_with_a_reference_and_a_recogniser(sides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--face-paste: found 'on', expected --reference-picture"):
        _run(sides, tmp_path / "out", "made", "truth", face_paste=True)
    write_image(tmp_path / "ref.png", drawn(0, frames=1)[0])
    with pytest.raises(ModelMissing, match=r"--face-paste: found no .*face recogniser here"):
        _run(sides, tmp_path / "out", "made", "truth", face_paste=True, reference_picture=tmp_path / "ref.png")
    assert not (tmp_path / "out").exists()
