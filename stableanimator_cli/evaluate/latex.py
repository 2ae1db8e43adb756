"""LaTeX of tables: booktabs, arrows, the best value of each block bold and the second underlined, notes below.

A table is as wide as the text allows and is scaled down only if it is wider. It needs the packages booktabs and
graphicx. ``document`` is a whole file that pdflatex compiles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stableanimator_cli.metrics.result import Better

_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\~{}",
        "^": r"\^{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "↑": r"$\uparrow$", "<": "$<$", ">": "$>$",
        "↓": r"$\downarrow$", "→": r"$\rightarrow$", "†": r"$^\dagger$", "×": r"$\times$", "\u2009": r"\,",
        "°": r"$^\circ$", "|": r"\textbar{}", "`": r"\textasciigrave{}", "−": "$-$"}  # fmt: skip
ARROW: Mapping[Better, str] = {"higher": "↑", "lower": "↓", "zero": "→0", "neither": ""}
_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")
_TEXT_WIDTH = 34  # letters of a cell that is set as text rather than as a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Numbers as the paper prints them: ``values`` have ``digits`` decimals (NaN: a dash) and are joined by a slash.
    ``interval`` is set below them, ``mark`` is the letter of a note."""

    values: tuple[float, ...]
    digits: int
    interval: tuple[float, float] | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows that are compared with one another: (label, cells), under a heading if there is one."""

    rows: tuple[tuple[str, tuple[Cell | str, ...]], ...]
    heading: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatexTable:
    """A table of numbers. ``columns`` are (title, direction), the first being that of the labels."""

    caption: str
    columns: tuple[tuple[str, Better], ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()

    def render(self) -> str:
        head = " & ".join(tex(f"{title}{ARROW[better]}") for title, better in self.columns)
        lines = [rf"{head} \\"]
        for block in self.blocks:
            lines.append(r"\midrule")
            if block.heading:
                lines.append(rf"\multicolumn{{{len(self.columns)}}}{{l}}{{\emph{{{tex(block.heading)}}}}} \\")
            lines += self._rows(block)
        return _table(self.caption, "l" + "r" * (len(self.columns) - 1), lines, self.notes)

    def _rows(self, block: Block) -> list[str]:
        ranks = [_ranks([cells[index] for _, cells in block.rows], better)
                 for index, (_, better) in enumerate(self.columns[1:])]  # fmt: skip
        lines = []
        for row, (label, cells) in enumerate(block.rows):
            shown = [_cell(cell, ranks[index][row]) for index, cell in enumerate(cells)]
            below = [_interval(cell) for cell in cells]
            lines.append(" & ".join([_guarded(tex(label)), *shown]) + r" \\" + ("*" if any(below) else ""))
            if any(below):
                lines.append(" & ".join(["", *below]) + r" \\[2pt]")
        return lines


def to_latex(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, notes: Sequence[str] = ()) -> str:
    """Any table of text. A column of numbers is aligned to the right, one of long text is broken into lines."""
    kinds = []
    for index in range(len(columns)):
        cells = [row[index] for row in rows]
        longest = max(map(len, cells), default=0)
        numeric = index > 0 and all(not cell or cell == "–" or cell[:1] in "-0123456789[" for cell in cells)
        kinds.append("r" if numeric else r"p{0.3\linewidth}" if longest > _TEXT_WIDTH else "l")
    lines = [" & ".join(map(tex, columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_plain_cell, row)) + r" \\" for row in rows]
    return _table(caption, "".join(kinds), lines, notes)


def document(body: Sequence[str], comment: str) -> str:
    """A file for pdflatex in the two columns of a conference paper. ``body`` are its parts, in LaTeX."""
    head = [
        f"% {comment}", r"\documentclass[10pt,twocolumn]{article}", r"\usepackage[utf8]{inputenc}",
        r"\usepackage{booktabs,graphicx}", r"\usepackage[margin=0.8in]{geometry}",
        r"\renewcommand{\dbltopfraction}{0.95}\renewcommand{\topfraction}{0.95}",
        r"\renewcommand{\dblfloatpagefraction}{0.7}\setcounter{dbltopnumber}{4}\setcounter{totalnumber}{8}",
        r"\makeatletter\setlength{\@fptop}{0pt}\setlength{\@dblfptop}{0pt}\makeatother",  # pages filled from the top
        r"\begin{document}",
    ]  # fmt: skip
    return "\n".join([*head, *body, r"\end{document}"]) + "\n"


def figure(path: str, caption: str, *, wide: bool) -> str:
    """A figure over the page or one column; ``path`` is relative to the document, in letters that LaTeX reads."""
    kind = "figure*" if wide else "figure"
    return "\n".join([
        rf"\begin{{{kind}}}", r"\centering", rf"\includegraphics[width=\linewidth]{{{path}}}",
        rf"\caption{{{tex(caption)}}}", rf"\end{{{kind}}}",
    ])  # fmt: skip


def tex(text: str) -> str:
    """Text as LaTeX, which pdflatex's fonts can set: letters of other scripts by their code."""
    return "".join(_TEX.get(letter, letter if _has_glyph(letter) else rf"\texttt{{U+{ord(letter):04X}}}")
                   for letter in text)  # fmt: skip


