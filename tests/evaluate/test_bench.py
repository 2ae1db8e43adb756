"""Benches and ablations with an animation that copies: what is animated when, which rows come out, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.config.evaluate import DATASETS, EvaluateConfig
from stableanimator_cli.errors import BadInput, BatchFailed, ConfigError, NoFace, OutOfMemory
from stableanimator_cli.evaluate.animate_cases import CaseAnimator
from stableanimator_cli.evaluate.cases import TIKTOK_IDS, Case, find_cases
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.motion_file import load_motion
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import ModelFolder
from tests.evaluate.samples import drawn, noisy, write


class Copying:
    """``sa animate`` for tests: gives the truth of the motion with some noise, and a record beside it."""

    def __init__(self, data: Path, amount: int = 6) -> None:
        self.data, self.amount = data, amount
        self.calls: list[Mapping[str, Any]] = []
        self.refuse: str | None = None

    def __call__(self, flags: Mapping[str, Any], settings: Path | None) -> None:
        self.calls.append(flags)
        output = Path(flags["output"])
        if self.refuse is not None and self.refuse in output.stem:
            raise NoFace(f"{flags['reference']}: no face", hint="another picture")
        source = self.data / "videos" / f"{Path(flags['motion']).stem}.mp4"
        frames = [frame for _, frame in open_clip(source).frames()]
        _, _, stop = str(flags.get("frames", "0:")).rpartition(":")
        frames = frames[: int(stop)] if stop else frames
        change = noisy(self.amount, int(flags.get("seed", 0)))
        write(output, [change(index, frame) for index, frame in enumerate(frames)])
        record = {
            "stableanimator-cli": "0", "config": {"decode": {"chunk": 4, "overlap": 0}},
            "windows": [f"window 1: 0-{len(frames) - 1}"], "output": {"frames": len(frames)},
            "peak_bytes": {"host": 1 << 30},
        }  # fmt: skip
        output.with_suffix(".json").write_text(json.dumps(record))


def _run(animate: Any, /, **flags: Any) -> Scores:
    scores = run(flags={"model": "puppet", **flags}, animate=animate)
    assert isinstance(scores, Scores)
    return scores


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory, remembered: Path) -> tuple[Scores, Copying]:
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SA_HOME", str(remembered))
        animate = Copying(out / "data" / "puppets")
        return _run(animate, bench="puppet", output=out, figures=2, length=9), animate


def test_figures_are_driven_by_themselves_and_by_one_another(benched: tuple[Scores, Copying]) -> None:
    scores, animate = benched
    names = [Path(flags["output"]).stem for flags in animate.calls]
    assert names == ["00000", "00000", "00000-as-00001", "00001", "00001-as-00000"]  # the first measures memory
    assert animate.calls[0]["frames"] == "0:16"
    assert [video.name for video in scores.videos] == ["00000", "00001", "00000-as-00001", "00001-as-00000"]
    assert [video.target is None for video in scores.videos] == [False, False, True, True]
    assert scores.rows["psnr"].videos == 2


def test_the_tables_hold_ours_under_the_published_rows(benched: tuple[Scores, Copying]) -> None:
    scores, _ = benched
    title, columns, rows = scores.tables[0]
    ours = dict(zip(columns, rows[-1], strict=True))
    assert ours["model"] == "puppet (measured on other data, 2 videos)"
    assert title == (
        "Table 1: TikTok / Unseen100 as published; measured rows on other data: 2 videos of bench puppet (00000, 00001)"
    )
    assert scores.title.startswith("2 videos,")
    latex = (scores.output / "scores.tex").read_text()
    assert latex.count("on other data") >= 2
    assert ours["memory, 16 frames"] == "–"  # the figures' videos have 9
    assert ours["LPIPS"].endswith(" lpips_puppet")
    assert ours["FVD"].endswith(" fvd_puppet")
    crossed = scores.tables[1]
    assert {row[0] for row in crossed[2]} >= {"csim_ref", "keypoint_error", "face_rate"}
    assert any("24.17" in row[0] for row in scores.tables[2][2])
    told = json.loads((scores.output / "scores.json").read_text())
    assert told["peak_bytes_16_frames"] == {}
    assert "csim_ref" in told["cross_identity"]


def test_what_is_animated_is_not_animated_again(benched: tuple[Scores, Copying]) -> None:
    scores, first = benched
    again = Copying(first.data)
    repeated = _run(again, bench="puppet", output=scores.output, figures=2, length=9)
    assert again.calls == []
    assert repeated.rows["psnr"].shown == scores.rows["psnr"].shown
    (scores.output / "animated" / "00001.mp4").unlink()
    _run(again, bench="puppet", output=scores.output, figures=2, length=9)
    assert [Path(flags["output"]).stem for flags in again.calls] == ["00001"]
    settings = scores.output.parent / "settings.toml"
    settings.write_text("[sampling]\nsteps = 2\n")
    _run(again, bench="puppet", output=scores.output, figures=2, length=9, animate=settings)
    assert len(again.calls) == 6


def test_memory_is_that_of_sixteen_frames(benched: tuple[Scores, Copying], tmp_path: Path) -> None:
    data = benched[1].data
    write(tmp_path / "videos" / "00000.mp4", [np.zeros((64, 64, 3), np.uint8)] * 20)
    animate = Copying(tmp_path)
    case = Case(
        name="long", reference=data / "references" / "00000.png", motion=data / "truth" / "00000.npz", target=None,
        poses=None,
    )  # fmt: skip
    model = catalogue.open_model("puppet")
    animator = CaseAnimator(
        model=model, name="puppet", animate=animate, settings=None, flags={}, reporter=NullReporter()
    )
    assert animator.measure_memory(case, tmp_path / "memory") == {"host": 1 << 30}


def test_a_model_with_other_recommended_settings_animates_again(
    benched: tuple[Scores, Copying], tmp_path: Path
) -> None:
    data, animate = benched[1].data, Copying(benched[1].data)
    case = Case(
        name="one", reference=data / "references" / "00000.png", motion=data / "truth" / "00000.npz", target=None,
        poses=None,
    )  # fmt: skip
    model = catalogue.open_model("puppet")
    for defaults, calls in ((model.defaults, 1), (model.defaults, 1), ({**model.defaults, "steps": 3}, 2)):
        animator = CaseAnimator(
            model=replace(model, defaults=defaults), name="puppet", animate=animate, settings=None, flags={},
            reporter=NullReporter(),
        )  # fmt: skip
        animator.animate_cases([case], tmp_path)
        assert len(animate.calls) == calls


def test_a_case_that_fails_leaves_its_memory_to_the_next(tmp_path: Path) -> None:
    """The traceback of an error holds the tensors of the call that ran out of memory."""
    frames: list[weakref.ref[np.ndarray]] = []

    def animate(flags: Mapping[str, Any], settings: Path | None) -> None:
        held = np.zeros(8)
        alive.append(any(ref() is not None for ref in frames))
        frames.append(weakref.ref(held))
        try:
            raise MemoryError
        except MemoryError as error:
            raise OutOfMemory("too little memory") from error

    image = tmp_path / "a.png"
    write_image(image, drawn(0, frames=1)[0])
    case = Case(name="a", reference=image, motion=image, target=None, poses=None)
    about = {"defaults": {}, "configs": {}, "face_channel_order": "bgr", "backbone": "svd"}
    model, alive = SimpleNamespace(name="m", files={}, digests={}, **about), []
    animator = CaseAnimator(
        model=cast(ModelFolder, model), name="m", animate=animate, settings=None, flags={}, reporter=NullReporter()
    )
    with pytest.raises(BatchFailed, match="2 of 2 videos could not be animated; the first is a: too little memory"):
        animator.animate_cases([case, replace(case, name="b")], tmp_path / "out")
    assert alive == [False, False]


def test_rivals_are_rows_of_the_same_table(benched: tuple[Scores, Copying], tmp_path: Path) -> None:
    scores, first = benched
    for name in ("00000", "00001"):
        (tmp_path / "other").mkdir(exist_ok=True)
        shutil.copy(first.data / "videos" / f"{name}.mp4", tmp_path / "other" / f"{name}.mp4")
    rivalled = _run(Copying(first.data), bench="puppet", output=scores.output, figures=2, length=9, rivals=tmp_path)
    names = [row[0] for row in rivalled.tables[0][2][-2:]]
    assert names == [f"{name} (measured on other data, 2 videos)" for name in ("puppet", "other")]
    place = rivalled.tables[0][1].index("PSNR*")
    assert rivalled.tables[0][2][-1][place] == "100"  # two videos have no interval
    told = json.loads((scores.output / "scores.json").read_text())
    assert [video["name"] for video in told["rival_videos"]["other"]] == ["00000", "00001"]
    lines = list(csv.DictReader((scores.output / "scores.csv").read_text().splitlines()))
    of_rival = [line for line in lines if line["system"] == "other" and line["metric"] == "psnr_disco"]
    assert [(line["video"], line["value"]) for line in of_rival] == [(name, "100.0") for name in ("", "00000", "00001")]
    assert set(told["paired_differences"]) == {"other"}
    assert told["paired_differences"]["other"]["ssim"]["losses"] == 2
    assert (scores.output / "videos" / "other" / "00001.mp4").is_file()
    crossed = [line for line in lines if line["data"] == "cross-identity" and line["metric"] == "csim_ref"]
    assert [line["video"] for line in crossed] == ["00000-as-00001", "00001-as-00000", ""]
    table = [line for line in lines if line["data"].startswith("Table 1")]
    assert {line["system"] for line in table} >= {"puppet", "other", "MRAA", "StableAnimator"}
    published = {(one["system"], one["data"], one["metric"]): one["value"] for one in table}
    assert float(published["StableAnimator", "Table 1, TikTok, published", "L1"]) == pytest.approx(2.87e-4)
    assert all(line["tool"].startswith("stableanimator-cli ") for line in lines)
    (tmp_path / "other" / "00001.mp4").unlink()
    with pytest.raises(BadInput, match=r"other: found no video named 00001"):
        _run(Copying(first.data), bench="puppet", output=scores.output, figures=2, length=9, rivals=tmp_path)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("00001-as", "1 of 4 videos could not be animated; the first is 00001-as-00000"),
        ("00000", "3 of 4 videos could not be animated; the first is 00000:"),  # whose memory is measured first
    ],
)
def test_one_that_cannot_be_animated_does_not_stop_the_others(tmp_path: Path, refused: str, message: str) -> None:
    animate = Copying(tmp_path / "data" / "puppets")
    animate.refuse = refused
    with pytest.raises(BatchFailed, match=message) as caught:
        _run(animate, bench="puppet", output=tmp_path, figures=2, length=2)
    assert caught.value.exit_code == 7
    assert (tmp_path / "animated" / "00001.mp4").is_file()


def _cases(bench: str, tmp_path: Path, **more: Any) -> Any:
    config = EvaluateConfig(bench=bench, output=tmp_path / "out", **more)
    return find_cases(config, catalogue.open_model("puppet"), tmp_path / "out" / "data", NullReporter())


@pytest.mark.parametrize("bench", DATASETS)
def test_published_benches_explain_their_layout(bench: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SA_DATA", raising=False)
    with pytest.raises(BadInput) as caught:
        _cases(bench, tmp_path)
    assert caught.value.exit_code == 3
    lines = str(caught.value.hint).split("\n")
    assert [line.split(" ")[0] for line in lines[1:4]] == [
        f"DIR/{bench}/{name}" for name in ("videos/NAME.mp4", "references/NAME.png,", "poses/NAME.npz")
    ]
    assert "--data DIR" in lines[0]
    assert "--bench puppet" in lines[4]
    with pytest.raises(BadInput, match=f"no {bench}/videos"):
        _cases(bench, tmp_path, data=tmp_path)


def test_a_bench_of_the_described_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "tiktok"
    for name in TIKTOK_IDS:
        write(folder / "videos" / f"{name}.mp4", drawn(0, frames=2))
    (folder / "references").mkdir()
    write_image(folder / "references" / "00335.png", np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setenv("SA_DATA", str(tmp_path / "data"))
    cases = _cases("tiktok", tmp_path)
    assert [case.name for case in cases] == list(TIKTOK_IDS)
    assert cases[0].reference == folder / "references" / "00335.png"
    assert cases[1].reference.is_file()  # frame 0, cut out
    assert cases[1].motion == cases[1].target == folder / "videos" / "00336.mp4"
    assert [case.name for case in _cases("tiktok", tmp_path, ids=("00338",))] == ["00338"]
    assert len(_cases(str(folder), tmp_path)) == 6
    with pytest.raises(BadInput, match="no video named 00001"):
        _cases("tiktok", tmp_path, ids=("00001",))


def test_a_motion_may_be_any_video_and_what_is_not_used_is_reported(tmp_path: Path) -> None:
    folder, warnings = tmp_path / "bench", list[str]()
    for name in ("a", "b", "c"):
        write(folder / "videos" / f"{name}.mp4", drawn(0, frames=2))
    (folder / "references").mkdir()
    write_image(folder / "references" / "A.png", np.zeros((64, 64, 3), np.uint8))
    (folder / "poses" / "c").mkdir(parents=True)
    for name in ("a.MP4", "b.webm", "c.bvh", ".hidden"):
        (folder / "poses" / name).write_bytes(b"x")
    config = EvaluateConfig(bench=str(folder), output=tmp_path / "out", ids=("a", "b"))
    reporter = SimpleNamespace(warning=warnings.append)
    cases = find_cases(config, catalogue.open_model("puppet"), tmp_path / "out", cast(Reporter, reporter))
    assert [case.motion.name for case in cases] == ["a.MP4", "b.webm"]
    assert [case.poses for case in cases] == [None, None]
    assert [text.rpartition(": ")[2] for text in warnings] == ["A.png", "c, c.bvh"]


@pytest.mark.parametrize("bench", ["ubc-fashion", "ted"])
def test_datasets_with_splits_keep_their_test_folder(bench: str, tmp_path: Path) -> None:
    name = "-7FhMKCs0mk#000046#000128"  # as TED-talks names a video
    for part in ("train", "test"):
        write(tmp_path / bench / part / f"{name if part == 'test' else 'seen'}.mp4", drawn(0, frames=2))
    (case,) = _cases(bench, tmp_path, data=tmp_path)
    assert (case.name, case.target) == (name, tmp_path / bench / "test" / f"{name}.mp4")
    assert case.reference.is_file()
    with pytest.raises(BadInput, match="no tiktok/videos"):
        _cases("tiktok", tmp_path, data=tmp_path)


def test_puppets_are_held_out_and_their_motion_is_known(benched: tuple[Scores, Copying]) -> None:
    data = benched[1].data
    assert json.loads((data / "puppets.json").read_text())["split"] == "test"
    assert len(load_motion(data / "truth" / "00000.npz")) == 9


def test_ids_are_not_for_puppets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ids"):
        _cases("puppet", tmp_path, ids=("00000",))


def test_an_ablation_scores_each_variant_with_each_seed(tmp_path: Path) -> None:
    variants = tmp_path / "variants"
    for name in ("ours", "addition"):
        shutil.copytree(catalogue.builtin_dir() / "puppet", variants / name)
    animate = Copying(tmp_path / "out" / "data" / "puppets")
    scores = _run(
        animate, model=None, output=tmp_path / "out", ablation="table2", variants=variants, figures=2, length=3
    )
    asked = [(Path(flags["output"]).parent.parent.name, flags["seed"], flags.get("refine_face"))
             for flags in animate.calls]  # fmt: skip
    seeds = [seed for seed in (0, 1, 2) for _ in range(2)]
    assert asked == [
        *(("addition", seed, None) for seed in seeds),
        *(("no-optimization", seed, "off") for seed in seeds),
        *(("ours", seed, None) for seed in seeds),
    ]
    _, columns, rows = scores.tables[0]
    measured = {row[0]: row for row in rows if not row[0].endswith("†")}
    assert list(measured) == [
        "w/o Face Masks: no folder no-face-masks/", "w/o Face Encoder: no folder no-face-encoder/",
        *(f"{name} (measured on other data, 2 videos)" for name in ("w/o Alignment", "w/o Optimization", "Ours")),
    ]  # fmt: skip
    assert "[" not in measured["Ours (measured on other data, 2 videos)"][columns.index("SSIM")]  # two videos
    assert "measured rows on other data: 2 videos" in scores.tables[0][0]
    assert [title.split(",")[0] for title, _, _ in scores.tables[1:-1]] == [
        "ours minus addition", "ours minus no-optimization"
    ]  # fmt: skip
    one = scores.about["paired_differences"]["addition"]["psnr"]
    assert (one["videos"], one["mean"], one["ties"]) == (2, 0, 2)  # the same videos: the noise is the seed's
    assert any("sampling seeds 0, 1, 2" in row[0] for row in scores.tables[-1][2])


def test_a_pasted_face_shares_the_videos_of_no_face(tmp_path: Path) -> None:
    variants = tmp_path / "variants"
    shutil.copytree(catalogue.builtin_dir() / "puppet", variants / "no-face")
    animate = Copying(tmp_path / "out" / "data" / "puppets", amount=40)
    flags = {"model": None, "output": tmp_path / "out", "ablation": "table3", "variants": variants}
    scores = _run(animate, **flags, figures=2, length=3)
    assert {Path(call["output"]).parent.parent.name for call in animate.calls} == {"no-face"}
    assert {call["refine_face"] for call in animate.calls} == {"off"}
    assert len(animate.calls) == 6
    measured = [row[0] for row in scores.tables[0][2] if not row[0].endswith("†")]
    data = "(measured on other data, 2 videos)"
    assert measured == [
        f"w/o Face {data}", "IP-Adapter-style: no folder ip-adapter/", f"Face paste {data}", "Ours: no folder ours/",
    ]  # fmt: skip
    told = json.loads((scores.output / "scores.json").read_text())["variants"]
    assert told["face-paste"][0]["psnr"]["value"] != told["no-face"][0]["psnr"]["value"]
    beside = tmp_path / "out" / "animated" / "face-paste" / "seed-2" / "00001.json"
    assert 0 < json.loads(beside.read_text())["face_paste"]["pasted"] <= 3
    notes = " ".join(row[0] for row in scores.tables[-1][2])
    assert "Face paste is in the row of FaceFusion" in notes
    assert "without face optimisation: w/o Face, Face paste" in notes


def test_an_ablation_needs_its_folders_and_three_seeds(tmp_path: Path) -> None:
    flags = {"ablation": "table4", "output": tmp_path / "out", "model": None}
    (tmp_path / "variants").mkdir()
    with pytest.raises(ConfigError, match="--variants DIR"):
        _run(None, **flags)
    with pytest.raises(BadInput, match="addition, norm, ours"):
        _run(None, **flags, variants=tmp_path / "variants")
    with pytest.raises(ConfigError, match="three different seeds"):
        _run(None, **flags, variants=tmp_path / "variants", seeds="0,1,1")
