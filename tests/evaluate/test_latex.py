"""LaTeX of tables: its structure is tested, not its look; nothing needs a TeX here."""

from __future__ import annotations

import math
import re

import pytest

from stableanimator_cli.evaluate.latex import Block, Cell, LatexTable, document, tex, to_latex
from stableanimator_cli.evaluate.latex_tables import ablation_latex, systems_latex, table1_latex
from stableanimator_cli.evaluate.tables import TABLE1, TableRow
from tests.evaluate.test_tables import _row


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removesuffix(r" \\").removesuffix(r" \\*").split(" & ")]


def check_structure(text: str) -> None:
    """Every environment is closed, every row has as many cells as the table has columns, and all is ASCII or Latin."""
    for name in set(re.findall(r"\\begin\{(.*?)\}", text)):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    for shape, body in re.findall(r"\\begin\{tabular\}\{(\S*)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns = len(re.sub(r"p\{.*?\}", "p", shape))
        for line in body.splitlines():
            if line in (r"\toprule", r"\midrule", r"\bottomrule") or r"\multicolumn" in line:
                continue
            assert line.count(" & ") == columns - 1, line
    assert all(letter <= "ÿ" for letter in text)


def test_the_best_of_a_block_is_bold_and_the_second_underlined() -> None:
    numbers = {"a": (0.811, 3.0), "b": (0.8114, 2.0), "c": (0.9, math.nan), "d": (0.1, 2.5)}
    rows = tuple((name, tuple(Cell(values=(value,), digits=3) for value in row)) for name, row in numbers.items())
    text = LatexTable(
        caption="x", columns=(("", "neither"), ("SSIM", "higher"), ("FVD", "lower")), blocks=(Block(rows=rows),)
    ).render()
    check_structure(text)
    lines = {line[0]: _cells(line) for line in text.splitlines() if line[1:3] == " &"}
    assert lines["a"][1:] == [r"\underline{0.811}", "3.000"]
    assert lines["b"][1:] == [r"\underline{0.811}", r"\textbf{2.000}"]  # equal as printed
    assert lines["c"][1:] == [r"\textbf{0.900}", "--"]
    assert lines["d"][1:] == ["0.100", r"\underline{2.500}"]
    assert r"SSIM$\uparrow$ & FVD$\downarrow$" in text


def test_blocks_are_compared_within_themselves_and_one_row_with_nothing() -> None:
    blocks = [Block(rows=((name, (Cell(values=(value,), digits=1),)),)) for name, value in (("a", 1.0), ("b", 2.0))]
    text = LatexTable(caption="", columns=(("", "neither"), ("x", "higher")), blocks=tuple(blocks)).render()
    assert "textbf" not in text
    assert text.count(r"\midrule") == 2


def test_intervals_and_notes_stand_below() -> None:
    cell = Cell(values=(-0.5,), digits=2, interval=(-0.75, 0.25), mark="a")
    table = LatexTable(
        caption="50 %", columns=(("", "neither"), ("x", "higher")), blocks=(Block(rows=(("r", (cell,)),)),),
        notes=("a: made_up & more",),
    )  # fmt: skip
    text = table.render()
    check_structure(text)
    assert "r & $-$0.50$^{a}$ \\\\*\n & \\scriptsize [$-$0.75, 0.25] \\\\[2pt]" in text
    assert text.index(r"\end{tabular}") < text.index(r"a: made\_up \& more\par") < text.index(r"\end{table}")


def test_table_1_has_the_papers_digits_with_the_best_of_each_dataset() -> None:
    rows = {"l1_disco": _row("l1_disco", 3e-4, (2.5e-4, 3.5e-4)), "csim_ref": _row("csim_ref", 0.12345),
            "fvd_puppet": _row("fvd_puppet", 98.768)}  # fmt: skip
    ours = TableRow(name="my_model", rows=rows, memory=(3 << 30, 16), videos=("a", "b"))
    text = table1_latex("puppet", [ours, TableRow(name="other", rows={}, videos=("a", "b"))], "caption").render()
    check_structure(text)
    ours_published = r"StableAnimator $^\dagger$ & \underline{2.87} / \textbf{2.71} & \textbf{30.81} / \textbf{28.85}"
    assert ours_published in text  # of TikTok's L1, 2.66 is the best
    assert text.index("other & --") < text.index(r"my\_model & 3.00 &")  # ours last
    assert r"& 0.123 & 98.77$^{a}$ & 3.00G \\*" in text
    assert r"\scriptsize [2.50, 3.50]" in text
    assert r"a: fvd\_puppet in place of fvd\_disco." in text
    assert all(tex(name) in text for name in TABLE1)
    alone = table1_latex("tiktok", [], "caption").render()
    check_structure(alone)
    assert r"\textbf{2.66} & \underline{30.77}" in alone
    assert r"& \underline{2.87} & \textbf{30.81}" in alone


def test_an_ablation_has_a_block_of_its_own() -> None:
    text = ablation_latex("table4", {"norm": ({"ssim": _row("ssim", 0.5)}, {"ssim": (0.4, 0.6)})}, "c").render()
    check_structure(text)
    assert r"Norm & -- & -- & 0.500 & -- & -- & -- \\*" in text
    assert r"Ours $^\dagger$ & \textbf{2.71}" in text


def test_the_systems_of_plain_videos_are_below_table_1_and_in_one_of_their_own() -> None:
    rows = {"csim_ref": _row("csim_ref", 0.8), "keypoint_error": _row("keypoint_error", 0.0123)}
    worse = {"csim_ref": _row("csim_ref", 0.7), "keypoint_error": _row("keypoint_error", 0.02)}
    systems = [TableRow(name="ours", rows=rows, videos=("a",)), TableRow(name="theirs", rows=worse, videos=("a",))]
    table1, further = (table.render() for table in systems_latex(systems, ["csim_ref", "keypoint_error", "mae_unit"]))
    assert r"\textbf{0.800}" in table1
    assert r"\underline{0.700}" in table1
    assert r"ours & \textbf{0.0123}" in further
    assert r"theirs & \underline{0.0200}" in further
    for table in (table1, further):
        check_structure(table)
        assert table.index("theirs &") < table.index("ours &")
    assert r"\caption{As Table 1 of StableAnimator: TikTok}" in table1_latex("tiktok", [], "Table 1: TikTok").render()


@pytest.mark.parametrize("text", ["[1, 2]", "*", "a_b & c", "中文", "naïve", "−1 → 2", "{}\\~^#$%|`<>", "\u2009"])
def test_any_text_is_a_cell(text: str) -> None:
    table = to_latex(["name", "value"], [[text, "1"], ["x" * 80, "-2.5"]], text, [text])
    check_structure(table)
    assert r"$-$2.5" in table
    assert r"\begin{tabular}{p{0.3\linewidth}r}" in table
    check_structure(document([table], "tool"))
    rows = tuple((text, (Cell(values=(1.0,), digits=1),)) for _ in range(2))
    named = LatexTable(caption="", columns=(("", "neither"), ("x", "higher")), blocks=(Block(rows=rows),)).render()
    for body in (table, named):  # not read as an argument of the line above
        assert not re.search(r"(\\\\|rule)\n[\[*]", body)
