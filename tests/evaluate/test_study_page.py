"""The page of a study in a browser: by keyboard and by mouse, several people, pauses, a telephone's width."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.study import QUESTIONS
from stableanimator_cli.media import write_image
from tests.browser import open_browser
from tests.evaluate.samples import drawn, noisy, write

SYSTEMS = ("ours", "one", "two", "three")
SIZE = (64, 96)  # portrait


def _never(flags: Any, settings: Any) -> None:
    raise AssertionError("nothing is animated for a study")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of four systems: 12 comparisons, 5 per person."""
    folder = tmp_path_factory.mktemp("study")
    for amount, system in enumerate(SYSTEMS):
        for name in "abcd":
            write(folder / system / f"{name}.mp4", [noisy(8 * amount)(0, f) for f in drawn(0, frames=3, size=SIZE)])
    (folder / "pictures").mkdir()
    for name in "abcd":
        write_image(folder / "pictures" / f"{name}.png", drawn(0, frames=1, size=SIZE)[0])
    flags = {"inputs": [folder / name for name in SYSTEMS], "study": True, "comparisons": 5,
             "reference_picture": folder / "pictures", "output": folder / "out"}  # fmt: skip
    run(flags=flags, animate=_never)
    return folder / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, study: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto((study / "study.html").as_uri())
    yield page
    context.close()
    assert errors == []


def _saved(page: Page, button: str) -> dict[str, Any]:
    with page.expect_download() as download:
        page.click(button)
    return json.loads(Path(download.value.path()).read_text())


def _begin(page: Page, name: str, block: int | None = None) -> None:
    page.fill("#person", name)
    if block is not None:
        page.fill("#block", str(block))
    page.click("#begin")


def _answer_by_mouse(page: Page, side: str = "left") -> None:
    page.click("#seen")
    for question in QUESTIONS:
        assert page.is_disabled("#send")
        page.click(f"input[name={question}][value={side}]")
    page.click("#send")


def test_a_person_answers_with_the_keyboard_alone(page: Page) -> None:
    page.keyboard.type("Ann")
    page.keyboard.press("Enter")
    for _ in range(5):
        assert page.is_visible("#first")
        page.keyboard.press("Enter")
        assert page.is_visible("#pair")
        page.keyboard.press("Enter")  # nothing is answered yet
        for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        page.keyboard.press("r")
        page.keyboard.press("Enter")
    assert page.is_visible("#end")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    told = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "answers-Ann.json"
    for answer in told["answers"]:
        sides = [answer["preferred"][name] for name in QUESTIONS]
        assert sides == [answer[side] for side in ("right", "right", "left", "right")]


def test_people_pause_save_and_follow_one_another_in_their_own_blocks(page: Page, study: Path) -> None:
    _begin(page, "Ann", block=1)
    _answer_by_mouse(page)
    early = _saved(page, "#sofar")
    _answer_by_mouse(page)
    page.click("#seen")
    page.click("#pause")
    assert page.input_value("#block") == ""  # Ann's, which the next person would get too
    page.reload()
    assert page.locator("#list tr").all_text_contents() == ["Ann2 of 5ContinueSaveRemove"]
    _begin(page, "Ben")
    while not page.is_visible("#end"):
        _answer_by_mouse(page, "right")
    ben = _saved(page, "#file")
    page.click("#next")
    page.get_by_role("button", name="Continue").click()
    assert page.text_content("#first .count") == "3 of 5"
    for _ in range(3):
        _answer_by_mouse(page)
    ann = _saved(page, "#file")
    assert (early["block"], ann["block"], ben["block"]) == (0, 0, 1)  # Ben's follows Ann's
    assert ann["answers"][:1] == early["answers"]
    assert ann["session"] == early["session"] != ben["session"]
    compared = Counter((a["case"], a["left"] + a["right"]) for told in (ann, ben) for a in told["answers"])
    assert set(compared.values()) == {1}  # ten of twelve, none twice
    for told in (ann, ben):
        assert sum(a["left"] == 0 for a in told["answers"]) in (2, 3)
    page.click("#next")
    page.locator("#list tr").first.get_by_text("Remove").click()
    assert page.locator("#list tr").all_text_contents() == ["Ben5 of 5finishedSaveRemove"]
    folder = study.parent / "answers"
    folder.mkdir()
    shutil.copy(study / "study.json", folder)
    for name, told in (("early", early), ("ann", ann), ("ben", ben)):
        (folder / f"answers-{name}.json").write_text(json.dumps(told))
    counted = run(flags={"inputs": [folder], "tally": True}, animate=_never).to_json()
    assert counted["people"] == 2
    assert sum(row["motion"]["of"] for row in counted["preferred"].values()) == 10


def test_answers_of_an_earlier_page_are_continued(page: Page, study: Path) -> None:
    key = json.loads((study / "study.json").read_text())["study"]
    old = {"person": "Old", "session": "s", "saved": 0, "answers": [], "trials": [{"case": 0, "left": 1, "right": 0}]}
    page.evaluate("([key, old]) => localStorage.setItem('sa-study-' + key, JSON.stringify(old))", [key, old])
    page.reload()
    page.get_by_role("button", name="Continue").click()
    _answer_by_mouse(page)
    told = _saved(page, "#file")
    assert (told["person"], told["of"], len(told["answers"])) == ("Old", 1, 1)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080), (390, 844)])
def test_portrait_videos_fill_the_screen_and_nothing_is_cut_off(page: Page, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    _begin(page, "Ann")
    page.click("#seen")
    left, right = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
    assert left is not None
    assert right is not None
    assert left["height"] == pytest.approx(left["width"] * SIZE[1] / SIZE[0], rel=0.02)
    assert (left["width"], left["y"]) == pytest.approx((right["width"], right["y"]), abs=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width > 600:
        assert left["height"] > 0.75 * height
        assert left["y"] + left["height"] <= height
    else:
        assert left["width"] > 0.45 * width
