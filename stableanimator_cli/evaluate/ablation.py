"""``--ablation``: scores of model variants, over several sampling seeds, beside the paper's numbers.

``--variants`` has one model folder per variant, named as in ``tables.ABLATIONS``; each is a training of its own. Two
things are switched at inference. Face optimisation is off for variants that replace StableAnimator's identity
preservation, and for ``no-optimization``, which is ``ours`` without it. ``face-paste`` post-processes the videos of
``no-face``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate import figures, paired
from stableanimator_cli.evaluate.animate_cases import Animate, CaseAnimator
from stableanimator_cli.evaluate.bench import ROLES, networks_of
from stableanimator_cli.evaluate.cases import find_cases
from stableanimator_cli.evaluate.checks import FailedVideo, raise_if_none
from stableanimator_cli.evaluate.evaluator import SystemScores, open_evaluator
from stableanimator_cli.evaluate.face_paste import paste_faces
from stableanimator_cli.evaluate.latex_tables import ablation_latex
from stableanimator_cli.evaluate.pairs import require_folder
from stableanimator_cli.evaluate.run_record import read_record
from stableanimator_cli.evaluate.scores import Row, Scores, Table, shown_metrics, within
from stableanimator_cli.evaluate.side_by_side import files_of
from stableanimator_cli.evaluate.tables import ABLATIONS, MADE_OF, METRICS, OWN_TITLES, ablation, ablation_lines
from stableanimator_cli.files import check_replaceable
from stableanimator_cli.metrics.bootstrap import interval
from stableanimator_cli.progress import Reporter

OURS = "ours"
WITHOUT_OPTIMISATION = frozenset(
    {"no-optimization", "no-face", "ip-adapter", "face-paste", "magic-ip", "magic-face-paste", "magic-fe-id"}
)
PASTED = frozenset({"face-paste", "magic-face-paste"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row: its model folder, flags of ``sa animate``, whether faces are pasted, and the variant whose videos it
    shares (itself if it has a folder or flags of its own)."""

    folder: Path
    flags: Mapping[str, Any]
    paste: bool
    animated: str


def find_variants(config: EvaluateConfig) -> dict[str, Variant]:
    """Variants by name, in the table's order; those without a model folder are left out.

    Raises ``BadInput`` if there is none at all, or for a folder whose name no table has.
    """
    assert config.variants is not None
    assert config.ablation is not None
    known, folder = ABLATIONS[config.ablation], config.variants
    names = ", ".join(known)
    require_folder(folder, f"a folder with one model folder per variant: {names}")
    folders = {entry.name: entry for entry in folder.iterdir() if (entry / FILE_NAME).is_file()}
    every = {name for table in ABLATIONS.values() for name in table}
    unknown = [name for name in folders if name not in every]
    if unknown:
        raise BadInput(folder / unknown[0], "a model folder of that name", f"one of {names}")
    variants = {}
    for name in known:
        source = name if name in folders else MADE_OF.get(name)
        if source in folders:
            off = name in WITHOUT_OPTIMISATION
            shared = source if off == (source in WITHOUT_OPTIMISATION) else name
            flags = {"refine_face": "off"} if off else {}
            variants[name] = Variant(folder=folders[source], flags=flags, paste=name in PASTED, animated=str(shared))
    if not variants:
        raise BadInput(folder, f"no model folder with a {FILE_NAME}", f"one or more of {names}")
    return variants


def run_ablation(config: EvaluateConfig, animate: Animate, reporter: Reporter) -> Scores:
    """Animate every variant with every seed, score each, and write the table. Existing videos are reused."""
    output, table = config.output, config.ablation
    assert output is not None
    assert table is not None
    variants = find_variants(config)
    first = catalogue.open_model(variants.get(OURS, next(iter(variants.values()))).folder, ROLES)
    if config.bench is None:
        config = replace(config, bench="puppet")
    cases = [case for case in find_cases(config, first, output / "data", reporter) if case.target is not None]
    figures.check_videos(config.strip_videos, [case.name for case in cases])
    evaluator = open_evaluator(config, reporter, networks=networks_of(config), model=first)
    check_replaceable(*(path for case in cases for path in files_of(case.name, output)))
    by_seed: dict[str, list[SystemScores]] = {}
    failed: list[FailedVideo] = []
    for name, variant in variants.items():
        model = catalogue.open_model(variant.folder, ROLES)
        for seed in config.seeds:
            animator = CaseAnimator(
                model=model, name=str(variant.folder), animate=animate, settings=config.animate,
                flags={**variant.flags, "seed": seed}, reporter=reporter,
            )  # fmt: skip
            pairs = animator.animate_cases(cases, output / "animated" / variant.animated / f"seed-{seed}")
            if variant.paste:
                assert evaluator.detector.reader is not None  # its files are among ROLES
                pairs = paste_faces(
                    pairs, output / "animated" / name / f"seed-{seed}", evaluator.detector.reader, reporter
                )
            evaluator.check(pairs)
            measured = evaluator.score(pairs)
            raise_if_none(measured.failed, len(measured.videos))
            failed += [replace(one, name=f"{name}/seed-{seed}/{one.name}") for one in measured.failed]
            by_seed.setdefault(name, []).append(measured)
    weighted = evaluator.rules.mean == "frames"
    shown = {variant: _over_seeds(runs, weighted) for variant, runs in by_seed.items()}
    tables: list[Table] = [
        ablation(table, shown, [case.name for case in cases]),
        ("notes to the table", ["note"], [[note] for note in _notes(config, evaluator.rules.name, by_seed)]),
    ]
    about = {
        "ablation": table,
        "sampling_seeds": list(config.seeds),
        "variants": {
            variant: [{name: row.to_json() for name, row in run.rows.items()} for run in runs]
            for variant, runs in by_seed.items()
        },
    }
    last = by_seed.get(OURS, next(iter(by_seed.values())))[0]
    lines = ablation_lines(table, shown)
    if OURS in by_seed:
        values = {name: _means(runs) for name, runs in by_seed.items()}
        compared = paired.differences(values.pop(OURS), values, seed=config.seed)
        about["paired_differences"] = paired.to_json(compared)
        tables[1:1] = paired.tables(compared, shown_metrics(evaluator.rules, last.rows))
        lines += paired.lines(compared)
    printed = {tables[0][0]: [ablation_latex(table, shown, tables[0][0])]}
    first_runs = {name: runs[0].videos for name, runs in by_seed.items()}
    systems = {OURS: first_runs[OURS], **first_runs} if OURS in first_runs else first_runs
    return evaluator.write(
        replace(last, failed=tuple(failed)), about, tables, lines=lines, latex=printed, systems=systems
    )


