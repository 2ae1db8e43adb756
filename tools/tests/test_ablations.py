"""The ablations without training: statistics, tables, and which commands are run, skipped, resumed and refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stableanimator_cli import catalogue
from stableanimator_cli.engine.weights import build_on_meta, builders
from stableanimator_cli.errors import BadInput, Interrupted
from stableanimator_cli.evaluate.tables import ABLATIONS, MADE_OF
from stableanimator_cli.train.resume import new_config
from tools.ablations import __main__ as ablations
from tools.ablations import training
from tools.ablations.page import TABLES, UPPER, differences, format_difference, text_of, to_json
from tools.ablations.scores import People, Scorer
from tools.ablations.statistics import Estimate, estimate
from tools.ablations.training import EXPERIMENTS, MAGIC, STAGES, TRAININGS, TREATED, VARIANTS, Trainer
from tools.processes import CommandFailed, python

PORTRAITS, BODIES = EXPERIMENTS["portraits"], EXPERIMENTS["bodies"]


class Recorded:
    """Commands that only create the files of a run and of a model folder.

    ``fails`` is the index of the command that exits with ``code``.
    """

    def __init__(self, fails: int | None = None, code: int = 3) -> None:
        self.calls: list[list[str]] = []
        self.fails, self.code = fails, code

    def __call__(self, arguments: Sequence[str]) -> int:
        words = list(arguments)[2:]
        self.calls.append(words)
        if "-o" in words:
            out = Path(words[words.index("-o") + 1])
            out.mkdir(parents=True)
            exported = "--export" in words
            (out / ("model.toml" if exported else "config.toml")).write_text("")
            if exported:
                save_file({"a.processor.id_to_k.weight": torch.zeros(1), "b": torch.ones(1)}, out / "unet.safetensors")
        return self.code if len(self.calls) - 1 == self.fails else 0

    def trainings(self) -> list[list[str]]:
        return [call for call in self.calls if "--export" not in call]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setattr(training.clips, "write_all", lambda out, *args, **more: [out / "clips-000"])
    return Trainer(work=tmp_path, command=Recorded(), steps=3)


def _value(words: Sequence[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_every_row_is_a_training_or_a_setting_of_one() -> None:
    expected = {name for table in TABLES for name in ABLATIONS[table]}
    assert {*VARIANTS, *MAGIC, *TREATED} - {"magic"} == expected - set(MADE_OF)
    assert {*MAGIC, *TREATED} == set(EXPERIMENTS["magic"].variants)
    assert {training for training, _ in TREATED.values()} == set(MAGIC)
    assert set(BODIES.variants) < set(PORTRAITS.variants) == set(VARIANTS)


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("stage", STAGES)
def test_sa_train_accepts_the_recipes_with_every_variants_flags(name: str, stage: str, tmp_path: Path) -> None:
    flags = {key.removeprefix("--").replace("-", "_"): value for key, value in TRAININGS[name].items()}
    given = {"dataset": [tmp_path], "output": tmp_path / "run", "model": "puppet", "steps": 2, **flags}
    recipe = Path(ablations.__file__).with_name(f"{stage}.toml")
    config = new_config(given, recipe)
    actual = {
        "face_mask": config.loss.face_mask,
        "face_encoder": config.ablation.face_encoder,
        "id_adapter": config.ablation.id_adapter,
        "face": config.ablation.face,
    }
    assert actual == {"face_mask": "released", "face_encoder": "on", "id_adapter": "distribution", "face": "on"} | flags
    assert config.loss.reference_degrade == 1
    assert config.optimizer.kind == "adamw"
    shared = {key: value for key, value in given.items() if key not in flags}
    base = new_config({**shared, "face": "off"}, recipe.with_name(f"base-{stage}.toml"))
    assert base.loss.reference_degrade == 0
    for resolved in (config, base):
        only = resolved.resolve_stages((96, 96)).stage
        assert only is not None
        assert [(item.name, item.image_only) for item in only] == [(stage, stage == "pictures")]


def test_the_base_has_no_id_path_and_variants_start_from_it(trainer: Trainer, tmp_path: Path) -> None:
    command = trainer.command
    assert isinstance(command, Recorded)
    model = trainer.variant(PORTRAITS, "addition", 1, "clips")
    pictures, hidden, clips, first, second = command.trainings()
    folder = tmp_path / "portraits"
    assert _value(pictures, "--from-scratch") == "unet,pose_net,face_encoder"
    for words in (pictures, hidden, clips):
        assert (_value(words, "--face"), _value(words, "--seed")) == ("off", "0")
    for words, before in ((hidden, "pictures"), (clips, "hidden")):
        assert "--from-scratch" not in words
        assert _value(words, "--model") == str(folder / "runs" / f"base-{before}-model")
    assert (_value(clips, "--reference-degrade"), _value(first, "--lr")) == ("0.5", "6e-4")
    assert set(load_file(folder / "base" / "unet.safetensors")) == {"b"}
    assert (_value(first, "--model"), _value(first, "--from-scratch")) == (str(folder / "base"), "face_encoder")
    assert _value(second, "--model") == str(folder / "runs" / "addition-1" / "pictures-model")
    for words in (first, second):
        assert (_value(words, "--id-adapter"), _value(words, "--seed")) == ("addition", "1")
        assert (_value(words, "--sizes"), _value(words, "--steps")) == ("96x96", "3")
    assert model == folder / "runs" / "addition-1" / "clips-model"
    count = len(command.calls)
    assert trainer.variant(PORTRAITS, "addition", 1, "clips") == model
    assert len(command.calls) == count


def test_a_trained_base_is_used_without_training(tmp_path: Path) -> None:
    """Its weights load strictly as the backbone's, without ID adapters; shortened trainings train their own."""
    commands = Recorded()
    base = Trainer(work=tmp_path, command=commands).base(EXPERIMENTS["magic"])
    assert not commands.calls
    model = catalogue.open_model(str(base))
    unet = build_on_meta(builders(model, "distribution")["unet"]).state_dict()
    stored = load_file(base / "unet.safetensors")
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in unet.items() if training.ADAPTER not in name
    }
    assert model.backbone == "magic"
    for name in ("unet", "pose_net"):
        assert model.files[name].read_bytes() == (training.BASES / "magic" / f"{name}.safetensors").read_bytes()
    assert Trainer(work=tmp_path, command=commands).base(EXPERIMENTS["magic"]) == base


