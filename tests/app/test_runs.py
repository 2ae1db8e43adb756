"""The page's runs without the page: folders, command lines, the queue, and what is shown of them."""

from __future__ import annotations

import dataclasses
import gc
import shlex
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stableanimator_cli.app.engine_queue import EngineQueue, Job
from stableanimator_cli.app.request import (
    Request,
    Run,
    faces_by_person,
    input_names,
    missing_input,
    new_folder,
    number_of,
)
from stableanimator_cli.app.server import HOST, open_socket
from stableanimator_cli.app.session import Session, local_models
from stableanimator_cli.app.views import clock, curve_html, error_html, status_html
from stableanimator_cli.cli.verbs import load_verb
from stableanimator_cli.errors import BadInput, ConfigError, Interrupted, ModelMissing, NoFace, SaError
from stableanimator_cli.files import exclusive_lock


def upload(folder: Path, picture: str = "person.png", motion: str = "wave.npz", **options: Any) -> Request:
    for name in {picture, motion}:
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return Request(reference=folder / picture, motion=folder / motion, options=options)


Start = Callable[[Callable[[Run, Job], Any]], EngineQueue]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Start]:
    """Opens a queue with a ``render``; closed after the test."""
    opened: list[EngineQueue] = []

    def start(render: Callable[[Run, Job], Any]) -> EngineQueue:
        opened.append(EngineQueue(tmp_path / "animations", render))
        return opened[-1]

    yield start
    for one in opened:
        one.close(timeout=60)


def wait_for(job: Job) -> Job:
    wait_until(lambda: job.finished)
    return job


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("a minute has passed")


def test_the_command_line_has_the_options_of_the_form(tmp_path: Path) -> None:
    options = {
        "model": "puppet",
        "size": "256x256",
        "seed": 3,
        "frames": "0:2",
        "allow_no_face": True,
        "preview": "video",
    }
    request = upload(tmp_path, "a person's.png", **options)
    words = shlex.split(Run(request=request, folder=Path("animations/001")).command)
    assert words[:2] == ["sa", "animate"]
    command = load_verb("animate")
    given = command.make_context("sa animate", words[2:]).params
    paths = [str(given[name]) for name in ("reference", "motion", "output")]
    assert paths == ["animations/001/a person's.png", "animations/001/wave.npz", "animations/001/video.mp4"]
    assert {name: given[name] for name in options} == options


def test_people_and_their_faces_are_options_of_the_form(tmp_path: Path) -> None:
    """The images of faces are copied beside the other inputs, and the command line names the copies."""
    request = upload(tmp_path / "in", "face-of-1.png", person="1,0", pair="0:1")
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "somebody else.png"
    other.write_bytes(b"a face")
    faces = faces_by_person([str(other)], "1")
    request = Request(reference=request.reference, motion=request.motion, options=request.options, faces=faces)
    assert request.all_options()["face_of"] == (f"1={other}",)
    run = Run(request=request, folder=tmp_path / "animations")
    run.folder.mkdir()
    run.copy_inputs()
    copies = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    assert copies == {"face-of-1.png": b"face-of-1.png", "wave.npz": b"wave.npz", "other-face-of-1.png": b"a face"}
    words = shlex.split(run.command)
    given = load_verb("animate").make_context("sa animate", words[2:]).params
    assert (given["person"], given["pair"]) == ("1,0", "0:1")
    assert list(given["face_of"]) == [f"1={run.folder / 'other-face-of-1.png'}"]
    key, moved = request.key(), other.rename(tmp_path / "other" / "moved.png")
    assert dataclasses.replace(request, faces={1: moved}).key() == key
    assert dataclasses.replace(request, faces={0: moved}).key() != key
    moved.write_bytes(b"another face")
    assert dataclasses.replace(request, faces={1: moved}).key() != key
    assert not run.keep_if_begun()
    assert not run.folder.exists()


def test_an_empty_number_is_the_models_own() -> None:
    assert [number_of(text, "Steps") for text in ("", " ", "12 ")] == [None, None, 12]
    for text in ("2.5", "many", "-1"):
        with pytest.raises(ConfigError, match=f"Steps: found '{text}', expected a whole number"):
            number_of(text, "Steps")


def test_faces_belong_to_the_first_people_unless_others_are_named() -> None:
    assert faces_by_person(["a.png", "b.png"], " ") == {0: Path("a.png"), 1: Path("b.png")}
    assert faces_by_person(["a.png", "b.png"], "2, 0") == {2: Path("a.png"), 0: Path("b.png")}
    assert faces_by_person([], "") == {}
    for files, people in ((["a.png"], "0,1"), (["a.png", "b.png"], "1,1"), (["a.png"], "x"), ([], "0")):
        with pytest.raises(ConfigError, match=r"Whose faces they are: found '.*', expected \d different number"):
            faces_by_person(files, people)


