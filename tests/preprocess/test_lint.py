"""A dataset looked over: whole ones pass, each kind of damage is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from stableanimator_cli.errors import BadInput
from stableanimator_cli.media import write_image
from tests.preprocess import drawn
from tests.train.clip_folders import write_pair


@pytest.fixture
def dataset(preprocess, tmp_path: Path) -> Path:
    drawn.write_video(tmp_path / "v" / "a.mp4", drawn.walk(18))
    drawn.write_video(tmp_path / "v" / "b.mp4", drawn.walk(20))
    preprocess(tmp_path / "v", output=tmp_path / "set", source="copy")
    return tmp_path / "set"


@pytest.fixture
def upstream(preprocess, tmp_path: Path) -> Path:
    drawn.write_video(tmp_path / "v" / "a.mp4", drawn.walk(18))
    preprocess(tmp_path / "v", output=tmp_path / "set", layout="upstream")
    return tmp_path / "set"


def codes(report) -> list[tuple[str, str]]:
    return sorted((finding.severity, finding.code) for _, finding in report.found)


def test_a_whole_dataset_passes(preprocess, dataset):
    report = preprocess(dataset, lint=True)
    assert (report.clips, report.found, report.exit_code) == (2, (), 0)
    assert report.summary().endswith("2 clips, 0 errors, 0 warnings")


def test_a_short_clip_and_one_without_a_face_break_training(preprocess, tmp_path):
    drawn.write_video(tmp_path / "v" / "short.mp4", drawn.walk(5))
    preprocess(tmp_path / "v", output=tmp_path / "set")
    report = preprocess(tmp_path / "set", lint=True)
    assert codes(report) == [("error", "too-short")]
    assert report.exit_code == 8
    assert report.to_json()["error"] == "check-failed"


def test_changed_and_missing_sources_are_found(preprocess, dataset):
    shutil.copy(dataset / "b" / "source.mp4", dataset / "a" / "source.mp4")
    assert codes(preprocess(dataset, lint=True)) == [("error", "source-changed")]
    (dataset / "a" / "source.mp4").unlink()
    (dataset.parent / "v" / "a.mp4").unlink()
    assert codes(preprocess(dataset, lint=True)) == [("error", "damaged")]


def test_clips_that_training_does_not_read_are_no_errors(preprocess, dataset):
    (dataset / "a" / "source.mp4").unlink()
    (dataset.parent / "v" / "a.mp4").unlink()
    preprocess(dataset.parent / "v", output=dataset, source="copy")
    report = preprocess(dataset, lint=True)
    assert [(folder.name, one.code) for folder, one in report.found] == [("a", "unlisted")]
    assert report.exit_code == 0


def test_changed_pictures_of_a_folder_are_found(preprocess, tmp_path):
    pictures = tmp_path / "v" / "walk"
    for index, box in enumerate(drawn.walk(18)):
        write_image(pictures / f"frame_{index}.png", drawn.frame(box))
    preprocess(tmp_path / "v", output=tmp_path / "set")
    assert codes(preprocess(tmp_path / "set", lint=True)) == []
    (pictures / "frame_17.png").unlink()
    assert codes(preprocess(tmp_path / "set", lint=True)) == [("error", "source-changed")]


@pytest.mark.parametrize("name", ["motion.npz", "faces.npz", "clip.json"])
def test_damaged_files_are_found(preprocess, dataset, name):
    file = dataset / "a" / name
    file.write_bytes(file.read_bytes()[:40])
    assert codes(preprocess(dataset, lint=True)) == [("error", "damaged")]


def test_a_record_without_some_numbers_is_looked_over(preprocess, dataset):
    file = dataset / "a" / "clip.json"
    record = json.loads(file.read_text())
    record["quality"] |= dict.fromkeys(record["quality"])
    file.write_text(json.dumps(record))
    assert codes(preprocess(dataset, lint=True)) == []


def test_the_same_video_twice_is_a_warning(preprocess, dataset):
    shutil.copytree(dataset / "a", dataset / "c")
    assert codes(preprocess(dataset, lint=True)) == [("warning", "unlisted")]
    lines = (dataset / "index.jsonl").read_text(encoding="utf-8").splitlines()
    (dataset / "index.jsonl").write_text("\n".join([*lines, json.dumps({**json.loads(lines[0]), "clip": "c"})]))
    report = preprocess(dataset, lint=True)
    assert codes(report) == [("warning", "duplicate")]
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda clip: (clip / "poses" / "frame_3.png").unlink(), "missing-poses"),
        (lambda clip: (clip / "faces" / "frame_0.png").unlink(), "missing-faces"),
        (lambda clip: shutil.copy(clip / "poses" / "frame_0.png", clip / "poses" / "frame_99.png"), "extra-poses"),
        (lambda clip: Image.new("RGB", (8, 8)).save(clip / "images" / "frame_0.png"), "size"),
        (lambda clip: (clip / "images" / "frame_0.png").write_bytes(b"no picture"), "damaged"),
        (lambda clip: shutil.copy(clip / "images" / "frame_0.png", clip / "images" / "x.png"), "names"),
        (lambda clip: shutil.copy(clip / "images" / "frame_0.png", clip / "images" / "frame_²².png"), "names"),
    ],
)
def test_what_is_wrong_with_the_reference_layout_is_found(preprocess, upstream, harm, code):
    assert codes(preprocess(upstream, lint=True)) == []
    harm(upstream / "rec" / "00001")
    assert ("error", code) in codes(preprocess(upstream, lint=True))


def test_a_gap_in_the_numbers_is_found(preprocess, upstream):
    for name in ("images", "poses", "faces"):
        (upstream / "rec" / "00001" / name / "frame_9.png").unlink()
    assert codes(preprocess(upstream, lint=True)) == [("error", "gap")]


def test_what_is_no_dataset_is_refused(preprocess, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no clip folder"):
        preprocess(tmp_path / "empty", lint=True)
    with pytest.raises(BadInput, match="found no such file, expected one folder that `sa preprocess` wrote") as caught:
        preprocess(tmp_path / "empt", lint=True)
    assert caught.value.hint == f"did you mean {tmp_path / 'empty'}?"
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(BadInput, match=r"report\.json: found a file, no dataset"):
        preprocess(tmp_path / "report.json", lint=True)
    with pytest.raises(BadInput, match="b: found a second dataset"):
        preprocess(tmp_path / "empty", tmp_path / "b", lint=True)


def test_findings_are_in_the_report_too(preprocess, tmp_path):
    drawn.write_video(tmp_path / "v" / "short.mp4", drawn.walk(5))
    drawn.write_video(tmp_path / "v" / "<b>.mp4", drawn.walk(18))
    (tmp_path / "v" / "bad.mp4").write_bytes(b"no" * 99)
    preprocess(tmp_path / "v", output=tmp_path / "set")
    data = json.loads((tmp_path / "set" / "report.json").read_text())
    assert data["totals"]["findings"] == {"too-short": 1}
    assert (data["totals"]["clips"], data["totals"]["failed"], data["totals"]["frames"]) == (2, 1, 23)
    page = (tmp_path / "set" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert "http" not in page  # nothing from outside
    assert "&lt;b&gt;" in page or "_b_" in page
    assert "<h3><b>" not in page
    assert "data that is no video" in page


def test_people_without_a_face_are_found_among_several(preprocess, tmp_path):
    write_pair(tmp_path / "both", 16)
    write_pair(tmp_path / "one", 16, known=(1,))
    found = [
        (folder.name, finding)
        for folder, finding in preprocess(tmp_path, lint=True).found
        if finding.code == "person-faceless"
    ]
    assert [name for name, _ in found] == ["one"]
    assert "person 0" in found[0][1].text
