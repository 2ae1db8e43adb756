"""`sa bench frontier`: rows are stored, losses are paired, and the cheapest setting without a loss wins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.bench import frontier, frontier_plot, run
from stableanimator_cli.bench.frontier import BASELINE, OWN, Frontier, Setting, survivors, table_of
from stableanimator_cli.bench.frontier_cases import FIGURES, open_cases
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.bench import BenchConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import BadInput, ConfigError

PLAN = DevicePlan.of(DeviceConfig(device="cpu"))
GOOD = {"face": 20.0, "sharpness": 0.9, "identity": 0.8, "keypoints": 0.05, "frame": 21.0, "gradients": 0.1}


class Drawn:
    """An animator whose "frames" are the options that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def frames(self, reference: Path, motion: Path, **options: Any) -> list[Any]:
        self.asked.append(options)
        return [options]


def case(number: int, loss: float = 0.0) -> Any:
    """A case in which settings of fewer than six steps lose ``loss`` dB in the face."""

    def score(frames: list[Any]) -> dict[str, float]:
        return {**GOOD, "face": GOOD["face"] + number - loss * (frames[0].get("steps", 25) < 6)}

    return SimpleNamespace(
        case=SimpleNamespace(reference="r", motion="m"), key=f"case{number}", size=(64, 64), score=score
    )


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[Frontier, Drawn]:
    animator = Drawn()
    model: Any = catalogue.open_model("puppet")
    return Frontier(animator, model, tmp_path, lambda: None, PLAN), animator  # type: ignore[arg-type]


def test_calls_are_counted_without_rendering(drawn: tuple[Frontier, Drawn]) -> None:
    cost = drawn[0].cost
    assert cost(BASELINE).calls == 50  # 25 steps, two branches each
    guided_twice = Setting.of(steps=10, schedule="karras", guidance_interval="0.3:5")
    assert (cost(guided_twice).calls, cost(guided_twice).full_calls) == (12, 12)
    cached = cost(guided_twice.varied(cache_features=2))
    assert cached.calls == 12
    assert cached.shallow >= 4
    assert 12 - cached.shallow < cached.full_calls < 12


def test_a_model_folder_is_opened_by_its_path(drawn: tuple[Frontier, Drawn]) -> None:
    frontier, _ = drawn
    frontier._model = replace(frontier._model, name="no entry of the catalogue")
    assert frontier.cost(BASELINE).calls == 50


def test_the_cheapest_setting_without_a_loss_comes_first(drawn: tuple[Frontier, Drawn]) -> None:
    settings = [Setting.of(steps=steps, guidance_interval="off") for steps in (10, 8, 6, 4)]
    best = survivors(drawn[0], settings, [case(n, loss=1.0) for n in range(3)])
    assert [dict(setting.flags)["steps"] for setting in best] == [6, 8, 10]


@pytest.mark.parametrize(("figure", "unseen"), [("face", True), ("identity", False)])
def test_a_figure_that_is_not_there_is_no_excuse(drawn: tuple[Frontier, Drawn], figure: str, unseen: bool) -> None:
    """No face in the truth leaves the other losses; none in what four steps made is a loss."""

    def score(frames: list[Any]) -> dict[str, float]:
        few = frames[0].get("steps", 25) < 6
        return {**GOOD, **({figure: np.nan} if unseen or few else {}), "frame": 21.0 - 5 * (unseen and few)}

    settings = [Setting.of(steps=steps, guidance_interval="off") for steps in (4, 6)]
    shown = case(0)
    shown.score = score
    assert [dict(setting.flags)["steps"] for setting in survivors(drawn[0], settings, [shown])] == [6, 4]


def test_losses_are_paired_and_seen_by_their_interval(drawn: tuple[Frontier, Drawn]) -> None:
    cases = [case(n, loss=0.5) for n in range(6)]  # the cases differ by 5 dB, the settings by half of one
    table = table_of(drawn[0], [BASELINE, Setting.of(steps=6), Setting.of(steps=4)], cases, "Measured")
    baseline, six, four = table.rows
    assert [row["loss seen"] for row in table.rows] == [None, False, True]
    face = f"{FIGURES['face']}: loss"
    assert (six[face].value, four[face].value) == (0, 0.5)
    assert (four[face].low, four[face].high) == (0.5, 0.5)
    assert baseline["times fewer FLOPs"] == 1
    assert "| yes |" in table.markdown()