def test_bodies_continue_the_base_of_portraits(trainer: Trainer, tmp_path: Path) -> None:
    trainer.base(BODIES)
    assert isinstance(trainer.command, Recorded)
    continued = trainer.command.trainings()[3]
    assert _value(continued, "--model") == str(tmp_path / "portraits" / "base")
    assert _value(continued, "--sizes") == "256x128"


def test_an_interrupted_training_is_resumed(trainer: Trainer, tmp_path: Path) -> None:
    failing = Trainer(work=tmp_path, command=Recorded(fails=6), steps=3)  # the first training of a variant
    with pytest.raises(CommandFailed, match=r"training portraits/runs/ours-0/pictures: exit code 3") as caught:
        failing.variant(PORTRAITS, "ours", 0, "pictures")
    assert caught.value.exit_code == 3
    trainer.variant(PORTRAITS, "ours", 0, "pictures")
    assert isinstance(trainer.command, Recorded)
    run = str(tmp_path / "portraits" / "runs" / "ours-0" / "pictures")
    assert trainer.command.calls[0] == ["train", "--resume", run]
    with pytest.raises(Interrupted, match="training portraits"):
        Trainer(work=tmp_path, command=Recorded(fails=0, code=130)).variant(PORTRAITS, "ours", 1, "pictures")


