"""The ablations' commands without training: which are run, skipped, resumed and refused; ``sa`` accepts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.errors import BadInput, BadUsage, Interrupted
from stableanimator_cli.evaluate.tables import ABLATIONS, MADE_OF
from stableanimator_cli.train.resume import new_config
from tools.bench.ablations import (  # fmt: skip
    ANIMATE,
    FOLDER,
    RECIPE,
    TABLES,
    VARIANTS,
    CommandFailed,
    Plan,
    main,
    python,
    train_variants,
    write_tables,
)


class Recorded:
    """Commands that only create the files of a run and of a model folder.

    ``fails`` is the index of the command that exits with ``code``.
    """

    def __init__(self, fails: int | None = None, code: int = 3) -> None:
        self.calls: list[list[str]] = []
        self.fails, self.code = fails, code

    def __call__(self, arguments: Sequence[str]) -> int:
        words = [word for word in arguments if word not in ("-m", "stableanimator_cli")]
        self.calls.append(words)
        if words[0] == "train":
            out = Path(words[words.index("-o") + 1]) if "-o" in words else None
            if "--export" in words and out is not None:
                out.mkdir(parents=True)
                (out / "model.toml").touch()
            elif out is not None:
                out.mkdir(parents=True)
                (out / "config.toml").touch()
        return self.code if len(self.calls) - 1 == self.fails else 0


def _plan(work: Path, **more: object) -> Plan:
    return Plan(work=work, data=work.parent / "clips", **more)  # type: ignore[arg-type]


def test_every_row_is_a_training_or_a_setting_of_one() -> None:
    expected = {name for table in TABLES for name in ABLATIONS[table]}
    assert set(VARIANTS) == expected - set(MADE_OF)
    assert set(MADE_OF.values()) <= set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_sa_train_accepts_the_recipe_with_every_variants_flags(name: str, tmp_path: Path) -> None:
    flags = {key.removeprefix("--").replace("-", "_"): value for key, value in VARIANTS[name].items()}
    config = new_config({"dataset": [tmp_path], "output": tmp_path / "run", "model": "puppet", **flags}, RECIPE)
    actual = {
        "face_mask": config.loss.face_mask,
        "face_encoder": config.ablation.face_encoder,
        "id_adapter": config.ablation.id_adapter,
        "face": config.ablation.face,
    }
    full = {"face_mask": "released", "face_encoder": "on", "id_adapter": "distribution", "face": "on"}
    assert actual == {**full, **flags}
    assert [stage.name for stage in config.resolve_stages((128, 128)).stage or ()] == ["pictures", "clips"]


def test_sa_animate_accepts_the_settings_and_flags_turn_face_optimisation_off(tmp_path: Path) -> None:
    flags = {"reference": tmp_path / "a.png", "motion": tmp_path / "b.npz", "output": tmp_path / "c.mp4"}
    assert resolve(AnimateConfig, flags, ANIMATE).refine.face == "crop"
    assert resolve(AnimateConfig, {**flags, "refine_face": "off"}, ANIMATE).refine.face == "off"


def test_all_variants_share_their_settings_but_their_own_flags(tmp_path: Path) -> None:
    command, lines = Recorded(), list[str]()
    folders = train_variants(_plan(tmp_path / "w", steps=2, seed=7), command, lines.append)
    assert folders == [tmp_path / "w" / FOLDER / name for name in VARIANTS]
    started = [call for call in command.calls if "--export" not in call]
    shared = ["train", str(tmp_path / "clips"), "--model", "puppet", "--config", str(RECIPE), "--seed", "7",
              "--steps", "2"]  # fmt: skip
    for call, (name, flags) in zip(started, VARIANTS.items(), strict=True):
        own = [word for pair in flags.items() for word in pair]
        assert [word for word in call if word not in ("-o", str(tmp_path / "w" / "runs" / name))] == [*shared, *own]
    assert [line.split(":")[0] for line in lines] == list(VARIANTS)


def test_finished_variants_are_skipped_and_interrupted_ones_resumed(tmp_path: Path) -> None:
    plan, work = _plan(tmp_path / "w"), tmp_path / "w"
    failing = Recorded(fails=2)  # the second variant's training
    with pytest.raises(CommandFailed, match="training no-face-masks: exit code 3") as caught:
        train_variants(plan, failing, lambda text: None)
    assert caught.value.exit_code == 3
    again, lines = Recorded(), list[str]()
    train_variants(plan, again, lines.append)
    assert lines[:3] == [
        f"ours: already trained, {work / FOLDER / 'ours'}",
        f"no-face-masks: resumes, {work / 'runs' / 'no-face-masks'}",
        f"no-face-encoder: starts, {work / 'runs' / 'no-face-encoder'}",
    ]
    assert again.calls[0] == ["train", "--resume", str(work / "runs" / "no-face-masks")]
    last = Recorded()
    train_variants(plan, last, lambda text: None)
    assert last.calls == []


def test_an_interrupt_is_one(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="training ours"):
        train_variants(_plan(tmp_path / "w"), Recorded(fails=0, code=130), lambda text: None)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"steps": 3}, "different steps"),
        ({"seed": 1, "fresh": True}, "different seed and fresh"),
        ({"data": None}, "different data"),
    ],
)
def test_variants_of_one_folder_share_their_settings(other: dict[str, object], what: str, tmp_path: Path) -> None:
    train_variants(_plan(tmp_path / "w"), Recorded(), lambda text: None)
    with pytest.raises(BadInput, match=what):
        train_variants(Plan(work=tmp_path / "w", **{"data": tmp_path / "clips", **other}), Recorded(), print)  # type: ignore[arg-type]


def test_settings_without_a_training_are_replaced(tmp_path: Path) -> None:
    """``sa train`` refuses a mistyped --data before it writes; the next command may name another."""

    def refuses(arguments: Sequence[str]) -> int:
        return 3

    with pytest.raises(CommandFailed):
        train_variants(_plan(tmp_path / "w", seed=3), refuses, lambda text: None)
    assert len(train_variants(_plan(tmp_path / "w"), Recorded(), lambda text: None)) == len(VARIANTS)
    with pytest.raises(BadInput, match="different seed"):
        train_variants(_plan(tmp_path / "w", seed=3), Recorded(), lambda text: None)


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="no option --frob here"):
        main([str(tmp_path), "--frob", "3"])
    with pytest.raises(SystemExit):
        main([])
    assert "WORK" in capsys.readouterr().err


def test_without_clips_puppets_are_drawn_once(tmp_path: Path) -> None:
    work, command = tmp_path / "w", Recorded()
    train_variants(Plan(work=work, clips=2), command, lambda text: None)
    assert command.calls[0][:4] == ["puppets", str(work / "videos"), "--videos", "2"]
    assert command.calls[1] == ["tools.truth_clips", str(work / "videos"), str(work / "clips")]
    assert command.calls[2][:2] == ["train", str(work / "clips")]
    for n in range(2):
        (work / "clips" / f"{n:05d}").mkdir(parents=True)
        (work / "clips" / f"{n:05d}" / "clip.json").touch()
    again = Recorded()
    train_variants(Plan(work=work, clips=2), again, lambda text: None)
    assert again.calls == []


def test_a_fresh_face_encoder_is_fresh_for_all(tmp_path: Path) -> None:
    command = Recorded()
    train_variants(_plan(tmp_path / "w", fresh=True), command, lambda text: None)
    started = [call for call in command.calls if "--export" not in call]
    assert all(call[call.index("--from-scratch") + 1] == "face_encoder" for call in started)


def test_a_missing_recipe_or_missing_variants(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.toml: found no such file"):
        train_variants(_plan(tmp_path / "w", recipe=tmp_path / "none.toml"), Recorded(), print)
    with pytest.raises(BadInput, match="no such folder") as caught:
        write_tables(tmp_path, Recorded())
    assert "make ablations" in str(caught.value.hint)
    train_variants(_plan(tmp_path / "w"), Recorded(), lambda text: None)
    (tmp_path / "w" / "ablations.json").write_text("[")
    with pytest.raises(BadInput, match="it is not the settings of the variants"):
        train_variants(_plan(tmp_path / "w"), Recorded(), print)


def test_tables_share_animations(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    command = Recorded()
    for _ in range(2):
        written = write_tables(tmp_path, command, ["--seeds", "0,1,2"])
    assert written == [tmp_path / table / "scores.json" for table in TABLES]
    assert command.calls[1] == [
        "evaluate", "--ablation", "table3", "--variants", str(tmp_path / FOLDER), "-o", str(tmp_path / "table3"),
        "--seeds", "0,1,2",
    ]  # fmt: skip
    for table in TABLES:
        assert os.path.samefile(tmp_path / table / "animated", tmp_path / "animated")
        assert os.path.samefile(tmp_path / table / "data", tmp_path / "data")


def test_a_command_is_run_by_this_python_and_prints_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    assert python(["-c", "import sys; print('line'); sys.exit(3)"]) == 3
    out, err = capfd.readouterr()
    assert (out, err) == ("", "line\n")


def test_sigterm_ends_the_running_command(tmp_path: Path) -> None:
    """SIGTERM to the parent alone: its child is terminated, and gone when the parent exits."""
    inner = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = (
        "import signal, sys; from tools.bench import ablations as a; "
        f"signal.signal(signal.SIGTERM, a._terminated); sys.exit(a.exit_code_of(lambda: a.python(['-c', {inner!r}])))"
    )
    process = subprocess.Popen([sys.executable, "-c", outer], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        _, lines = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert lines == "interrupted: run the same command to resume\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
