"""``sa replay``: what repeats leaves with 0, what does not with 8 and the difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from stableanimator_cli.animate import checkpoint, fingerprint
from stableanimator_cli.animate.replay import replay
from stableanimator_cli.animate.run import run
from stableanimator_cli.cli.verbs import app
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.errors import BadInput, CheckFailed, ConfigError, Interrupted, ModelMissing
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import VideoWriter, open_clip
from stableanimator_cli.motion.motion_file import save_motion
from tests.animate.clips import Heard, in_form, plain_picture, skeleton_video
from tests.tiny import waving


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a finished run, its inputs and its model; to be copied."""
    place = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_model, place / "model" / "tiny")
    plain_picture(place / "person.png")
    save_motion(place / "poses.npz", waving(5))
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run in a folder of its own, with paths as somebody types them there."""
    folder = shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(folder)
    animated()
    return folder


def animated(**more: Any) -> None:
    """Make ``out.mp4``; ``more`` are options."""
    flags = {"reference": "person.png", "motion": "poses.npz", "output": "out.mp4", "model": "model/tiny"}
    usual = {"window": 4, "allow_no_face": True, "device": "cpu", "steps": 1, "guidance": 1.0, "preview": True}
    run(flags={name: Path(path) if name != "model" else path for name, path in flags.items()} | usual | more)


def change(file: Path, **rows: Any) -> None:
    told = json.loads(file.read_text())
    for dotted, value in rows.items():
        *tables, key = dotted.split("__")
        inner = told
        for table in tables:
            inner = inner[table]
        inner[key] = value
    file.write_text(json.dumps(told))


def asked(*args: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["replay", *args, "--json", "--quiet"])
    return done.exit_code, json.loads(done.stdout)


def test_a_run_repeats(place: Path) -> None:
    code, told = asked("out.mp4")
    assert code == 0
    assert told["repeats"] is True
    assert told["replay"] == "out.replay.mp4"
    assert told["sha256"]["now"] == told["sha256"]["record"] == sha256_of(place / "out.mp4")
    assert told["frames"] is None
    assert (told["differences"], told["machine"]) == ([], [])
    assert sha256_of(place / "out.replay.mp4") == sha256_of(place / "out.mp4")
    assert not (place / "out.replay.preview.mp4").exists()
    assert asked("out.mp4", "-o", "again.mp4")[1]["replay"] == "again.mp4"


def test_other_bytes_are_said_with_the_first_frame_that_differs(place: Path) -> None:
    frames = [frame for _, frame in open_clip(Path("out.mp4")).frames()]
    frames[3] = np.full_like(frames[3], 255)
    with VideoWriter("out.mp4", (64, 64), 30, lossless=True) as writer:
        for frame in frames[:4]:
            writer.write(frame)
    change(Path("out.json"), output__sha256=sha256_of(Path("out.mp4")))
    code, told = asked("out.mp4")
    assert code == told["exit_code"] == 8
    assert told["error"] == "check-failed"
    assert told["repeats"] is False
    assert (told["frames"]["then"], told["frames"]["now"]) == (4, 5)
    assert (told["frames"]["differing"], told["frames"]["first"]) == (1, 3)
    assert 100 < told["frames"]["largest"] <= 255
    assert "4 frames (now 5), 1 of 4 frames differ, first frame 3, by up to" in told["message"]


def test_another_seed_differs_in_every_frame(place: Path) -> None:
    change(Path("out.json"), config__sampling__seed=9)
    report = replay(Path("out.mp4"))
    assert report.exit_code == 8
    assert report.frames is not None
    assert (report.frames.then, report.frames.differing, report.frames.first) == (5, 5, 0)


def test_an_interrupted_replay_of_a_run_that_was_made_again_can_start_over(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is of the earlier run: the way out that the message names has to exist."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(Interrupted) as broken:
            replay(place / "out.mp4")
    assert "--restart starts over" in str(broken.value.hint)
    animated(seed=1)
    with pytest.raises(ConfigError) as refused:
        replay(place / "out.mp4")
    assert "add --restart to start over" in str(refused.value.hint)
    code, said = asked("out.mp4", "--restart")
    assert (code, said["repeats"]) == (0, True)


def test_a_video_that_is_not_its_records_is_said_though_the_run_repeats(place: Path) -> None:
    frames = [frame for _, frame in open_clip(Path("out.mp4")).frames()]
    with VideoWriter("out.mp4", (64, 64), 30) as writer:
        for frame in frames:
            writer.write(frame)
    report = replay(Path("out.mp4"))
    assert report.sha256["now"] == report.sha256["record"] != report.sha256["video"]
    assert [line for line in report.differences if "not the recorded one" in line]
    assert report.exit_code == 8
    (place / "out.mp4").unlink()  # the record alone is enough
    assert replay(Path("out.mp4")).exit_code == 0


def test_caches_that_a_training_adds_to_a_clip_folder_do_not_change_the_motion(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = in_form("clip folder", place, 5)
    flags = {"reference": Path("person.png"), "motion": clip, "output": Path("of-clip.mp4"), "model": "model/tiny"}
    run(flags=flags | {"window": 4, "allow_no_face": True, "device": "cpu", "steps": 1, "guidance": 1.0})
    config = AnimateConfig(**{name: flags[name] for name in ("reference", "motion", "output")})
    before = fingerprint.input_files(config)
    assert before["motion"]["sha256"] == sha256_of(clip)
    for name in ("embeddings.safetensors", "latents-64x64.safetensors"):
        (clip / name).write_bytes(b"cache")
    assert fingerprint.input_files(config) == before
    assert replay(Path("of-clip.mp4")).differences == ()
    change(Path("of-clip.json"), inputs__motion__sha256=sha256_of(clip))  # as older versions counted
    assert replay(Path("of-clip.mp4")).differences == ()
    (clip / "clip.json").write_text('{"a": 1}')
    with pytest.raises(CheckFailed, match="motion"):
        replay(Path("of-clip.mp4"))


def test_keypoints_beside_a_video_count_if_they_are_read(place: Path) -> None:
    """They are those of a skeleton video of ours; beside another video they may come, change and go."""
    for tag, read in ((True, True), (False, False)):
        video = skeleton_video(place / f"{tag}.mp4", 5, tag=tag)
        config = AnimateConfig(reference=Path("person.png"), motion=video, output=Path("o.mp4"))
        alone = fingerprint.input_files(config)
        save_motion(video.with_suffix(".npz"), waving(5))
        assert (fingerprint.input_files(config) != alone) is read
    flags = {"reference": Path("person.png"), "motion": place / "False.mp4", "output": Path("o.mp4"), "steps": 1}
    run(flags=flags | {"model": "model/tiny", "allow_no_face": True, "device": "cpu", "guidance": 1.0})
    (place / "False.npz").unlink()
    assert replay(Path("o.mp4")).differences == ()
    save_motion(place / "False.npz", waving(4))
    digests = json.loads(Path("o.json").read_text())["inputs"] | {"motion_points": {"path": "x", "sha256": "0" * 64}}
    change(Path("o.json"), inputs=digests)  # of an older version
    assert replay(Path("o.mp4")).differences == ()


def test_changed_inputs_and_weights_are_all_listed_and_nothing_is_rendered(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_picture(place / "person.png", (80, 80))
    (place / "poses.npz").unlink()
    file = place / "model" / "tiny" / "vae.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    monkeypatch.setattr("stableanimator_cli.animate.pipeline.run_pipeline", lambda *_, **__: 1 / 0)
    with pytest.raises(CheckFailed) as caught:
        replay(Path("out.mp4"))
    words = caught.value.message
    assert caught.value.exit_code == 8
    for part in ("reference person.png", "motion poses.npz", "(now none)", "weights of vae"):
        assert part in words
    assert "weights of unet" not in words
    assert not (place / "out.replay.mp4").exists()


def test_a_record_of_a_card_that_this_machine_lacks_names_the_option_for_another_device(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    change(Path("out.json"), device="NVIDIA H200, bfloat16", config__device__cuda_graphs=True)
    for device in ("cuda", "auto"):  # of a record with auto, only the graphs need the card
        change(Path("out.json"), config__device__device=device)
        with pytest.raises(ConfigError) as refused:
            replay(Path("out.mp4"))
        assert "out.mp4: it was rendered on NVIDIA H200, bfloat16, and this machine differs" in refused.value.message
        assert refused.value.hint == "add --device auto to render it on another device; output may differ"
    code, repeated = asked("out.mp4", "--device", "cpu")
    assert (code, repeated["repeats"]) == (0, True)
    assert repeated["machine"] == ["device NVIDIA H200, bfloat16 (now cpu, float32)"]


def test_another_machine_is_said_and_tried(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = fingerprint.versions() | {"torch": "1.0"}
    monkeypatch.setattr(fingerprint, "versions", lambda: versions)
    reporter = Heard()
    report = replay(Path("out.mp4"), reporter=reporter)
    assert report.exit_code == 0
    assert any("torch" in line and "(now 1.0)" in line for line in report.machine)
    assert any("the environment differs from the record" in warning for warning in reporter.warnings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "it is not the record of a run of sa animate: broken JSON at line 1, column 2"),
        ("[]", "it is an empty list, expected the record of a run of sa animate, an object"),
        ('{"format": 1}', "config is missing, expected an object"),
        ('{"a": 2}', "found a record of format null, expected format 1"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(BadInput, match=rf"out\.json: {says}"):
        replay(tmp_path / "out.mp4")
    with pytest.raises(BadInput, match=r"other\.mp4: found no such file, expected a video that sa animate made"):
        replay(tmp_path / "other.mp4")
    (tmp_path / "other.mp4").write_bytes(b"from elsewhere")
    with pytest.raises(BadInput, match=r"other\.mp4: found no record beside it, expected other\.json"):
        replay(tmp_path / "other.mp4")
    with pytest.raises(BadInput, match="the video beside it"):
        replay(tmp_path / "out.json")


@pytest.mark.parametrize(
    "edit",
    [
        {"inputs": None},
        {"config": [1]},
        {"model": {}},
        {"model__sha256": "x"},
        {"output": "out.mp4"},
        {"inputs": {"a": 1}},
    ],
)
def test_a_record_that_was_edited_out_of_shape_is_refused(place: Path, edit: dict[str, Any]) -> None:
    change(place / "out.json", **edit)
    with pytest.raises(BadInput, match=r"out\.json: (inputs|config|model|output)\S* is .*, expected an? (object|text)"):
        replay(place / "out.mp4")


def test_a_replay_never_takes_the_place_of_the_run(place: Path) -> None:
    before = sha256_of(place / "out.mp4")
    with pytest.raises(BadInput, match=r"out\.mp4: the output is the same as the input out\.mp4"):
        replay(Path("out.mp4"), output=place / "out.mp4")
    assert sha256_of(place / "out.mp4") == before
    (place / "out.replay.mp4").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match=r"out\.replay\.mp4: it exists and was not written by sa"):
        replay(Path("out.mp4"))
    assert (place / "out.replay.mp4").read_text(encoding="utf-8") == "mine"


def test_a_record_from_elsewhere_says_what_it_lacks(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelMissing):
        replay(place / "out.mp4")
    change(place / "out.json", model__path=str(place / "model" / "tiny"), config__model=str(place / "model" / "tiny"))
    with pytest.raises(CheckFailed, match=r"reference person\.png \w+ \(now none\)"):
        replay(place / "out.mp4")