def test_a_face_that_is_lost_in_one_video_is_a_loss_that_is_seen(drawn: tuple[Frontier, Drawn]) -> None:
    """Of the other videos the mean may well be better."""
    cases = [case(n) for n in range(6)]
    whole = cases[0].score
    cases[0].score = lambda frames: whole(frames) | ({"identity": np.nan} if frames[0].get("steps", 25) < 6 else {})
    six, four = table_of(drawn[0], [Setting.of(steps=6), Setting.of(steps=4)], cases, "Measured").rows
    assert (six["loss seen"], four["loss seen"]) == (False, True)
    assert four[f"{FIGURES['identity']}: loss"].value == 0


def test_few_videos_have_no_interval(drawn: tuple[Frontier, Drawn]) -> None:
    (row,) = table_of(drawn[0], [Setting.of(steps=4)], [case(0, loss=9.0)], "Search").rows
    assert row["loss seen"] is None
    assert np.isnan(row[f"{FIGURES['face']}: loss"].low)


def test_a_stored_row_is_not_rendered_again(drawn: tuple[Frontier, Drawn], tmp_path: Path) -> None:
    first, animator = drawn
    rows = first.rows(OWN, [case(0), case(1)])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"setting": "the mo')  # killed while it wrote
    again = Frontier(animator, catalogue.open_model("puppet"), tmp_path, lambda: None, PLAN)  # type: ignore[arg-type]
    assert again.rows(OWN, [case(0), case(1)]) == rows
    assert len(animator.asked) == 2
    assert animator.asked[0] == {"preset": "fast", "size": "64x64"}


def test_rows_of_before_a_figure_still_count(drawn: tuple[Frontier, Drawn], tmp_path: Path) -> None:
    """Without a loss in what they did not measure, beside rows that do."""
    cases = [case(n, loss=0.5) for n in range(6)]
    drawn[0].rows(BASELINE, cases)
    six, four = Setting.of(steps=6), Setting.of(steps=4)
    drawn[0].rows(six, cases)
    file = tmp_path / "rows.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    old = [{name: value for name, value in line.items() if name != "gradients"} for line in lines[:8]]
    file.write_text("\n".join(map(json.dumps, [*old, *lines[8:]])) + "\n")
    again = Frontier(drawn[1], catalogue.open_model("puppet"), tmp_path, lambda: None, PLAN)  # type: ignore[arg-type]
    assert np.isnan(again.losses(six, BASELINE, cases)["gradients"]).all()
    assert len(drawn[1].asked) == 12, "nothing is rendered again"
    rows = table_of(again, [BASELINE, six, four], cases, "Measured").rows
    assert [row["loss seen"] for row in rows] == [None, False, True]
    assert rows[1][f"{FIGURES['gradients']}: loss"] is None


def test_rows_of_other_weights_are_refused(drawn: tuple[Frontier, Drawn], tmp_path: Path) -> None:
    drawn[0].rows(OWN, [case(0)])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    header = json.loads(lines[0])
    header["weights"]["unet"], header["dtype"] = "0" * 12, "torch.float16"
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    with pytest.raises(BadInput, match=r"rows of other settings \(weights, dtype\)"):
        Frontier(drawn[1], catalogue.open_model("puppet"), tmp_path, lambda: None, PLAN)  # type: ignore[arg-type]


def test_rows_of_another_card_are_refused(drawn: tuple[Frontier, Drawn], tmp_path: Path) -> None:
    """Settings are measured beside the card's own, which a model folder's owner may edit."""
    drawn[0].rows(OWN, [case(0)])
    model = catalogue.open_model("puppet")
    edited = replace(model, defaults={**model.defaults, "guidance": 3.0})
    with pytest.raises(BadInput, match=r"rows of other settings \(card\)"):
        Frontier(drawn[1], edited, tmp_path, lambda: None, PLAN)  # type: ignore[arg-type]


