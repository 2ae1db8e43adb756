"""``sa demo`` and ``sa puppets``: what they replace, and one process at a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from stableanimator_cli.cli.demo import demo
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import carries_mark, locked_output
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets


@pytest.mark.parametrize("name", ["demo.reference.png", "demo.poses.npz", "demo.mp4", "demo.json", "demo.png"])
def test_a_demo_replaces_no_file_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match=f"{name}: it exists and was not written by sa"):
        demo(tmp_path, frames=1, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_demo_at_a_folder(tmp_path: Path) -> None:
    with (
        locked_output(tmp_path / "d", "sa demo", folder=True),
        pytest.raises(BadInput, match="it is being written by another `sa demo`"),
    ):
        demo(tmp_path / "d", frames=1, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_demo_may_be_repeated_and_all_its_files_carry_the_mark(tmp_path: Path) -> None:
    for figure in (0, 1):
        demo(tmp_path, figure=figure, frames=1, quiet=True)
    assert len(list(tmp_path.iterdir())) == 5
    assert all(carries_mark(path) for path in tmp_path.iterdir())


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
