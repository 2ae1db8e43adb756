"""The page in a real browser: headless Chromium uploads, animates with ``puppet``, and plays the video."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from stableanimator_cli.api import animate
from stableanimator_cli.app.examples import Example, draw_examples
from stableanimator_cli.errors import SaError
from stableanimator_cli.files import sha256_of
from tests.browser import open_browser
from tests.conftest import ROOT

MINUTES = 5 * 60_000  # milliseconds that a loaded machine may need

# The duration of a video, once it plays.
PLAY = """video => new Promise(done => video.addEventListener(
    'timeupdate', () => { if (video.currentTime > 0) done(video.duration) }))"""
# ``sa`` in a process that notes every address elsewhere that it looks up or connects to.
WATCHED = """
import socket, sys
notes, sys.argv = sys.argv[1], ["sa", *sys.argv[2:]]
def watch(name, call, address):
    def watched(*args, **words):
        host = address(args)
        if host not in (None, "127.0.0.1", "::1", "localhost"):
            with open(notes, "a") as file:
                print(name, host, file=file)
        return call(*args, **words)
    return watched
socket.getaddrinfo = watch("lookup", socket.getaddrinfo, lambda args: args[0])
socket.socket.connect = watch(
    "connect", socket.socket.connect, lambda args: args[1][0] if isinstance(args[1], tuple) else None
)
from stableanimator_cli.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def env(folder: Path) -> dict[str, str]:
    temporary = folder / "temporary"
    temporary.mkdir()
    given = {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "SA_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **given, "SA_MODEL": "puppet"}


@pytest.fixture(scope="module")
def upload(folder: Path) -> Example:
    """A person and a motion that the page does not offer, and ``broken.png`` beside them."""
    (folder / "mine").mkdir()
    example = draw_examples(folder / "mine")[1]
    (folder / "mine" / "broken.png").write_bytes(example.picture.read_bytes()[:300])
    return example


@pytest.fixture(scope="module")
def address(folder: Path, env: dict[str, str]) -> Iterator[str]:
    """``sa app`` on a free port. It ends with Ctrl-C: without an error, a temporary file, or a word to other hosts."""
    command = [sys.executable, "-c", WATCHED, str(folder / "elsewhere"), "app", "--port", "0", "--json"]
    server = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    try:
        assert line, server.communicate()[1]
        yield json.loads(line)["address"]
    finally:
        server.send_signal(signal.SIGINT)
        _, stderr = server.communicate(timeout=120)
    assert server.returncode == 0, stderr
    assert list((folder / "temporary").glob("sa-app-*")) == []
    assert not (folder / "elsewhere").exists(), (folder / "elsewhere").read_text()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        hosts: set[str] = set()
        page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else ""))
        page.goto(address)
        yield page
    assert hosts <= {address.split("/")[2], ""}


def choose(page: Page, name: str, file: Path) -> None:
    """Put a file in the place of the one that an input shows."""
    page.locator(f"#{name} button[aria-label=Clear], #{name} button[aria-label='Remove Image']").click()
    page.locator(f"#{name} input[type=file]").set_input_files(file)


def test_a_broken_picture_is_reported_as_on_the_command_line(page: Page, upload: Example, folder: Path) -> None:
    broken = upload.picture.with_name("broken.png")
    with pytest.raises(SaError) as refused:
        animate(broken, upload.motion, folder / "out.mp4", model="puppet")
    message = refused.value.message.replace(f"{broken.parent}/", "")
    assert message.startswith("broken.png: ")
    choose(page, "picture", broken)
    expect(page.locator("#plan .sa-error strong")).to_have_text(message, timeout=MINUTES)
    page.click("#animate")
    expect(page.locator("#status .sa-error strong")).to_have_text(message, timeout=MINUTES)
    assert list((folder / "animations").iterdir()) == []


