"""The form without a browser: what is asked of a run, and what the page shows if that fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stableanimator_cli.app.engine_queue import EngineQueue, Job
from stableanimator_cli.app.motion_preview import write_motion_preview
from stableanimator_cli.app.page import PRESETS, _moving, _request, _run
from stableanimator_cli.app.request import Run
from stableanimator_cli.motion.motion_file import save_motion
from tests.waving import waving


def form(picture: Path, motion: Path, **changes: str) -> list[Any]:
    """Values of the form, with the model's own settings."""
    text = {"steps": "", "frames": "", "memory": "", "person": "", "pair": "", "owners": ""} | changes
    return [
        str(picture), str(motion), "puppet", "64x64", text["steps"], 0, text["frames"], PRESETS[0], text["memory"],
        False, False, False, text["person"], text["pair"], [], text["owners"],
    ]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    picture, motion = tmp_path / "in" / "person.png", tmp_path / "in" / "wave.npz"
    picture.parent.mkdir()
    for path in (picture, motion):
        path.write_bytes(path.name.encode())
    return picture, motion


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Any]:
    """A session whose runs are finished at once, with a video and a record that is removed with its folder."""

    def render(run: Run, job: Job) -> Any:
        run.video.write_text("video")
        record = run.folder / "video.json"
        record.write_text(json.dumps({"identity": None}))
        return SimpleNamespace(video=run.video, preview=run.video, record=record, frames=1, seconds={"total": 1.0})

    queue = EngineQueue(tmp_path / "animations", render)
    yield SimpleNamespace(queue=queue, shown=lambda path: shutil.copy(path, tmp_path), output=tmp_path / "animations")
    queue.close(timeout=60)


def test_zero_steps_are_asked_for_as_such(files: tuple[Path, Path]) -> None:
    assert _request(tuple(form(*files, steps="0"))).options["steps"] == 0
    assert "steps" not in _request(tuple(form(*files))).options


def test_a_motion_is_shown_whatever_the_case_of_its_suffix(session: Any, tmp_path: Path) -> None:
    session.temporary = tmp_path
    save_motion(tmp_path / "wave.npz", waving(2))
    write_motion_preview(tmp_path / "wave.npz", tmp_path / "wave.mp4")
    for name in ("wave.npz", "wave.mp4"):
        upper = (tmp_path / name).rename(tmp_path / name.upper())
        assert _moving(session, str(upper)).visible, name
    assert not _moving(session, str(tmp_path / "wave.json")).visible


def test_an_upload_that_is_gone_is_named_as_it_was_uploaded(session: Any, files: tuple[Path, Path]) -> None:
    files[0].unlink()
    (shown,) = _run(session, *form(*files))
    assert "person.png: it cannot be read" in shown[1]
    assert str(files[0].parent) not in shown[1]


def test_the_form_can_be_used_after_a_result_that_cannot_be_shown(
    session: Any, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, shown = _run(session, *form(*files))
    assert "Done" in shown[1]
    assert [button.interactive for button in shown[-2:]] == [True, False]

    def removed(path: Path) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(session, "shown", removed)
    *_, shown = _run(session, *form(*files))
    assert "sa-error" in shown[1]
    assert [button.interactive for button in shown[-2:]] == [True, False]
