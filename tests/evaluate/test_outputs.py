"""Nothing that a run reads is written over, nothing of others is replaced, and one bad video loses no other."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput, BatchFailed
from stableanimator_cli.evaluate import evaluator
from stableanimator_cli.evaluate.detections import VideoDetections, VideoDetector
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.protocols import PROTOCOLS
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.score_builder import ScoreBuilder
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.evaluate.scoring import Scorer
from stableanimator_cli.files import carries_mark, locked_output
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.records import Clip
from tests.evaluate.samples import changed, drawn, noisy, write

PEOPLE = np.zeros((40, 134, 3))


def _never(flags: Any, settings: Any) -> None:
    raise AssertionError("nothing is animated here")


def _scored(made: Path, truth: Path, out: Path, **flags: Any) -> Scores:
    """Without a model: pixels alone."""
    scores = run(flags={"inputs": [made, truth], "output": out, **flags}, animate=_never)
    assert isinstance(scores, Scores)
    return scores


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    for figure in range(3):
        truth = write(tmp_path / "truth" / f"v{figure}.mp4", drawn(figure, frames=4))
        changed(truth, tmp_path / "made" / f"v{figure}.mp4", noisy(6))
    return tmp_path / "made", tmp_path / "truth"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_ground_truth_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sa evaluate made videos -o .` and `sa evaluate --bench bn -o bn` put side-by-side videos in its place."""
    for folder in ("made", "videos", "bn/videos"):
        write(tmp_path / folder / "a.mp4", drawn(0, frames=3))
    before = _contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for flags in (
        {"inputs": ["made", "videos"], "output": "."},
        {"inputs": ["made", "videos"], "output": "videos/scores"},
        {"bench": "bn", "output": "bn"},
        {"bench": "bn", "output": "bn/videos"},
        {"bench": "puppet", "output": "out", "rivals": "out/../."},
        {"inputs": ["made", "videos"], "output": "poses", "poses": "poses/a.npz"},
    ):
        paths = {"output", "rivals", "poses"}
        given: dict[str, Any] = {key: Path(str(value)) if key in paths else value for key, value in flags.items()}
        with pytest.raises(BadInput, match=r"the output (is the same as|contains|lies in|is inside) the input"):
            run(flags=given, animate=_never)
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("link", ["made/v1.mp4", "made/v1", "others/system/v1/0001.png", "poses/v1.npz", "made/scores"])
def test_nothing_is_written_where_a_link_inside_an_input_leads(
    sides: tuple[Path, Path], tmp_path: Path, link: str
) -> None:
    """A folder of links to what an earlier run wrote was an input that the output contained."""
    (tmp_path / "out" / "animated").mkdir(parents=True)
    written = tmp_path / "out" / "animated" / "v1"
    if link.endswith("scores"):
        written = tmp_path / "out"
    elif Path(link).suffix:
        written.write_bytes(b"read through a link")
    else:
        written.mkdir()
    before = _contents(tmp_path / "out")
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).unlink(missing_ok=True)
    (tmp_path / link).symlink_to(written)
    flags = (
        {} if link.startswith("made") else {"baselines" if link[0] == "o" else "poses": tmp_path / Path(link).parts[0]}
    )
    with pytest.raises(BadInput, match=rf"the output (contains|is the same as) the input .*{Path(link).name}"):
        _scored(*sides, tmp_path / "out", **flags)
    assert _contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "name",
    ["scores.json", "scores.csv", "scores.tex", "paper.tex", "report.html", "curves.jsonl", "videos/v1.mp4",
     "pictures/v2.psnr.jpg"],
)  # fmt: skip
def test_a_file_of_others_stops_the_run_before_it_begins(sides: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(BadInput, match=f"{mine.name}: it exists and was not written by sa"):
        _scored(*sides, tmp_path / "out")
    assert _contents(tmp_path / "out") == {name: b"mine"}


def test_all_files_carry_the_mark_and_are_replaced(sides: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _scored(*sides, out)
    assert len(_contents(out)) == 6 + 3 + 6
    assert [path for path in out.rglob("*") if path.is_file() and not carries_mark(path)] == []
    before = _contents(out)
    _scored(*sides, out)
    assert _contents(out) == before
    changed(sides[1] / "v0.mp4", sides[0] / "v0.mp4", noisy(40))
    _scored(*sides, out)
    assert [name for name, data in _contents(out).items() if name.startswith("videos") and data != before[name]] == [
        "videos/v0.mp4"
    ]


def test_one_run_at_an_output_and_none_leaves_an_empty_folder(sides: tuple[Path, Path], tmp_path: Path) -> None:
    held, refused = tmp_path / "held", pytest.raises(BadInput, match="it is being written by another `sa evaluate`")
    with locked_output(held, "sa evaluate", folder=True), refused:
        _scored(*sides, held)
    with pytest.raises(BadInput, match="no such file"):
        _scored(sides[0], tmp_path / "nowhere.mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_left_is_removed(sides: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "videos").mkdir(parents=True)
    left = [out / ".scores.json.999999999.part", out / "videos" / ".v0.mp4.999999999.part"]
    others = [out / f".scores.json.{os.getppid()}.part", out / ".notes.part", out / "a.999999999.part"]
    for path in (*left, *others):
        path.write_bytes(b"x")
    _scored(*sides, out)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def _cut(path: Path) -> None:
    """Keep the index and the first frame, lose the rest."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin + (len(data) - begin) // 3 : -40] = bytes(len(data) - 40 - begin - (len(data) - begin) // 3)
    path.write_bytes(data)


def test_one_bad_video_loses_no_other(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """It lost all at "5/6"."""
    _cut(sides[0] / "v1.mp4")
    scores = _scored(*sides, tmp_path / "out")
    assert scores.exit_code == 7
    assert [video.name for video in scores.videos] == ["v0", "v2"]
    assert [one.name for one in scores.failed] == ["v1"]
    told = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert told["failed"][0]["name"] == "v1"
    assert "v1.mp4" in told["failed"][0]["message"]
    assert scores.rows["ssim"].videos == 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="lists open files by /proc")
def test_a_video_that_fails_is_closed(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """A thousand of them ran out of open files, each with eight frames in memory."""
    _cut(sides[0] / "v1.mp4")
    config, rules = EvaluateConfig(inputs=sides, output=tmp_path / "out"), replace(PROTOCOLS["native"], networks=())
    one = evaluator.Evaluator(config=config, rules=rules, detector=VideoDetector(None), reporter=NullReporter())
    pairs = [Pair(name=name, predicted=sides[0] / name, target=sides[1] / name) for name in ("v0.mp4", "v1.mp4")]
    system = one.score(pairs)
    assert [one.name for one in system.failed] == ["v1.mp4"]
    assert "v1.mp4" in system.failed[0].error.message
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in opened if path.endswith("v1.mp4")]


def test_a_video_that_equals_its_target_is_detected_once(
    sides: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    detect, frames = VideoDetector.detect, []

    def counted(self: VideoDetector, images: Any) -> Any:
        frames.extend(images)
        return detect(self, images)

    monkeypatch.setattr(VideoDetector, "detect", counted)
    config, rules = EvaluateConfig(inputs=sides, output=tmp_path / "out"), replace(PROTOCOLS["native"], networks=())
    one = evaluator.Evaluator(config=config, rules=rules, detector=VideoDetector(None), reporter=NullReporter())
    (video,) = one.score([Pair(name="v0", predicted=sides[1] / "v0.mp4", target=sides[1] / "v0.mp4")]).videos
    assert (video.identical_frames, len(frames)) == (4, 4)


def test_nothing_of_a_video_that_fails_late_stays_in_the_distances(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """A Frechet distance was over clips of a video that no other number knew."""
    forgotten: list[str] = []
    detector = SimpleNamespace(start=_no_detection, unavailable={}, reader=None, detectors=None)
    networks = SimpleNamespace(
        of_reference=(), begin=lambda name, target, reference: None, add_frame=lambda frame: None, similarities=dict,
        add=lambda predicted, target, number: None, end=dict, forget=forgotten.append,
    )  # fmt: skip
    rules = PROTOCOLS["native"]
    given: Any = {"rules": rules, "detector": detector, "networks": networks, "truncate": False, "borders": None}
    scorer = Scorer(**given, reporter=NullReporter())
    with pytest.raises(BadInput, match="cannot be looked at"):
        scorer.score(Pair(name="v0", predicted=sides[0] / "v0.mp4", target=sides[1] / "v0.mp4"))
    assert forgotten == ["v0"]


def test_frames_without_a_true_face_are_asked_for_no_identity(tmp_path: Path) -> None:
    """Drift and the worst stretch took a face that is found in the back of a head; CSIM did not."""
    alice, bob, nobody = np.eye(512)[0], np.eye(512)[1], np.full(512, np.nan)
    mine = VideoDetections(
        own=np.array([alice] * 20 + [bob] * 20), judge=np.zeros((40, 512)), points=PEOPLE, size=(64, 64)
    )
    true = replace(mine, own=np.array([alice] * 20 + [nobody] * 20))
    detector = SimpleNamespace(
        unavailable={"judge": ("", "")}, reader=True, embed_largest_face=lambda image: (alice, nobody)
    )
    given: Any = {"rules": PROTOCOLS["native"], "detector": detector, "networks": None, "truncate": False}
    write_image(tmp_path / "r.png", drawn(0, frames=1)[0])
    pair = Pair(name="v", predicted=tmp_path, reference=tmp_path / "r.png")
    made = ScoreBuilder(pair, open_clip(tmp_path / "r.png"), None, None)
    scorer = Scorer(**given, borders=None, reporter=NullReporter())
    scorer._score_identity(made, None, mine, true, scorer._reference(made), len(mine), {})
    assert (made.values["csim_ref"], made.values["identity_drift"], made.values["identity_worst"]) == (1, 0, 1)
    assert (made.values["face_rate"], made.counts["csim_ref"]) == (1, 20)
    scorer._score_identity(made, None, mine, None, scorer._reference(made), len(mine), {})
    assert (made.values["csim_ref"], made.values["identity_drift"], made.values["identity_worst"]) == (0.5, -1, 0)
    assert (made.counts["identity_drift"], made.counts["identity_worst"]) == (1, 1)
    made.put("identity_worst", np.nan, 1)  # no frame shows a face
    assert made.counts["identity_worst"] == 0


def _no_detection(clip: Clip, *, sha256: str) -> None:
    raise BadInput.because(clip.path, "it cannot be looked at")


def test_a_run_without_any_good_video_fails(sides: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("v0", "v1", "v2"):
        _cut(sides[0] / f"{name}.mp4")
    with pytest.raises(BatchFailed, match="none of 3 videos could be scored; the first is v0"):
        _scored(*sides, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match=r"v0\.mp4"):
        _scored(sides[0] / "v0.mp4", sides[1] / "v0.mp4", tmp_path / "out")


@pytest.mark.parametrize("fault", ["size", "count", "garbage", "picture", "poses"])
def test_all_pairs_are_checked_before_the_first_is_scored(
    sides: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def score(*given: Any) -> None:
        raise AssertionError("scored")

    monkeypatch.setattr(evaluator.Scorer, "score", score)
    last, flags = sides[0] / "v2.mp4", {}
    if fault == "size":
        write(last, drawn(2, frames=4, size=(64, 96)))
    elif fault == "count":
        write(last, drawn(2, frames=5))
    elif fault == "garbage":
        last.write_bytes(b"no video")
    else:
        flags = {"reference_picture" if fault == "picture" else "poses": tmp_path / "given"}
        (tmp_path / "given").mkdir()
        for n in range(3):
            (tmp_path / "given" / f"v{n}.{'png' if fault == 'picture' else 'npz'}").write_bytes(b"junk")
    with pytest.raises(BadInput):
        _scored(*sides, tmp_path / "out", **flags)


def test_an_identical_frame_is_counted_and_left_out_of_psnr(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.mp4", drawn(0, frames=4))
    change = noisy(6)
    one = changed(truth, tmp_path / "one.mp4", lambda index, frame: frame if index == 2 else change(index, frame))
    scores = _scored(one, truth, tmp_path / "out")
    video = scores.videos[0]
    assert video.counts["psnr"] == 3
    assert 25 < video.values["psnr"] < 45
    known = [value for value in video.curves["psnr"] if value is not None]
    assert video.values["psnr"] == pytest.approx(np.mean(known), abs=1e-4)
    assert scores.rows["psnr"].about["identical_frames"] == 1
    assert any("1 of 4 frames equal" in note for note in video.notes)
    assert any("(1 identical frames left out)" in row[1] for row in scores.table()[1])
    assert video.counts["psnr_disco"] == 4


def test_frames_of_an_identical_video_are_all_counted(tmp_path: Path) -> None:
    """Its PSNR is infinite, of as many frames as the other metrics; beside other videos it is left out with them."""
    truth = write(tmp_path / "truth/a.mp4", drawn(0, frames=4))
    alone = _scored(truth, truth, tmp_path / "alone")
    written = json.loads((tmp_path / "alone/scores.json").read_text())
    for name in ("psnr", "ssim"):
        assert (alone.rows[name].count, alone.videos[0].counts[name]) == (4, 4)
        assert (written["metrics"][name]["count"], written["videos"][0]["counts"][name]) == (4, 4)
    (row,) = (row for row in alone.table()[1] if row[0] == "psnr")
    assert row[1:3] == ["PSNR ↑", "inf"]
    assert row[-2:] == ["1", "4"]
    other = write(tmp_path / "truth/b.mp4", drawn(1, frames=3))
    changed(other, tmp_path / "made/b.mp4", noisy(6))
    shutil.copy(truth, tmp_path / "made/a.mp4")
    both = _scored(tmp_path / "made", tmp_path / "truth", tmp_path / "both").rows
    assert (both["psnr"].count, both["psnr"].videos, both["ssim"].count) == (3, 1, 7)
    assert both["psnr"].about == {"identical_frames": 4, "identical_videos": 1}


def test_csim_is_not_asked_of_frames_whose_truth_shows_no_face(
    sides: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A face that the prediction invents in a frame without one must count nowhere."""
    vector = np.eye(512, dtype=np.float32)
    nobody = np.full(512, np.nan, np.float32)
    faces = {"made": [vector[0], vector[1], vector[1], nobody], "truth": [vector[0], vector[0], nobody, vector[0]]}

    def start(self: VideoDetector, clip: Clip, *, sha256: str) -> Any:
        own = np.stack(faces[clip.path.parent.name])
        detections = VideoDetections(own=own, judge=own, points=np.zeros((4, 134, 3), np.float32), size=clip.size)
        return SimpleNamespace(clip=clip, finish=lambda: detections)

    monkeypatch.setattr(VideoDetector, "start", start)
    monkeypatch.setattr(VideoDetector, "embed_largest_face", lambda self, image: (vector[0], vector[0]))
    scores = _scored(sides[0] / "v0.mp4", sides[1] / "v0.mp4", tmp_path / "out", model="puppet")
    (video,) = scores.videos
    for name in ("csim_ref", "csim_gt", "csim_ref_judge", "csim_gt_judge"):
        assert (video.values[name], video.counts[name]) == (0.5, 2), name  # frames 0 and 1
        assert (video.values[f"{name}_zero"], video.counts[f"{name}_zero"]) == (pytest.approx(1 / 3), 3), name
        assert video.curves.get(name, [1, 0, None, None]) == [1, 0, None, None], name
    assert video.values["face_rate"] == pytest.approx(2 / 3)


def test_names_that_are_no_text_are_scored(sides: tuple[Path, Path], tmp_path: Path) -> None:
    name = os.fsdecode(b"v\xff\n&.mp4")
    for side in sides:
        shutil.copy(side / "v0.mp4", side / name)
    scores = _scored(*sides, tmp_path / "out")
    assert len(scores.videos) == 4
    json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