@pytest.mark.parametrize(
    ("picture", "motion", "names"),
    [
        ("a.png", "b.npz", ("a.png", "b.npz")),
        ("a.webp", "a.webp", ("a.webp", "motion-a.webp")),
        ("video.png", "video.mp4", ("reference-video.png", "motion-video.mp4")),
    ],
)
def test_copies_of_inputs_replace_neither_one_another_nor_the_video(
    picture: str, motion: str, names: tuple[str, str], tmp_path: Path
) -> None:
    assert input_names(upload(tmp_path, picture, motion)) == names


def test_a_new_folder_never_is_one_that_exists(tmp_path: Path) -> None:
    output = tmp_path / "animations"
    assert new_folder(output) == output / "001"
    (output / "007").write_text("by hand")
    assert new_folder(output) == output / "008"
    (tmp_path / "file").write_text("by hand")
    with pytest.raises(BadInput, match="file"):
        new_folder(tmp_path / "file")


def test_runs_wait_for_one_another(tmp_path: Path, queue: Start) -> None:
    free, order = threading.Event(), []

    def render(run: Run, job: Job) -> str:
        free.wait(60)
        order.append(run.folder.name)
        run.video.write_text("video")
        return "animation"

    engine = queue(render)
    jobs = [engine.submit(upload(tmp_path / f"in{n}", seed=n)) for n in range(3)]
    wait_until(lambda: jobs[0].state == "running")
    assert [engine.ahead_of(job) for job in jobs] == [0, 1, 2]
    assert "2 run(s) before this one" in status_html(jobs[2], 2)
    engine.stop(jobs[1])
    assert jobs[1].state == "stopped"  # now, not after the run before it
    assert engine.ahead_of(jobs[2]) == 1
    free.set()
    assert [wait_for(job).state for job in jobs] == ["done", "stopped", "done"]
    assert order == ["001", "002"]
    assert (tmp_path / "animations" / "001" / "person.png").read_bytes() == b"person.png"


def test_a_stopped_run_is_resumed_by_the_same_request(tmp_path: Path, queue: Start) -> None:
    """The engine raises ``KeyboardInterrupt`` at the next report of progress, as for Ctrl-C."""
    reached = threading.Event()

    def render(run: Run, job: Job) -> str:
        state = run.folder / ".video.mp4.state"
        if state.exists():
            return "resumed"
        with job.progress(100, "denoise", "window") as bar:
            state.write_text("step 1")
            try:
                while True:
                    bar.update(step="1/10")
                    reached.set()
                    threading.Event().wait(0.01)
            except KeyboardInterrupt:
                raise Interrupted(f"{run.video}: interrupted", hint="run the same command to resume") from None

    engine = queue(render)
    request = upload(tmp_path / "in", seed=1)
    job = engine.submit(request)
    assert reached.wait(60)
    assert "step 1/10" in status_html(job, 0)
    job.stop()
    assert wait_for(job).state == "stopped"
    assert job.error is not None
    assert job.error.message.endswith("animations/001/video.mp4: interrupted")
    again = wait_for(engine.submit(request))
    assert again is not job
    assert (again.animation, again.run) == ("resumed", job.run)
    assert request.key() != upload(tmp_path / "in", seed=2).key()


def test_steps_of_an_earlier_run_do_not_count_in_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = upload(tmp_path / "in")
    job = Job(request=request, key=request.key(), state="running")
    with job.progress(100, "denoise", "window", initial=90) as bar:
        assert "left" not in status_html(job, 0)
        bar.update()
        assert job.stage is not None
        job.stage.started = 100.0
        monkeypatch.setattr("time.monotonic", lambda: 110.0)
        assert "91 of 100 windows, 1:30 min left" in status_html(job, 0)


def test_a_run_whose_folder_was_removed_starts_in_another(tmp_path: Path, queue: Start) -> None:
    def render(run: Run, job: Job) -> str:
        if not reached:
            reached.append(run.folder)
            (run.folder / ".video.mp4.state").write_text("step 1")
            raise Interrupted("interrupted")
        return run.reference.read_text()

    reached: list[Path] = []
    engine, request = queue(render), upload(tmp_path / "in", seed=1)
    assert wait_for(engine.submit(request)).state == "stopped"
    shutil.rmtree(reached[0])
    job = wait_for(engine.submit(request))
    assert (job.state, job.animation) == ("done", "person.png")


