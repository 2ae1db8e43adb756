"""Lists of animations: the model is loaded once, failures are named and do not stop the rest, finished jobs stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.animate import jobs as module
from stableanimator_cli.animate.jobs import JobsReport, jobs_of_motions, read_jobs, run_list
from stableanimator_cli.engine.backbones import denoising
from stableanimator_cli.errors import BadInput, ConfigError, Interrupted
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.progress import NullReporter
from tests.animate.clips import plain_picture
from tests.tiny import waving


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an image, three motions of three frames, and a list of five jobs with one bad."""
    monkeypatch.chdir(tmp_path)
    plain_picture(tmp_path / "person.png")
    for name in ("a", "b", "c"):
        save_motion(tmp_path / f"{name}.npz", waving(3))
    rows = [
        '{ reference = "person.png", motion = "a.npz", output = "1.mp4" }',
        '{ reference = "person.png", motion = "b.npz", output = "2.mp4", seed = 4, decode-chunk = 2 }',
        '{ reference = "person.png", motion = "missing.npz", output = "3.mp4" }',
        '{ reference = "person.png", motion = "c.npz", output = "4.mp4", steps = 2 }',
        '{ reference = "person.png", motion = "a.npz", output = "5.mp4", size = "64x64" }',
    ]
    (tmp_path / "jobs.toml").write_text("jobs = [\n  " + ",\n  ".join(rows) + ",\n]\n")
    return tmp_path


@pytest.fixture
def listed(tiny_model: Path):
    def go(*more: Path, file: Path | None = Path("jobs.toml"), restart: bool = False, **flags: Any) -> JobsReport:
        usual = {"model": str(tiny_model), "steps": 1, "guidance": 1.0, "allow_no_face": True, "device": "cpu"}
        return run_list(
            flags=usual | flags, more=more, file=file, config_file=None, plan=False, restart=restart,
            reporter=NullReporter(),
        )  # fmt: skip

    return go


def videos(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*.mp4"))


def test_one_bad_job_of_five_is_named_and_made_when_it_is_mended(place, listed, monkeypatch):
    opened = []
    original = denoising.loaders
    monkeypatch.setattr(denoising, "loaders", lambda *args: opened.append(args) or original(*args))
    report = listed()
    assert len(opened) == 1
    assert (report.exit_code, list(report.failed)) == (7, ["3.mp4"])
    assert "1 of 5 jobs failed: 3.mp4: missing.npz" in (report.message or "")
    assert report.failed["3.mp4"]["error"] == "bad-input"
    assert videos(place) == ["1.mp4", "2.mp4", "4.mp4", "5.mp4"]
    assert json.loads((place / "4.json").read_text())["config"]["sampling"]["steps"] == 2
    before = {name: (place / name).stat().st_mtime_ns for name in videos(place)}

    save_motion(place / "missing.npz", waving(2))
    again = listed()
    assert (again.exit_code, list(again.written)) == (0, ["3.mp4"])
    assert list(again.finished) == ["1.mp4", "2.mp4", "4.mp4", "5.mp4"]
    assert before == {name: (place / name).stat().st_mtime_ns for name in before}
    assert open_clip(place / "3.mp4").count == 2
    assert not (place / ".jobs.toml.state").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("2.mp4: interrupted")], ids=["bare", "saved"])
def test_an_interrupted_list_continues_where_it_was(place, listed, monkeypatch, stop):
    original, calls = module.single.run, []

    def interrupted(**arguments: Any) -> Any:
        calls.append(str(arguments["flags"]["output"]))
        if len(calls) == 2:
            raise stop
        return original(**arguments)

    monkeypatch.setattr(module.single, "run", interrupted)
    with pytest.raises(type(stop)):
        listed()
    assert videos(place) == ["1.mp4"]
    listed()
    assert calls == ["1.mp4", "2.mp4", "2.mp4", "3.mp4", "4.mp4", "5.mp4"]


@pytest.mark.parametrize("change", ["settings", "input", "video", "restart"])
def test_a_job_that_changed_is_made_again(place, listed, change):
    listed()
    flags: dict[str, Any] = {}
    if change == "settings":
        flags["seed"] = 9  # jobs with a seed of their own keep it
    elif change == "input":
        save_motion(place / "a.npz", waving(4))
    elif change == "video":
        (place / "1.mp4").unlink()
    report = listed(restart=change == "restart", **flags)
    expected = {
        "settings": ["1.mp4", "4.mp4", "5.mp4"], "input": ["1.mp4", "5.mp4"], "video": ["1.mp4"],
        "restart": ["1.mp4", "2.mp4", "4.mp4", "5.mp4"],
    }  # fmt: skip
    assert list(report.written) == expected[change]