def _means(runs: Sequence[SystemScores]) -> paired.Values:
    """Means over seeds of each video's values, of the videos and metrics that every seed has."""
    seeds = [paired.values_of(run.videos) for run in runs]
    return {
        video: {name: float(np.mean([seed[video][name] for seed in seeds])) for name in values
                if all(name in seed[video] for seed in seeds)}
        for video, values in seeds[0].items() if all(video in seed for seed in seeds)
    }  # fmt: skip


def _over_seeds(runs: Sequence[SystemScores], weighted: bool) -> tuple[dict[str, Row], dict[str, tuple[float, float]]]:
    """Rows of means over seeds, with intervals over videos, each of which counts with its mean over the seeds that have
    a value of it: a video that one seed alone shows without a face is in the means of the others.

    ``weighted``: the mean is over frames. Metrics of sets have the range over seeds instead of an interval.
    """
    known = set.intersection(*({video.name for video in run.videos} for run in runs))
    shared = [[video for video in run.videos if video.name in known] for run in runs]
    rows: dict[str, Row] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in dict.fromkeys(name for names in METRICS.values() for name in names):
        if not all(name in run.rows for run in runs):
            continue
        values = [run.rows[name].shown for run in runs]
        rows[name] = replace(runs[0].rows[name], shown=float(np.mean(values)))
        table = np.array([[video.values.get(name, np.nan) for video in videos] for videos in shared])
        counts = np.array([[video.counts.get(name, 0) for video in videos] for videos in shared])
        limits, known = None, np.isfinite(table)
        if known.any():
            seeds = np.where(known.any(axis=0), known.sum(axis=0), np.nan)
            mean, weight = (np.where(known, array, 0).sum(axis=0) / seeds for array in (table, counts))
            limits = within(rows[name].spec, interval(mean, np.nan_to_num(weight) if weighted else None))
        elif len(values) > 1:
            limits = min(values), max(values)
        if limits is not None:
            intervals[name] = limits
    return rows, intervals


def _notes(config: EvaluateConfig, rules: str, by_seed: Mapping[str, Sequence[SystemScores]]) -> list[str]:
    record = read_record(by_seed[OURS][0].videos[0].pair.predicted) if OURS in by_seed else None
    refine = {} if record is None else record.get("config", {}).get("refine", {})
    idle = refine.get("face") == "off" and "no-optimization" in by_seed
    seeds = ", ".join(map(str, config.seeds))
    notes = (
        [
            "ours was animated without face optimisation (the model's preset), so that w/o Optimization is the same: "
            "turn it on in --animate SETTINGS.toml, under [refine] face."
        ]
        if idle
        else []
    )
    if "face-paste" in by_seed:
        notes.append(
            "Face paste is in the row of FaceFusion, a program that is not used here: the reference's face by five "
            "landmarks onto the videos of w/o Face, with a soft edge."
        )
    titles = {name: OWN_TITLES.get(name, title) for name, (title, _) in ABLATIONS[str(config.ablation)].items()}
    off = [titles[name] for name in by_seed if name in WITHOUT_OPTIMISATION]
    if off:
        notes.append(f"animated without face optimisation: {', '.join(off)}.")
    return [
        *notes,
        f"measured rows: bench {config.bench}, protocol {rules}, mean over the sampling seeds {seeds}: noise of "
        "sampling, not of training, of which each variant is one run.",
        "intervals: 95 % by Student's t over videos, from 5 videos on (each video's value is its mean over seeds); "
        "of Frechet distances the range over seeds.",
        "published rows stand on Unseen100 and other networks: only the order of rows can be compared.",
    ]
