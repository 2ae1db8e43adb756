"""Tables of the ablations: paired differences to ``ours`` with intervals, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stableanimator_cli.evaluate.tables import ABLATIONS, MADE_OF, OWN_TITLES
from tools.ablations.statistics import Estimate, estimate
from tools.ablations.training import EXPERIMENTS, STAGES, Experiment

FIGURES: Mapping[str, str] = {
    "recogniser": "recogniser",
    "judge": "judge",
    "face_psnr": "face, dB",
    "sharpness": "sharpness",
    "background_psnr": "background, dB",
    "follows": "follows",
    "inside": "error inside faces, dB",
    "outside": "error outside, dB",
}
"""Key of a row -> heading. Lower is better for the two errors alone."""
TABLES: Mapping[str, str] = {"table2": "portraits", "table3": "portraits", "table4": "portraits", "table5": "magic"}
"""Table of the paper -> the experiment that trains its rows."""
UPPER = "vae"
_CSIM, _FVD = 4, 5  # of the paper's columns
_BEFORE, _AFTER = STAGES

Row = Mapping[str, Any]


def values_of(rows: Sequence[Row], experiment: str, variant: str, stage: str, figure: str) -> np.ndarray:
    """A figure as float64[s,p] by seed and person, in the order of their numbers in all ``rows``; NaN if missing."""
    rows = [row for row in rows if row["experiment"] == experiment and row["variant"] != UPPER]
    seeds, people = (sorted({row[key] for row in rows}) for key in ("seed", "person"))
    values = np.full((len(seeds), len(people)), np.nan)
    for row in rows:
        if row["variant"] == variant and row["stage"] == stage and row.get(figure) is not None:
            values[seeds.index(row["seed"]), people.index(row["person"])] = row[figure]
    return values


def differences(rows: Sequence[Row], experiment: Experiment) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Stage -> variant -> figure -> difference to the experiment's baseline, paired by seed and person.

    Stage ``change`` is the difference of the changes by temporal training: below 0 for a figure, higher of which is
    better, if temporal training harms the variant more than ``ours``.
    """
    found: dict[str, dict[str, dict[str, Estimate]]] = {stage: {} for stage in (*STAGES, "change")}
    for variant in experiment.variants:
        if variant == experiment.baseline:
            continue
        for figure in FIGURES:
            by_stage = {
                stage: values_of(rows, experiment.name, variant, stage, figure)
                - values_of(rows, experiment.name, experiment.baseline, stage, figure)
                for stage in STAGES
            }
            by_stage["change"] = by_stage[_AFTER] - by_stage[_BEFORE]
            for stage, values in by_stage.items():
                if np.isfinite(values).any():
                    found[stage].setdefault(variant, {})[figure] = estimate(values)
    return found


