"""Frames of picture folders are compared by number; what has no counterpart is listed, or left out and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.frame_matching import match_frames, numbers_of
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.media import open_clip, write_image
from tests.evaluate.samples import drawn, noisy, write


def _folder(path: Path, numbers: Any, form: str = "{:04d}.png") -> Path:
    path.mkdir(parents=True)
    for number in numbers:
        write_image(path / form.format(number), np.full((16, 16, 3), number, np.uint8))
    return path


def _match(made: Path, truth: Path, **options: Any) -> Any:
    return match_frames(open_clip(made), open_clip(truth), **options)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["0.png", "1.png", "10.png"], [0, 1, 10]),
        (["f_0007_512.png", "f_0009_512.png"], [7, 9]),
        (["shot2_1.png"], [1]),
        (["a.png", "b.png"], None),
        (["1_a.png", "1_b.png"], None),
        (["a1.png", "b1.png"], None),
        (["1.png", "x.png"], None),
    ],
)
def test_numbers_are_read_off_names(names: list[str], numbers: list[int] | None) -> None:
    assert numbers_of(names) == numbers


def test_unpaired_frames_of_two_folders_are_listed(tmp_path: Path) -> None:
    made = _folder(tmp_path / "made", [0, 1, 2, 4, 5])
    truth = _folder(tmp_path / "truth", [0, 1, 2, 3, 5], "t{:02d}.png")
    with pytest.raises(BadInput) as caught:
        _match(made, truth)
    assert "1 of the prediction (0004.png), 1 of the ground truth (t03.png)" in caught.value.message
    assert "--truncate" in str(caught.value.hint)
    matched = _match(made, truth, truncate=True)
    assert (matched.predicted, matched.target) == ((0, 1, 2, 4), (0, 1, 2, 4))
    assert matched.numbers == (0, 1, 2, 4)  # no clip crosses the gap


def test_every_second_frame_is_no_gap(tmp_path: Path) -> None:
    made, truth = _folder(tmp_path / "made", range(0, 8, 2)), _folder(tmp_path / "truth", range(0, 8, 2))
    assert _match(made, truth).numbers == (0, 1, 2, 3)


def test_a_video_is_numbered_as_the_folder_beside_it(tmp_path: Path) -> None:
    video = write(tmp_path / "v.mp4", [np.full((16, 16, 3), n, np.uint8) for n in range(5)])
    assert _match(video, _folder(tmp_path / "from_1", range(1, 6))).target == (0, 1, 2, 3, 4)
    lacking = _folder(tmp_path / "lacking", [0, 1, 3, 4])
    with pytest.raises(BadInput, match=r"1 of the prediction \(frame 2\)"):
        _match(video, lacking)
    assert _match(lacking, video, truncate=True).target == (0, 1, 3, 4)


def test_names_without_numbers_are_matched_whole(tmp_path: Path) -> None:
    for side in ("made", "truth"):
        _folder(tmp_path / side, range(1))
        for name in ("b", "a"):
            shutil.copy(tmp_path / side / "0000.png", tmp_path / side / f"{name}.png")
        (tmp_path / side / "0000.png").unlink()
    assert _match(tmp_path / "made", tmp_path / "truth").predicted == (0, 1)
    (tmp_path / "truth" / "a.png").rename(tmp_path / "truth" / "c.png")
    with pytest.raises(BadInput, match=r"1 of the prediction \(a\.png\), 1 of the ground truth \(c\.png\)"):
        _match(tmp_path / "made", tmp_path / "truth")
    shutil.copy(tmp_path / "made" / "a.png", tmp_path / "made" / "a.jpg")
    with pytest.raises(BadInput, match="2 images are named a"):
        _match(tmp_path / "made", tmp_path / "truth")


def test_folders_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    made, truth = _folder(tmp_path / "made", [0, 1]), _folder(tmp_path / "truth", [7, 8])
    with pytest.raises(BadInput, match="no counterpart"):
        _match(made, truth, truncate=True)


def test_identical_frames_with_one_file_missing_are_identical(tmp_path: Path) -> None:
    """Paired by order they scored 14 to 22 dB."""
    frames = drawn(0)
    for side, lacking in (("made", 3), ("truth", 7)):
        (tmp_path / side).mkdir()
        for number, frame in enumerate(frames):
            if number != lacking:
                write_image(tmp_path / side / f"{number:03d}.png", frame)

    def scored(**flags: Any) -> Scores:
        inputs = [tmp_path / "made", tmp_path / "truth"]
        given = {"inputs": inputs, "output": tmp_path / "out", "model": "puppet", "borders": "4,8", **flags}
        scores = run(flags=given, animate=lambda flags, settings: None)
        assert isinstance(scores, Scores)
        return scores

    with pytest.raises(BadInput, match=r"\(007\.png\), 1 of the ground truth \(003\.png\)"):
        scored()
    scores = scored(truncate=True)
    (video,) = scores.videos
    assert video.frames == len(frames) - 2
    assert scores.rows["ssim"].shown == 1
    assert scores.rows["csim_gt"].shown == pytest.approx(1)
    assert scores.rows["flicker_distance"].shown == 0
    assert video.borders == (4, 7)  # the ninth frame of the prediction is the eighth that is compared
    told = json.loads((tmp_path / "out" / "scores.json").read_text())["videos"][0]
    assert "007.png" in told["frames_left_out"]
    assert any("--truncate" in note for note in video.notes)


def test_flicker_and_seams_do_not_see_a_gap(tmp_path: Path) -> None:
    """A folder that lacks two frames flickers as its parts do."""
    for side, change in (("truth", lambda index, frame: frame), ("made", noisy(6))):
        (tmp_path / side).mkdir()
        for number, frame in enumerate(drawn(0)):
            if number not in (5, 6):
                write_image(tmp_path / side / f"{number}.png", change(number, frame))
    given = {"inputs": [tmp_path / "made", tmp_path / "truth"], "output": tmp_path / "out", "model": "puppet"}
    scores = run(flags=given, animate=lambda flags, settings: None)
    assert isinstance(scores, Scores)
    curve = scores.videos[0].curves["change"]
    assert [index for index, value in enumerate(curve) if value is None] == [4]
    assert scores.videos[0].counts["flicker"] == 3 + 3
