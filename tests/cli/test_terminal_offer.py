"""The offer of a download on a real terminal: a pseudo-terminal in place of the user's."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stableanimator_cli.motion.motion_file import save_motion
from tests.animate.clips import plain_picture
from tests.catalogue.test_download import row, server
from tests.conftest import ROOT
from tests.model_server import Server
from tests.tiny import waving

__all__ = ["server"]
QUESTION = b"and continue? [y/N] "


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, server: Server) -> Path:
    """An image, a motion, and in ``SA_HOME`` the card of the tiny model, whose UNet is on the server alone."""
    plain_picture(tmp_path / "person.png")
    save_motion(tmp_path / "poses.npz", waving(2))
    folder = tmp_path / "home" / "models" / "far"
    folder.mkdir(parents=True)
    card = (tiny_model / "model.toml").read_text()
    for path in sorted(tiny_model.rglob("*")):
        name = path.relative_to(tiny_model).as_posix()
        if path.is_dir() or name == "model.toml":
            continue
        if "unet" in name and path.suffix == ".safetensors":
            server.files["/unet"] = path.read_bytes()
            card += "\n" + row(f"{server.url}/unet", path=name, body=server.files["/unet"])
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
    (folder / "model.toml").write_text(card.replace('name = "tiny"', 'name = "far"'))
    return tmp_path


def command(place: Path, *more: str) -> list[str]:
    line = f"animate person.png poses.npz -o {place / 'out.mp4'} --model far --steps 1 --allow-no-face --device cpu"
    return [sys.executable, "-m", "stableanimator_cli", *line.split(), *more]


def environment(place: Path) -> dict[str, str]:
    quiet = {"SA_HOME": str(place / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "no_proxy": "*"}
    return {**os.environ, **quiet, "COLUMNS": "300", "TERM": "dumb"}


def converse(place: Path, answer: bytes | None, *more: str) -> tuple[int, bytes, bytes]:
    """Run on a terminal, answer the question if it comes: exit code, standard output, and what the terminal showed."""
    own, theirs = pty.openpty()
    child = subprocess.Popen(
        command(place, *more), stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, cwd=place, env=environment(place)
    )
    os.close(theirs)
    shown, limit = b"", time.monotonic() + 240
    while time.monotonic() < limit:
        if select.select([own], [], [], 0.1)[0]:
            try:
                shown += os.read(own, 1 << 16)
            except OSError:  # the other side is closed
                break
            if QUESTION in shown and answer is not None:
                os.write(own, answer)
                answer = None
        elif child.poll() is not None:
            break
    out, _ = child.communicate(timeout=60)
    os.close(own)
    return child.returncode, out, shown


def test_no_leaves_with_the_code_of_a_missing_model_and_nothing_written(place, server):
    before = sorted(path for path in place.rglob("*"))
    code, out, shown = converse(place, b"n\n")
    assert (code, out) == (5, b"")
    assert QUESTION in shown
    assert b"sa models pull far" in shown
    assert server.asked == []
    assert sorted(path for path in place.rglob("*")) == before


def test_yes_fetches_and_animates(place, server):
    code, out, shown = converse(place, b"y\n")
    assert code == 0, shown
    assert out.decode().strip() == str(place / "out.mp4")
    assert (place / "out.mp4").is_file()
    assert len(server.asked) == 1


def test_a_plan_and_the_flag(place, server):
    code, out, shown = converse(place, None, "--plan")
    assert (code, server.asked) == (0, [])
    assert b"sa models pull far" in out
    assert QUESTION not in shown
    code, _, shown = converse(place, None, "--yes")
    assert code == 0, shown
    assert len(server.asked) == 1


def test_without_a_terminal_nothing_is_asked(place, server):
    run = subprocess.run(
        command(place, "--yes"), input=b"y\n", capture_output=True, cwd=place, env=environment(place), timeout=240,
        check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, server.asked) == (5, b"", [])
    assert QUESTION not in run.stderr
    assert b"sa models pull far" in run.stderr