def _has_glyph(letter: str) -> bool:
    return " " <= letter <= "~" or ("À" <= letter <= "ÿ" and letter not in "÷ÐðÞþ")


def _table(caption: str, shape: str, lines: Sequence[str], notes: Sequence[str]) -> str:
    kind = "table*" if len(shape) > 5 or "p" in shape else "table"
    parts = [
        rf"\begin{{{kind}}}", r"\centering\footnotesize", rf"\caption{{{tex(caption)}}}",
        r"\setlength{\tabcolsep}{4pt}", r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{shape}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}}",
    ]  # fmt: skip
    if notes:
        parts += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\scriptsize\raggedright"]
        parts += [rf"{tex(note)}\par" for note in notes]
        parts.append(r"\end{minipage}")
    return "\n".join([*parts, rf"\end{{{kind}}}"]) + "\n"


def _ranks(cells: Sequence[Cell | str], better: Better) -> list[tuple[int, ...]]:
    """Per cell and value, 1 for the best of the column, 2 for the second, else 0. Values that are printed equal share a
    rank; with fewer than two values, or without a direction, there is none."""
    parts = max((len(cell.values) for cell in cells if isinstance(cell, Cell)), default=0)
    ranks = [[0] * parts for _ in cells]
    sign = {"higher": -1, "lower": 1}.get(better, 0)
    for part in range(parts):
        rounded = {
            row: sign * round(cell.values[part], cell.digits)
            for row, cell in enumerate(cells)
            if isinstance(cell, Cell) and part < len(cell.values) and not math.isnan(cell.values[part])
        }
        order = sorted(set(rounded.values()))
        if sign and len(rounded) > 1 and len(order) > 1:
            for row, value in rounded.items():
                ranks[row][part] = order.index(value) + 1 if order.index(value) < 2 else 0
    return [tuple(row) for row in ranks]


def _cell(cell: Cell | str, ranks: Sequence[int]) -> str:
    if isinstance(cell, str):
        return _plain_cell(cell)
    shown = []
    for value, rank in zip(cell.values, ranks, strict=False):
        text = _decimal(value, cell.digits)
        shown.append({1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(rank, text))
    return " / ".join(shown) + (rf"$^{{{cell.mark}}}$" if cell.mark else "")


def _interval(cell: Cell | str) -> str:
    if isinstance(cell, str) or cell.interval is None:
        return ""
    low, high = (_decimal(limit, cell.digits) for limit in cell.interval)
    return rf"\scriptsize [{low}, {high}]"


def _decimal(value: float, digits: int) -> str:
    if math.isnan(value):
        return "--"
    if math.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    return f"{value:.{digits}f}".replace("-", "$-$")


def _plain_cell(text: str) -> str:
    return _guarded(tex(_MINUS.sub("−", text)))


def _guarded(text: str) -> str:
    """LaTeX of a cell that the rule or the end of the row above it does not take for its argument."""
    return "{}" + text if text[:1] in ("[", "*") else text