def text_of(rows: Sequence[Row]) -> str:
    """All tables as Markdown."""
    parts = [_READING]
    for experiment in EXPERIMENTS.values():
        if not any(row["experiment"] == experiment.name for row in rows):
            continue
        found = differences(rows, experiment)
        parts.append(f"**{experiment.name}.** {_describe(rows, experiment)}")
        parts.append(_levels(rows, experiment))
        for stage, title in (
            (_BEFORE, "Difference to {} after pictures, before temporal training"),
            (_AFTER, "Difference to {} after temporal training"),
            ("change", "What temporal training changes more than in {}"),
        ):
            if found[stage]:
                parts += [f"{title.format(experiment.baseline)}:", _difference_table(found[stage])]
    parts += [table for name in TABLES if (table := _beside_paper(rows, name))]
    return "\n\n".join(parts)


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Experiment -> stage -> variant -> figure -> estimate."""
    return {
        name: {
            stage: {
                variant: {figure: found.to_json() for figure, found in figures.items()}
                for variant, figures in variants.items()
            }
            for stage, variants in differences(rows, experiment).items()
        }
        for name, experiment in EXPERIMENTS.items()
        if any(row["experiment"] == name for row in rows)
    }


_READING = (
    "`recogniser` and `judge` are cosines with the reference at the drawn face; `follows` is the gain of the judge's "
    "similarity to another person if the model receives that person's face vector; errors are those of denoised "
    "latents (lower is better). Differences are paired by seed and person. Intervals are 95 % over seeds and people; "
    "an interval that contains 0 is marked *no effect seen*."
)


def _describe(rows: Sequence[Row], experiment: Experiment) -> str:
    mine = [row for row in rows if row["experiment"] == experiment.name and row["variant"] != UPPER]
    seeds, people = (len({row[key] for row in mine}) for key in ("seed", "person"))
    width, height = experiment.size
    words = f"{experiment.framing} at {width}x{height}, {seeds} training seeds, {people} people of the test split."
    upper = [row for row in rows if row["experiment"] == experiment.name and row["variant"] == UPPER]
    if upper:
        means = {key: np.mean([row[key] for row in upper]) for key in FIGURES if key in upper[0]}
        words += " The VAE alone reaches " + ", ".join(f"{FIGURES[k]} {v:.3f}" for k, v in means.items()) + "."
    return words


def _levels(rows: Sequence[Row], experiment: Experiment) -> str:
    lines, figures = [], [key for key in FIGURES if any(key in row for row in rows if _is_mine(row, experiment))]
    for variant in experiment.variants:
        for stage in STAGES:
            values = {key: values_of(rows, experiment.name, variant, stage, key) for key in figures}
            if any(np.isfinite(array).any() for array in values.values()):
                cells = [f"{np.nanmean(array):.3f}" if np.isfinite(array).any() else "–" for array in values.values()]
                lines.append(f"| {variant} | {stage} | {' | '.join(cells)} |")
    heading = f"| variant | after | {' | '.join(FIGURES[key] for key in figures)} |"
    return "\n".join([heading, f"|{'---|' * (2 + len(figures))}", *lines])


def _is_mine(row: Row, experiment: Experiment) -> bool:
    return row["experiment"] == experiment.name and row["variant"] != UPPER


def _difference_table(variants: Mapping[str, Mapping[str, Estimate]]) -> str:
    figures = [key for key in FIGURES if any(key in found for found in variants.values())]
    lines = [f"| variant | {' | '.join(FIGURES[key] for key in figures)} |", f"|{'---|' * (1 + len(figures))}"]
    for variant, found in variants.items():
        cells = [format_difference(found[key]) if key in found else "–" for key in figures]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_difference(found: Estimate) -> str:
    """As ``+0.012 (-0.003 to +0.027), no effect seen``."""
    if not np.isfinite(found.low):
        return f"{found.value:+.3f} (one seed: no interval)"
    verdict = "" if found.has_effect else ", *no effect seen*"
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}){verdict}"


def _beside_paper(rows: Sequence[Row], table: str) -> str:
    """A table of the paper: CSIM and FVD as published, and our figures of the rows that are trainings."""
    experiment = EXPERIMENTS[TABLES[table]]
    found, lines = differences(rows, experiment)[_AFTER], []
    published = {name: numbers for name, (_, numbers) in ABLATIONS[table].items()}
    for variant, (title, numbers) in ABLATIONS[table].items():
        label = OWN_TITLES.get(variant, title)
        against = numbers[_CSIM] - published[experiment.baseline][_CSIM]
        paper = f"{numbers[_CSIM]:.3f} ({against:+.3f}) | {numbers[_FVD]:.0f}"
        if variant in MADE_OF:
            lines.append(f"| {label} | not trained here | | | {paper} |")
            continue
        level = {
            key: values_of(rows, experiment.name, variant, _AFTER, key) for key in ("recogniser", "judge", "face_psnr")
        }
        cells = []
        for key, array in level.items():
            known = np.isfinite(array).any()
            text = f"{np.nanmean(array):.3f}" if known else "–"
            if known and variant in found:
                text += f"; {format_difference(found[variant][key])}"
            cells.append(text)
        lines.append(f"| {label} | {' | '.join(cells)} | {paper} |")
    if all("–" in line for line in lines if "not trained" not in line):
        return ""
    title = f"Table {table[-1]}"
    to = f"to {experiment.baseline}"
    heading = f"| {title} | recogniser; {to} | judge; {to} | face, dB; {to} | paper: CSIM ({to}) | FVD |"
    return "\n".join([heading, f"|{'---|' * 6}", *lines])