def test_several_motions_make_one_video_each(place, listed):
    report = listed(
        Path("b.npz"), Path("c.npz"), file=None, reference="person.png", motion="a.npz", output=Path("out/deep")
    )
    assert report.exit_code == 0
    assert videos(place) == ["out/deep/a.mp4", "out/deep/b.mp4", "out/deep/c.mp4"]
    assert not list((place / "out/deep").glob(".*"))
    with pytest.raises(ConfigError, match="different names"):
        jobs_of_motions([Path("a.npz"), Path("x/a.mp4")], Path("out"))
    with pytest.raises(ConfigError, match="a folder for the videos of 2 motions"):
        listed(Path("b.npz"), file=None, reference="person.png", motion="a.npz", output=Path("person.png"))
    with pytest.raises(BadInput, match="contains the input"):
        listed(Path("b.npz"), file=None, reference="person.png", motion="a.npz", output=place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("jobs = 3\n", "jobs: found 'another value'"),
        ("jobs = []\n", "jobs: found nothing"),
        ('steps = 3\njobs = [{ motion = "a.npz" }]\n', "steps: found 'steps', expected jobs alone"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "jobs.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_jobs(tmp_path / "jobs.toml")
    assert message in caught.value.message


def test_an_unknown_option_is_the_error_of_its_job(place, listed):
    (place / "jobs.toml").write_text(
        'jobs = [{ reference = "person.png", motion = "a.npz", output = "1.mp4", stepz = 3 }]\n'
    )
    report = listed()
    assert report.failed["1.mp4"]["error"] == "bad-config"
    assert "--stepz" in report.failed["1.mp4"]["message"]


def test_outputs_that_collide_are_refused_before_anything_is_made(place, listed):
    row = '{ reference = "person.png", motion = "a.npz", output = "OUT" }'
    for outputs, error, message in (
        (("1.mp4", "1.mp4"), ConfigError, "another output for each job"),
        (("1.mp4", "a.npz"), BadInput, "is the same as the input a.npz"),
    ):
        text = ", ".join(row.replace("OUT", output) for output in outputs)
        (place / "jobs.toml").write_text(f"jobs = [{text}]\n")
        with pytest.raises(error, match=message):
            listed()
    assert videos(place) == []
    (place / ".jobs.toml.state").write_text("somebody's notes")
    (place / "jobs.toml").write_text(f"jobs = [{row.replace('OUT', '1.mp4')}]\n")
    with pytest.raises(BadInput, match="not written by sa"):
        listed()


def test_what_belongs_to_one_animation_is_refused(place, listed, monkeypatch):
    with pytest.raises(ConfigError, match="each job has its own"):
        listed(reference="person.png")
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="torchrun"):
        listed()


def test_the_command_prints_videos_and_what_failed(place, sa, tiny_model):
    command = ["animate", "--jobs", str(place / "jobs.toml"), "--model", str(tiny_model), "--steps", "1"]
    text = (place / "jobs.toml").read_text()
    for name in ("person.png", "a.npz", "b.npz", "c.npz", "missing.npz", *(f"{n}.mp4" for n in range(1, 6))):
        text = text.replace(f'"{name}"', json.dumps(str(place / name)))
    (place / "jobs.toml").write_text(text)
    done = sa(*command, "--device", "cpu", "--allow-no-face", "-q")
    assert done.returncode == 7, done.stderr
    assert done.stdout.split() == [str(place / f"{n}.mp4") for n in (1, 2, 4, 5)]
    assert "1 of 5 jobs failed" in done.stderr
    again = sa(*command, "--device", "cpu", "--allow-no-face", "--json")
    report = json.loads(again.stdout)
    assert again.returncode == 7
    assert len(report["finished"]) == 4
    assert list(report["failed"]) == [str(place / "3.mp4")]


def test_folders_of_outputs_are_created_and_those_of_failures_removed(place, listed):
    rows = [
        '{ reference = "person.png", motion = "a.npz", output = "new/deep/1.mp4" }',
        '{ reference = "person.png", motion = "b.npz", output = "new/frames/" }',
        '{ reference = "person.png", motion = "missing.npz", output = "other/3.mp4" }',
        '{ reference = "person.png", motion = "c.npz", output = "person.png/4.mp4" }',
    ]
    (place / "jobs.toml").write_text("jobs = [\n  " + ",\n  ".join(rows) + ",\n]\n")
    with pytest.raises(BadInput, match="is inside the input"):
        listed()
    assert not (place / "new").exists()
    (place / "jobs.toml").write_text("jobs = [\n  " + ",\n  ".join(rows[:3]) + ",\n]\n")
    report = listed()
    assert list(report.failed) == ["other/3.mp4"]
    assert sorted(file.name for file in (place / "new" / "frames").iterdir())[0] == "frame_00000.png"
    assert (place / "new" / "deep" / "1.mp4").is_file()
    assert not (place / "other").exists()
    assert list(listed().finished) == ["new/deep/1.mp4", "new/frames/"]


@pytest.mark.parametrize(
    "outputs",
    [("f/", "f/frame_%05d.png"), ("f/", "f/1.mp4"), ("1.mp4", "./1.mp4"), ("1.mp4", "1.gif"), ("f/", "f.mp4"),
     ("1.mp4", "f/../1.mp4"), ("1.mp4", "here/1.mp4"), ("f/", "here/f/1.mp4")],
)  # fmt: skip
def test_two_jobs_in_one_place_are_refused(place, listed, outputs):
    (place / "here").symlink_to(place)
    rows = [f'{{ reference = "person.png", motion = "a.npz", output = "{output}" }}' for output in outputs]
    (place / "jobs.toml").write_text(f"jobs = [{', '.join(rows)}]\n")
    with pytest.raises(ConfigError, match="another output for each job"):
        listed()


def test_several_motions_go_to_a_folder_with_or_without_a_slash(place, listed):
    motion = {"reference": "person.png", "motion": "a.npz"}
    assert list(listed(Path("b.npz"), file=None, output="videos/", **motion).written) == [
        "videos/a.mp4",
        "videos/b.mp4",
    ]
    with pytest.raises(ConfigError, match="a folder for the videos of 2 motions"):
        listed(Path("b.npz"), file=None, output="videos/%05d.png", **motion)
    assert listed(Path("y.npz"), file=None, output="none", reference="person.png", motion="x.npz").exit_code == 7
    assert [path.name for path in (place / "none").iterdir()] == [".jobs.state"]