def test_the_truth_itself_scores_perfectly(tmp_path: Path) -> None:
    model = catalogue.open_model("puppet")
    (one,) = open_cases(model, bench="puppet", data=None, count=1, work=tmp_path, size=(256, 256), device="cpu")
    assert "256x256" in one.key
    truth = list(one.target)
    assert any(face is not None for face in one.faces)
    perfect, grey = one.score(truth), one.score([np.full_like(frame, 128) for frame in truth])
    assert (perfect["face"], perfect["sharpness"], perfect["gradients"]) == (np.inf, 1, 0)
    assert perfect["identity"] > 0.5
    assert perfect["keypoints"] < 0.05
    assert grey["face"] < 20
    assert grey["sharpness"] == 0
    assert grey["gradients"] > 0.1
    assert np.isnan(grey["identity"])
    with pytest.raises(BadInput, match="8 frames, expected 7"):
        one.score(truth[:-1])


def test_a_whole_search_on_drawn_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier, "STEPS", (1,))
    monkeypatch.setattr(frontier, "SAMPLERS", ("euler",))
    monkeypatch.setattr(frontier, "BASELINE", Setting.of(steps=2, guidance_interval="off"))
    monkeypatch.chdir(tmp_path)
    flags = {
        "name": ["frontier"],
        "search": 1,
        "clips": 1,
        "size": "64x64",
        "device": "cpu",
        "plot": Path("plot.png"),
    }
    measured, search = run.run(flags=flags, command="sa bench frontier").tables["frontier"]
    assert len(measured.rows) == 6
    assert len(search.rows) == 2 + 2 * 4
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    stored = (tmp_path / "frontier" / "rows.jsonl").read_bytes()
    again, _ = run.run(flags=flags, command="sa bench frontier").tables["frontier"]
    assert again == measured
    assert (tmp_path / "frontier" / "rows.jsonl").read_bytes() == stored


@pytest.mark.parametrize(
    ("flag", "value"),
    [("bench", "puppet"), ("search", 4), ("clips", 8), ("work", Path("frontier")), ("data", Path("d")),
     ("plot", Path("p.png")), ("margin", 0), ("refine_iters", 3), ("budget", 0.0), ("face", 64),
     ("baseline", Path("b.json")), ("variant", ["batched"]), ("size", "64x64"), ("frames", 4), ("steps", 4),
     ("pairs", 7), ("networks", "puppet")],
)  # fmt: skip
def test_options_of_another_bench_are_refused_by_name(flag: str, value: Any) -> None:
    """Their defaults too: a value that is given has no effect."""
    name = f"--{flag.replace('_', '-')}"
    with pytest.raises(ConfigError, match=rf"{name}: found .*, expected the bench .* among NAME") as told:
        resolve(BenchConfig, {"name": ["roofline"], flag: value})
    assert told.value.exit_code == 2


@pytest.mark.parametrize(("name", "found"), [("plot.txt", "plot.txt"), ("plot", "plot")])
def test_a_plot_of_another_kind_is_refused(name: str, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"--plot: found '?{found}'?.*\.pdf or \.png"):
        frontier_plot.check(Path(name))


def test_networks_without_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--networks: found 'full', expected a model with weights"):
        run.run(flags={"name": ["frontier"], "networks": "full", "device": "cpu"}, command="sa bench frontier")
    assert not list(tmp_path.iterdir())


def test_too_few_videos_are_refused(tmp_path: Path) -> None:
    for name in ("videos", "references"):
        (tmp_path / "bench" / name).mkdir(parents=True)
    with pytest.raises(BadInput):
        open_cases(
            catalogue.open_model("puppet"), bench=str(tmp_path / "bench"), data=None, count=2, work=tmp_path / "work",
            size=(64, 64), device="cpu",
        )  # fmt: skip