def test_a_picture_and_a_motion_become_a_video(page: Page, upload: Example, folder: Path, env: dict[str, str]) -> None:
    page.get_by_text("More settings").click()  # while the picture is broken, so that one plan is made and no more
    page.get_by_label("Steps").fill("2")
    page.get_by_label("Frames").fill("0:3")
    page.get_by_label("Size").fill("128x128")
    page.get_by_label("Size").press("Enter")
    page.get_by_label("Hide the picture's own face").check()
    choose(page, "motion", upload.motion)
    expect(page.locator("#moving video")).to_be_visible(timeout=MINUTES)
    choose(page, "picture", upload.picture)
    expect(page.locator("#plan .sa-plan")).to_contain_text("3 frames", timeout=MINUTES)
    page.click("#animate")
    expect(page.locator("#live img")).to_be_visible(timeout=MINUTES)
    expect(page.locator("#status b")).to_have_text("Done", timeout=MINUTES)
    for name in ("video", "beside"):
        assert page.locator(f"#{name} video").evaluate(PLAY) == pytest.approx(3 / 8, abs=0.05)
    expect(page.locator("#curve figcaption")).to_contain_text("Identity")
    words = shlex.split(page.locator("#command textarea").input_value())
    video = folder / "animations" / "001" / "video.mp4"
    assert words[:2] == ["sa", "animate"]
    assert words[words.index("-o") + 1] == "animations/001/video.mp4"
    assert "--hide-reference-face" in words
    digest = sha256_of(video)
    video.unlink()
    again = [sys.executable, "-m", "stableanimator_cli", *words[1:], "--quiet"]
    subprocess.run(again, cwd=folder, env=env, check=True, timeout=300)
    assert sha256_of(video) == digest


def test_a_run_is_stopped(page: Page, folder: Path) -> None:
    page.get_by_label("Steps").fill("900")
    page.click("#animate")
    expect(page.locator("#status")).to_contain_text("step", timeout=MINUTES)
    page.click("#stop")
    expect(page.locator("#status .sa-error strong")).to_contain_text("interrupted", timeout=MINUTES)
    expect(page.locator("#animate")).to_be_enabled()
    if (folder / "animations" / "002").exists():  # it ran long enough for a checkpoint
        expect(page.locator("#status")).to_contain_text("same settings to resume")


def test_people_are_chosen_and_get_faces_of_other_pictures(page: Page, upload: Example) -> None:
    page.locator("#people button").nth(3).click()  # the couple
    expect(page.locator("#plan")).to_contain_text("people 0, 1 by position from left to right", timeout=MINUTES)
    if not page.get_by_label("People", exact=True).is_visible():
        page.get_by_text("More settings").click()
    page.get_by_label("People", exact=True).fill("1,0")
    page.get_by_label("Face of each").fill("0:1")
    page.locator("#faces input[type=file]").set_input_files(upload.picture)
    page.get_by_label("Whose faces they are").fill("1")
    words = f"person 1 gets face 1 of person-4.png, person 0 gets the face of {upload.picture.name}"
    expect(page.locator("#plan")).to_contain_text(words, timeout=MINUTES)
    page.get_by_label("Whose faces they are").fill("0")
    expect(page.locator("#plan .sa-error strong")).to_contain_text("that --pair does not name", timeout=MINUTES)


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_screen(width: int, page: Page) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    time.sleep(0.5)  # for the layout
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_no_file_is_read_that_was_not_uploaded(address: str, folder: Path) -> None:
    """A program of this machine that names a path where the page names an upload."""
    secret = folder / "secret.mp4"
    secret.write_bytes(b"secret")
    config = requests_json(f"{address}config")
    ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    (shows,) = [row for row in config["dependencies"] if row["outputs"] == [ids["moving"]]]
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": shows["id"], "session_hash": "other"}
    requests_json(f"{address}gradio_api/queue/join", body)
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=other", timeout=300) as stream:
        events = [json.loads(line[5:]) for line in stream.read().decode().splitlines() if line.startswith("data:")]
    (end,) = [event for event in events if event["msg"] == "process_completed"]
    assert not end["success"]
    assert "not uploaded" in end["output"]["error"]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        requests_json(f"{address}gradio_api/file={secret}")


def test_a_file_of_another_kind_is_reported_as_on_the_command_line(address: str, upload: Example) -> None:
    """Gradio would refuse its suffix in its own words, with a traceback on the terminal."""
    config = requests_json(f"{address}config")
    ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    (plans,) = [row for row in config["dependencies"] if row["outputs"] == [ids["plan"]]]
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="notes.txt"\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=edge"}
    request = urllib.request.Request(f"{address}gradio_api/upload", head + b"notes\r\n--edge--\r\n", form)
    with urllib.request.urlopen(request, timeout=300) as answer:
        file = {"path": json.load(answer)[0], "meta": {"_type": "gradio.FileData"}}
    values |= {ids["motion"]: file, ids["faces"]: [file]}
    body = {"data": [values[box] for box in plans["inputs"]], "fn_index": plans["id"], "session_hash": "notes"}
    requests_json(f"{address}gradio_api/queue/join", body)
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=notes", timeout=300) as stream:
        events = [json.loads(line[5:]) for line in stream.read().decode().splitlines() if line.startswith("data:")]
    (end,) = [event for event in events if event["msg"] == "process_completed"]
    assert "notes.txt: found data that is no" in end["output"]["data"][0]


def requests_json(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)
