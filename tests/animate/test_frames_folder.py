"""A folder of PNG frames as the output: exact pixels, a record beside it, and nothing of others replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli.animate.replay import replay
from stableanimator_cli.animate.run import run
from stableanimator_cli.cli.verbs import load_verb
from stableanimator_cli.engine import render
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.evaluate.pairs import match
from stableanimator_cli.evaluate.run_record import piece_borders, read_record
from stableanimator_cli.files import carries_mark, sha256_of, temporary_path
from stableanimator_cli.media import FramesWriter
from stableanimator_cli.motion.motion_file import save_motion
from tests.animate.clips import frames_of, plain_picture
from tests.tiny import waving


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plain_picture(tmp_path / "person.png")
    save_motion(tmp_path / "poses.npz", waving(5))
    return tmp_path


@pytest.fixture
def animate(place: Path, tiny_model: Path):
    def go(output: str | Path, **flags: Any) -> Any:
        usual = {
            "reference": "person.png", "motion": "poses.npz", "model": str(tiny_model), "window": 4, "steps": 1,
            "guidance": 1.0, "allow_no_face": True, "device": "cpu",
        }  # fmt: skip
        return run(flags=usual | flags | {"output": output})

    return go


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_pixels_are_the_decoded_ones_and_the_record_is_beside(place, animate, monkeypatch):
    decoded: list[np.ndarray] = []
    decode = render.decode
    monkeypatch.setattr(
        "stableanimator_cli.animate.video.decode", lambda *args: (decoded.append(f) or f for f in decode(*args))
    )
    report = animate("frames/", preview="video")
    assert report.video == Path("frames")
    assert names(place / "frames") == [f"frame_{index:05d}.png" for index in range(5)]
    assert names(place) == ["frames", "frames.json", "frames.preview.mp4", "person.png", "poses.npz"]
    assert np.array_equal(frames_of(place / "frames"), decoded)
    assert all(carries_mark(file) for file in (place / "frames").iterdir())
    record = json.loads((place / "frames.json").read_text())
    assert record["output"]["sha256"] == sha256_of(place / "frames")
    assert (record["output"]["path"], record["config"]["output"]) == ("frames", "frames/frame_%05d.png")

    again = animate("frames/", seed=1)  # ours, so it is replaced
    assert json.loads(again.record.read_text())["output"]["sha256"] != record["output"]["sha256"]
    assert names(place / "frames") == [f"frame_{index:05d}.png" for index in range(5)]
    assert not list(place.glob(".*"))


def test_replay_and_evaluation_read_it(place, animate):
    animate("shot.7/%d.png", frames="0:3")
    assert names(place / "shot.7") == ["0.png", "1.png", "2.png"]
    result = replay(Path("shot.7"))
    assert (result.replay, result.differences) == (Path("shot.7.replay"), ())
    assert sha256_of(place / "shot.7.replay") == sha256_of(place / "shot.7")
    assert (place / "shot.7.replay.json").is_file()
    with pytest.raises(BadInput, match=r"a record") as raised:
        replay(Path("shot.7.json"))
    assert raised.value.hint == "name shot.7"
    (pair,) = match(Path("shot.7"), Path("shot.7.replay"))
    record = read_record(pair.predicted)
    assert record is not None
    assert piece_borders(record) == ()
    Image.new("RGB", (64, 64)).save("shot.7/1.png")
    changed = replay(Path("shot.7"), output=Path("again"))
    assert "1 of 3 frames differ" in changed.message or "the video is not the recorded one" in changed.message
    assert changed.frames is not None
    assert changed.frames.first == 1


def test_an_interrupted_run_goes_on_and_leaves_nothing(place, animate, monkeypatch):
    animate("whole/", steps=2)
    monkeypatch.setattr("stableanimator_cli.animate.checkpoint.INTERVAL", 0.0)
    write = FramesWriter.write

    def broken(self: FramesWriter, frame: np.ndarray) -> None:
        write(self, frame)
        if self.frames == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FramesWriter, "write", broken)
        with pytest.raises(BaseException, match="interrupted"):
            animate("frames/", steps=2)
    assert not (place / "frames").exists()
    killed = temporary_path(place / "frames").name.rsplit(".", 2)[0]
    (place / f"{killed}.999999999.part").mkdir()  # as SIGKILL leaves it
    (place / f".frames.old.{999999999}.part").mkdir()
    assert json.loads(animate("frames/", steps=2).record.read_text())["resumed"] == 1
    assert sha256_of(place / "frames") == sha256_of(place / "whole")
    assert not list(place.glob(".*"))


@pytest.mark.parametrize("foreign", ["notes.txt", "holiday.png", "frame_1.png", "sub"])
def test_a_folder_with_anything_else_is_not_replaced(place, animate, foreign):
    animate("frames/")
    if foreign == "sub":
        (place / "frames" / foreign).mkdir()
    elif foreign == "holiday.png":
        plain_picture(place / "frames" / foreign)  # marked, and no frame
    else:
        (place / "frames" / foreign).write_bytes(b"mine")
    before = names(place / "frames")
    with pytest.raises(BadInput, match=rf"frames: it holds {foreign}, which is no earlier frame"):
        animate("frames/")
    assert names(place / "frames") == before


def test_outputs_that_cannot_be(place, animate):
    (place / "link").symlink_to(place)
    for output, kind, words in (
        ("out.png", ConfigError, "a name with the number of the frame"),
        ("a/%s.png", ConfigError, "a name with the number of the frame"),
        ("missing/frames/", ConfigError, "a folder that exists"),
        ("%05d.png", BadInput, "contains the input"),
        ("./", BadInput, "contains the input"),
        ("link/", BadInput, "is the same as|contains"),
        ("person.png/", BadInput, "is the same as the input"),
        ("poses.npz/", BadInput, "is the same as the input"),
    ):
        with pytest.raises(kind, match=words):
            animate(output)
    with pytest.raises(ConfigError, match="out") as raised:
        animate("out.png")
    assert raised.value.hint == "try out/ or out/%05d.png"
    assert names(place) == ["link", "person.png", "poses.npz"]


@pytest.mark.parametrize("mounted", [False, True])
def test_a_folder_that_cannot_be_renamed_is_refused_before_any_work(place, animate, monkeypatch, mounted):
    (place / "here").mkdir()
    if mounted:
        monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "here")
    else:
        monkeypatch.chdir(place / "here")
    inputs = {"reference": place / "person.png", "motion": place / "poses.npz"}
    kind = "a mounted volume" if mounted else "the current folder"
    with pytest.raises(BadInput, match=f"frames cannot replace it: it is {kind}"):
        animate("here/" if mounted else "./", **inputs)


def test_the_shell_keeps_the_slash(place, tiny_model):
    line = f"person.png poses.npz -o frames/ --model {tiny_model} --steps 1 --allow-no-face --device cpu --quiet"
    load_verb("animate").main(line.split(), standalone_mode=False)
    assert len(names(place / "frames")) == 5