def test_an_error_holds_nothing_of_the_run(tmp_path: Path, queue: Start) -> None:
    """Its frames would keep the networks' memory while the page shows it, and the next run would not fit either."""
    held: list[weakref.ref[threading.Event]] = []

    def render(run: Run, job: Job) -> Any:
        large = threading.Event()
        held.append(weakref.ref(large))
        raise MemoryError("full")

    job = wait_for(queue(render).submit(upload(tmp_path / "a")))
    gc.collect()
    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "out-of-memory")
    assert held[0]() is None


@pytest.mark.parametrize(
    ("raised", "state", "message"),
    [
        (NoFace("person.png: no face found"), "failed", "person.png: no face found"),
        (RuntimeError("odd"), "failed", "a bug of ours: RuntimeError: odd"),
        (MemoryError(), "failed", "this machine has too little memory"),
        (KeyboardInterrupt(), "stopped", "interrupted before there was anything to resume"),
    ],
)
def test_a_run_that_leaves_nothing_leaves_no_folder(
    raised: BaseException, state: str, message: str, tmp_path: Path, queue: Start
) -> None:
    def render(run: Run, job: Job) -> str:
        raise raised

    job = wait_for(queue(render).submit(upload(tmp_path / "in")))
    assert job.state == state
    assert job.error is not None
    assert job.error.message.startswith(message)
    assert list((tmp_path / "animations").iterdir()) == []


def test_closing_stops_the_run_and_what_waits(tmp_path: Path, queue: Start) -> None:
    def render(run: Run, job: Job) -> str:
        with job.progress(None, "denoise") as bar:
            while True:
                bar.update()
                threading.Event().wait(0.01)

    engine = queue(render)
    jobs = [engine.submit(upload(tmp_path / f"in{n}")) for n in range(2)]
    wait_until(lambda: jobs[0].stage is not None)
    assert engine.close(timeout=60) is jobs[0]
    assert [job.state for job in jobs] == ["stopped", "stopped"]


def test_errors_name_files_as_they_were_uploaded(tmp_path: Path) -> None:
    error = BadInput(tmp_path / "x" / "<b>.png", "a text", "an image", hint=f"look at {tmp_path / 'x'}/<b>.png")
    shown = error_html(error, [tmp_path / "x"])
    assert "&lt;b&gt;.png: found a text, expected an image" in shown
    assert str(tmp_path) not in shown
    assert isinstance(missing_input(None, "wave.npz"), SaError)
    assert missing_input("a.png", "wave.npz") is None


def test_the_curve_has_gaps_where_no_face_is_seen() -> None:
    shown = curve_html({"mean": 0.5, "frames_with_face": 3, "similarity": [1.0, None, 0.5, 0.0]})
    assert 'points="-0.50,0.00 0.50,0.00"' in shown
    assert 'points="66.67,20.00 100.00,40.00"' in shown
    assert "1 frame(s) without a face" in shown
    assert "0.50 on average" in shown
    assert curve_html(None) == ""


def test_times_are_short() -> None:
    assert [clock(seconds) for seconds in (0.2, 59, 75, 3700)] == ["1 s", "59 s", "1:15 min", "1:01 h"]


def test_the_port_is_on_the_loopback_address_and_taken_once() -> None:
    with open_socket(0) as taken:
        host, port = taken.getsockname()
        assert host == HOST == "127.0.0.1"
        with pytest.raises(ConfigError, match=f"--port: found '{port}'"):
            open_socket(port)


def test_models_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> None:
    monkeypatch.setenv("SA_HOME", str(tmp_path))
    monkeypatch.delenv("SA_MODEL", raising=False)
    assert list(local_models()) == ["puppet"]
    assert list(local_models(str(tiny_model))) == [str(tiny_model), "puppet"]
    with pytest.raises(ModelMissing, match="nobody"):
        local_models("nobody")


def test_the_folder_of_a_killed_session_is_removed_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    for name in ("sa-app-killed", "sa-app-lives", "sa-app-other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "upload.png").write_text("a picture")
    (tmp_path / "sa-app-killed" / ".lock").touch()
    with exclusive_lock(tmp_path / "sa-app-lives" / ".lock"):
        session = Session(tmp_path / "animations", "puppet")
        try:
            folders = {path.name for path in tmp_path.glob("sa-app-*")}
            assert folders == {"sa-app-lives", "sa-app-other", session.temporary.name}
        finally:
            session.close()
    assert not session.temporary.exists()


def test_without_gradio_the_verb_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from stableanimator_cli.cli import app

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else SimpleNamespace())
    with pytest.raises(SaError, match="Gradio, which is not installed") as caught:
        app.app()
    assert caught.value.exit_code == 2
