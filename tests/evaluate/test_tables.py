"""Published numbers as printed, ours in their columns."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from stableanimator_cli.evaluate.ablation import _over_seeds
from stableanimator_cli.evaluate.latex import tex, to_latex
from stableanimator_cli.evaluate.scores import Row, number
from stableanimator_cli.evaluate.tables import (
    ABLATIONS,
    COLUMNS,
    TABLE1,
    TABLE6,
    TableRow,
    ablation,
    ablation_lines,
    table1,
)
from stableanimator_cli.metrics import perceptual, pixel  # noqa: F401  their import registers the metrics
from stableanimator_cli.metrics.result import ARROWS, METRICS


def _row(name: str, value: float, interval: tuple[float, float] | None = None) -> Row:
    return Row(
        spec=METRICS[name], shown=value, pooled=value, per_video_mean=value, interval=interval, videos=2, count=9
    )


def test_all_nine_systems_stand_marked_above_ours() -> None:
    ours = TableRow(
        name="puppet", rows={"l1_disco": _row("l1_disco", 3e-4)}, memory=(3 << 30, 16), videos=("00335", "00336")
    )
    title, columns, rows = table1("tiktok", [ours])
    assert columns == ["model", *COLUMNS, "memory, 16 frames"]
    assert len(rows) == 10
    assert all(row[0].endswith("†") for row in rows[:9])
    label = "puppet (measured on other data, 2 videos)"
    assert rows[-1] == [label, "3.00E-04", "–", "–", "–", "–", "–", "–", "3.00G"]
    assert title == (
        "Table 1: TikTok as published; measured rows on other data: 2 videos of bench tiktok (00335, 00336)"
    )


def test_each_published_bench_has_its_own_column() -> None:
    last = {bench: table1(bench, [])[2][8] for bench in ("tiktok", "unseen100", "puppet")}
    assert last["tiktok"][1:8] == ["2.87E-4", "30.81", "20.66", "0.801", "0.232", "0.831", "140.62"]
    assert last["unseen100"][1:8] == ["2.71E-4", "28.85", "18.85", "0.784", "0.223", "0.805", "349.94"]
    assert last["puppet"][6] == "0.831 / 0.805"
    assert table1("tiktok", [])[2][0][2] == "–"  # MRAA reports no PSNR


def test_the_tables_agree_with_one_another_where_the_paper_repeats_a_row() -> None:
    unseen = TABLE1["StableAnimator"][1]
    assert ABLATIONS["table2"]["ours"][1] == (*unseen[:2], *unseen[3:])
    assert ABLATIONS["table2"]["addition"][1] == ABLATIONS["table4"]["addition"][1]
    assert all(len(row) == 7 for system in TABLE1.values() for row in system[:2])
    assert len(TABLE6) == 7


def test_a_stand_in_metric_says_its_name() -> None:
    _, _, rows = table1("puppet", [TableRow(name="x", rows={"lpips_puppet": _row("lpips_puppet", 0.25)})])
    assert rows[-1][5] == "0.25 lpips_puppet"


def test_an_ablation_stands_line_by_line_beside_the_paper() -> None:
    rows = {"ssim": _row("ssim", 0.5)}
    _, columns, lines = ablation("table4", {"norm": (rows, {"ssim": (0.4, 0.6)})})
    place = columns.index("SSIM")
    assert [line[0] for line in lines] == [
        "Addition: no folder addition/", "Addition †", "Norm (measured on other data, 2 videos)", "Norm †",
        "Ours: no folder ours/", "Ours †",
    ]  # fmt: skip
    plain = ablation_lines("table4", {"norm": (rows, {"ssim": (0.4, 0.6)})})
    assert ["", "SSIM (ssim)", "0.5", "0.4", "0.6", "9", "norm", "Table 4, measured on other data, 2 videos"] in plain
    assert ["", "SSIM", "0.758", "", "", "", "norm", "Table 4, Unseen100, published"] in plain
    assert lines[2][place] == "0.5 [0.4, 0.6]"
    assert lines[3][place] == "0.758"


def test_the_interval_of_an_ablation_lies_round_the_mean_that_is_shown() -> None:
    """It was that of the videos' mean beside a mean over frames, and could exclude its own value."""
    videos: list[Any] = [
        SimpleNamespace(name=str(n), values={"ssim": 0.5 + 0.001 * n}, counts={"ssim": 10}) for n in range(8)
    ]
    videos.append(SimpleNamespace(name="long", values={"ssim": 0.9}, counts={"ssim": 10_000}))
    shown = sum(v.values["ssim"] * v.counts["ssim"] for v in videos) / sum(v.counts["ssim"] for v in videos)
    run: Any = SimpleNamespace(videos=videos, rows={"ssim": replace(_row("ssim", shown), videos=9)})
    for weighted in (True, False):
        rows, intervals = _over_seeds([run, run, run], weighted)
        low, high = intervals["ssim"]
        assert (low < rows["ssim"].shown < high) is weighted


def test_a_video_without_a_value_in_one_seed_is_in_the_interval_as_in_the_mean() -> None:
    def run(*first: float) -> Any:
        values = {"v0": first[0], **{f"v{n}": 0.9 for n in range(1, 6)}}
        videos = [
            SimpleNamespace(name=name, values={"ssim": value}, counts={"ssim": 0 if math.isnan(value) else 4})
            for name, value in values.items()
        ]
        known = [value for value in values.values() if not math.isnan(value)]
        return SimpleNamespace(videos=videos, rows={"ssim": _row("ssim", sum(known) / len(known))})

    for weighted in (True, False):
        rows, intervals = _over_seeds([run(0.1), run(0.1), run(math.nan)], weighted)
        low, high = intervals["ssim"]
        assert low < rows["ssim"].shown < high


def test_numbers_are_short_and_say_what_they_are() -> None:
    assert [number(value) for value in (0.0, 2.87e-4, 0.123456, 30.8123, math.inf, math.nan)] == [
        "0", "2.87E-04", "0.1235", "30.81", "inf", "–",
    ]  # fmt: skip


def test_latex_is_escaped() -> None:
    assert tex("a_b & 5 % †") == r"a\_b \& 5 \% $^\dagger$"
    table = to_latex(["model", "L1↓"], [["x_y", "1"]], "50 %")
    assert r"\begin{tabular}{lr}" in table
    assert r"x\_y & 1 \\" in table
    assert r"L1$\downarrow$" in table
    assert all(tex(arrow).isascii() for arrow in ARROWS.values())