def _scored(plan: ablations.Plan, monkeypatch: pytest.MonkeyPatch, kill_after: int | None = None) -> list[str]:
    """Measure with scores that are made up; returns the cells that were trained, and stops as a kill would."""
    trained: list[str] = []

    def variant(self: Trainer, experiment: Any, name: str, seed: int, stage: str) -> Path:
        trained.append(f"{experiment.name} {name} {seed} {stage}")
        run = self.cell(experiment, name, seed) / stage
        run.mkdir(parents=True, exist_ok=True)
        return run

    class FakeScorer:
        left = kill_after

        def __init__(self, *model: object, **settings: object) -> None: ...

        def __enter__(self) -> FakeScorer:
            return self

        def __exit__(self, *error: object) -> None: ...

        def score(self, person: int) -> tuple[dict[str, float], list[np.ndarray]]:
            if FakeScorer.left is not None:
                if not FakeScorer.left:
                    raise KeyboardInterrupt
                FakeScorer.left -= 1
            return {"judge": 0.5 + person / 10, "inside": -1.0}, [np.zeros((8, 8, 3), np.uint8)] * 2

        def reconstruct(self, person: int) -> dict[str, float]:
            return {"judge": 0.9}

    monkeypatch.setattr(Trainer, "variant", variant)
    monkeypatch.setattr(Trainer, "base", lambda self, experiment: Path("base"))
    monkeypatch.setattr(ablations, "People", lambda *settings: None)
    monkeypatch.setattr(ablations, "Scorer", FakeScorer)
    try:
        ablations.measure(plan, Recorded())
    except KeyboardInterrupt:
        trained.append("killed")
    return trained


def test_a_killed_measurement_continues_without_scoring_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ablations.Plan(work=tmp_path / "w", experiments=("portraits",), variants=("ours", "norm"), seeds=2, scored=3)
    assert _scored(plan, monkeypatch, kill_after=7) == [
        "portraits ours 0 pictures", "portraits ours 0 clips", "portraits norm 0 pictures", "killed",
    ]  # fmt: skip
    assert not (plan.work / "portraits" / "runs" / "ours-0").exists()
    again = _scored(plan, monkeypatch)
    assert again[:2] == ["portraits norm 0 pictures", "portraits norm 0 clips"]
    assert len(again) == 6
    rows = ablations.read_rows(plan.work / "scores.jsonl", plan.settings())
    keys = [(row["variant"], row["seed"], row["stage"], row["person"]) for row in rows]
    assert len(keys) == len(set(keys)) == 3 + 2 * 2 * 2 * 3
    assert (plan.work / "portraits" / "sheets" / "norm-1-clips.png").is_file()
    assert _scored(plan, monkeypatch) == []


def test_other_settings_need_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(**more: Any) -> ablations.Plan:
        return ablations.Plan(work=tmp_path, experiments=("portraits",), variants=("ours",), scored=2, **more)

    _scored(plan(seeds=1), monkeypatch)
    assert len(_scored(plan(seeds=2), monkeypatch)) == 2
    with pytest.raises(BadInput, match="different steps"):
        ablations.measure(plan(seeds=1, steps=7), Recorded())


def test_the_stored_rows_are_of_the_present_settings(tmp_path: Path) -> None:
    stored = Path(ablations.__file__).with_name("rows") / "scores.jsonl"
    (tmp_path / "scores.jsonl").write_bytes(stored.read_bytes())
    rows = ablations.read_rows(tmp_path / "scores.jsonl", ablations.Plan(work=tmp_path).settings())
    assert {row["experiment"] for row in rows} == set(ablations.EXPERIMENTS)


def test_tables_without_rows_are_refused_and_leave_the_page(tmp_path: Path) -> None:
    page, work = tmp_path / "page.md", tmp_path / "work"
    text = "<!-- bench ablations: generated -->\nhours of work\n<!-- bench ablations: end -->\n"
    page.write_text(text)
    with pytest.raises(BadInput, match=r"scores\.jsonl: it has no rows"):
        ablations.main([str(work), "--tables", "--page", str(page)])
    assert page.read_text() == text
    assert not work.exists()


def _rows(effects: dict[str, float], seeds: int = 5, people: int = 20) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    by_person, rows = rng.normal(0.6, 0.2, people), []
    for seed in range(seeds):
        for variant, effect in effects.items():
            shift = rng.normal(0, 0.005)
            for person in range(people):
                for stage in STAGES:
                    key = {"experiment": "portraits", "variant": variant, "seed": seed, "stage": stage}
                    value = float(by_person[person] + shift + effect * (stage == "clips") + rng.normal(0, 0.02))
                    rows.append({**key, "person": person, "recogniser": value, "judge": value, "face_psnr": value})
    return rows


