"""``sa demo`` and ``sa puppets``: what they replace, and one process at a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stableanimator_cli.cli.demo as demo_module
from stableanimator_cli.cli.demo import SUFFIXES, demo
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import carries_mark, locked_output
from stableanimator_cli.media import open_clip
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets
from stableanimator_cli.puppets.scene import sample_scene
from tests.conftest import ROOT


def read_record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["demo.mp4", "demo.gif", "demo.png", "demo/person-1.png", "demo/person-3.face.npy"])
def test_a_demo_replaces_no_file_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match=f"{Path(name).name}: it exists and was not written by sa"):
        demo(tmp_path, frames=1, quiet=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_one_demo_at_a_folder(tmp_path: Path) -> None:
    with (
        locked_output(tmp_path / "d", "sa demo", folder=True),
        pytest.raises(BadInput, match="it is being written by another `sa demo`"),
    ):
        demo(tmp_path / "d", frames=1, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_processor_that_does_not_compute_in_bfloat16_takes_its_own_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert demo_module._dtype() == "auto"


def test_a_demo_shows_three_people_twice_and_may_be_repeated(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    quick = Path(shutil.copytree(ROOT / "models" / "puppet", tmp_path_factory.mktemp("quick") / "puppet"))
    card = quick / "model.toml"
    text = card.read_text(encoding="utf-8")
    assert 'size = "256x256"' in text
    card.write_text(text.replace('size = "256x256"', 'size = "80x80"'), encoding="utf-8")
    monkeypatch.setattr(demo_module, "_QUICK", {"steps": 1, "decode_chunk": 2})
    monkeypatch.setattr(demo_module, "MODEL", str(quick))
    for figure, bfloat16 in ((0, False), (1, True)):  # many processors take five times as long in bfloat16
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=bfloat16: {"avx512_bf16": known}, raising=False)
        demo(tmp_path, figure=figure, frames=3, json=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 + 3 * len(SUFFIXES)
    assert all(carries_mark(path) for path in files)
    printed = capsys.readouterr()
    assert "person 3 of 3, with the face vector of person 1" in printed.err
    report = json.loads(printed.out.splitlines()[-1])
    assert report["output"] == str(tmp_path / "demo.mp4")
    assert len(report["similarity"]) == len(report["swapped_similarity"]) == 3
    sizes = {path: open_clip(path).size for path in (tmp_path / "demo.mp4", tmp_path / "demo.png")}
    assert len(set(sizes.values())) == 1
    gif = open_clip(tmp_path / "demo.gif")
    assert gif.size == tuple(side // 2 for side in sizes[tmp_path / "demo.mp4"])
    assert len(list(gif.frames())) == 4
    first, other = (read_record(tmp_path / "demo" / f"person-1.{name}json") for name in ("", "other-face."))
    assert first["seed"] == other["seed"]
    assert first["device"] == other["device"] == "cpu, bfloat16"
    assert first["output"]["sha256"] != other["output"]["sha256"]


def test_the_people_of_a_demo_move_alike_and_look_different() -> None:
    scenes = [sample_scene("test", n, size=(64, 64), framing="portrait", behaviour="wave") for n in range(2)]
    moved = scenes[1].with_movements_of(scenes[0])
    assert [scenes[0].behaviour(t) for t in range(4)] == [moved.behaviour(t) for t in range(4)]
    assert moved.people == scenes[1].people
    assert np.array_equal(scenes[1].frame(3).image, sample_scene("test", 1, size=(64, 64), framing="portrait",
                          behaviour="wave").frame(3).image)  # fmt: skip
    nearer = np.nanmean(np.abs(moved.frame(3).keypoints - scenes[0].frame(3).keypoints))
    assert nearer < np.nanmean(np.abs(scenes[1].frame(3).keypoints - scenes[0].frame(3).keypoints))


def test_one_process_draws_puppets_into_a_folder_and_its_files_carry_the_mark(tmp_path: Path) -> None:
    plan = PuppetPlan(folder=tmp_path / "p", videos=1, frames=2, size=(64, 64))
    with (
        locked_output(tmp_path / "p", "sa puppets", folder=True),
        pytest.raises(BadInput, match="it is being written by another `sa puppets`"),
    ):
        write_puppets(plan)
    write_puppets(plan)
    assert all(carries_mark(path) for path in (tmp_path / "p").rglob("*") if path.is_file())
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match="a folder with other things"):
        write_puppets(PuppetPlan(folder=tmp_path / "q"))