def test_differences_are_paired_and_name_what_they_do_not_see() -> None:
    rows = _rows({"ours": 0.0, "norm": 0.0, "addition": -0.1})
    found = differences(rows, PORTRAITS)
    harmed = found["clips"]["addition"]["judge"]
    assert harmed.has_effect
    assert harmed.value == pytest.approx(-0.1, abs=0.02)
    assert not found["pictures"]["addition"]["judge"].has_effect
    assert found["change"]["addition"]["judge"].has_effect
    assert not found["clips"]["norm"]["judge"].has_effect
    assert found["clips"]["norm"]["judge"].high - found["clips"]["norm"]["judge"].low < 0.1  # people differ by .2
    text = text_of(rows)
    tables = {title: text[text.index(f"| {title} |") :] for title in ("Table 2", "Table 3", "Table 4")}
    norm, addition = (
        next(line for line in tables["Table 4"].splitlines() if line.startswith(f"| {name} |"))
        for name in ("Norm", "Addition")
    )
    assert norm.count("no effect seen") == 3
    assert "no effect seen" not in addition
    assert "0.716 (-0.089)" in addition
    assert "not trained here" in tables["Table 2"]
    assert to_json(rows)["portraits"]["clips"]["addition"]["judge"]["seeds"] == 5


def test_the_upper_bound_is_no_variant() -> None:
    upper = {"experiment": "portraits", "variant": UPPER, "seed": 0, "stage": "pictures", "person": 0, "judge": 0.9}
    rows = [*_rows({"ours": 0.0, "norm": 0.0}), upper]
    assert "The VAE alone reaches judge 0.900." in text_of(rows)
    assert set(differences(rows, PORTRAITS)["clips"]) == {"norm"}


def test_an_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        seeds, people = rng.normal(size=(5, 1)), rng.normal(size=(1, 12))
        found = estimate(seeds + people + rng.normal(size=(5, 12)), draws=200)
        hits.append(found.low <= 0 <= found.high)
    assert 0.9 <= np.mean(hits) <= 1


def test_one_seed_has_no_interval_and_gaps_count_as_missing() -> None:
    one = estimate(np.array([[1.0, 2.0, np.nan]]))
    assert (one.value, one.seeds, one.people) == (1.5, 1, 2)
    assert np.isnan(one.low)
    assert format_difference(one) == "+1.500 (one seed: no interval)"
    assert np.isnan(estimate(np.full((2, 3), np.nan)).value)
    assert format_difference(Estimate(value=0.1, low=-0.1, high=0.3, seeds=5, people=9)).endswith("*no effect seen*")
    values = np.random.default_rng(1).normal(1, 0.1, (4, 6))
    values[2, 3] = np.nan
    found = estimate(values)
    assert found.value == pytest.approx(np.nanmean(values))
    assert found.low < found.value < found.high


def test_scores_of_a_model_follow_its_weights() -> None:
    """The shipped model at its smallest: the VAE's own frames beat those of a model that has never seen the size."""
    people = People(PORTRAITS, 2)
    with Scorer(Path("models/puppet"), PORTRAITS, people) as scorer:
        row, sheet = scorer.score(0)
        upper = scorer.reconstruct(0)
    assert upper["face_psnr"] > row["face_psnr"]
    assert upper["judge"] > row["judge"]
    assert set(row) == {
        "recogniser", "judge", "face_psnr", "sharpness", "background_psnr", "follows", "inside", "outside",
    }  # fmt: skip
    assert [image.shape for image in sheet] == [(96, 96, 3)] * 4
    assert np.isfinite(list(row.values())).all()
    with Scorer(Path("models/puppet"), PORTRAITS, people, with_face=False) as scorer:
        blind, images = scorer.score(0)
    assert blind["follows"] == 0
    assert blind["inside"] != row["inside"]
    assert len(images) == 3


def test_a_command_is_run_by_this_python_and_prints_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    assert python(["-c", "import sys; print('line'); sys.exit(3)"]) == 3
    out, err = capfd.readouterr()
    assert (out, err) == ("", "line\n")


def test_sigterm_ends_the_running_command(tmp_path: Path) -> None:
    """SIGTERM to the parent alone: its child is terminated, and gone when the parent exits."""
    inner = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = (
        "import signal, sys; from tools import processes as a; from tools.command import exit_code_of; "
        f"signal.signal(signal.SIGTERM, a.on_sigterm); sys.exit(exit_code_of(lambda: a.python(['-c', {inner!r}])))"
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
