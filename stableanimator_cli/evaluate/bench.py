"""``--bench``: animate a bench's cases, score them, and print our row under the published ones of Table 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stableanimator_cli import catalogue
from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.evaluate import baselines, figures
from stableanimator_cli.evaluate.animate_cases import Animate, CaseAnimator
from stableanimator_cli.evaluate.cases import bench_folder, find_cases
from stableanimator_cli.evaluate.checks import raise_if_none
from stableanimator_cli.evaluate.evaluator import SystemScores, open_evaluator
from stableanimator_cli.evaluate.latex_tables import table1_latex
from stableanimator_cli.evaluate.pairs import FACE_PASTE, find_baselines
from stableanimator_cli.evaluate.protocols import PUPPET_NETWORKS
from stableanimator_cli.evaluate.scores import Row, Scores, Section, Table, cells
from stableanimator_cli.evaluate.side_by_side import files_of
from stableanimator_cli.evaluate.tables import FOOTNOTES, TableRow, measured_lines, published_lines, table1
from stableanimator_cli.files import check_replaceable
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder

ROLES = ("unet", "pose_net", "face_encoder", "vae", "image_encoder", "face")
_CROSS = ("csim_ref", "csim_ref_judge", "face_rate", "identity_drift", "keypoint_error", "keypoint_pck", "flicker",
          "seam_score")  # fmt: skip


def networks_of(config: EvaluateConfig) -> tuple[str, ...] | None:
    """Networks for drawn figures, which have their own; None for those of the protocol."""
    return PUPPET_NETWORKS if config.bench in (None, "puppet") else None


def resolve_model(config: EvaluateConfig) -> tuple[str, ModelFolder]:
    """The model that animates: ``--model``, else ``puppet`` for drawn figures and the default one for the rest."""
    name = config.model or ("puppet" if config.bench in (None, "puppet") else catalogue.default_model(ROLES))
    return name, catalogue.open_model(name, ROLES)


def run_bench(config: EvaluateConfig, animate: Animate, reporter: Reporter) -> Scores:
    """Animate and score. Raises ``BadInput`` (exit 3) that explains the layout if data are missing."""
    assert config.output is not None
    assert config.bench is not None
    bench_folder(config)  # missing data are reported before missing weights
    name, model = resolve_model(config)
    cases = find_cases(config, model, config.output / "data", reporter)
    driven = {case.name: case for case in cases if case.target is not None}
    found = find_baselines(config.baselines, list(driven), Path(config.bench))
    folders = [*found, *([FACE_PASTE] if config.face_paste else [])]
    figures.check_videos(config.strip_videos, list(driven) if folders else [case.name for case in cases])
    check_replaceable(*(path for case in cases for path in files_of(case.name, config.output, folders)))
    theirs = {system: [case.pair(videos[name]) for name, case in driven.items()] for system, videos in found.items()}
    evaluator = open_evaluator(config, reporter, networks=networks_of(config), model=model)
    for pairs in theirs.values():
        evaluator.check(pairs)
    animator = CaseAnimator(
        model=model, name=name, animate=animate, settings=config.animate, flags={}, reporter=reporter
    )
    peak = animator.measure_memory(cases[0], config.output / "memory")  # first: a process's peak never falls again
    pairs = animator.animate_cases(cases, config.output / "animated")
    evaluator.check(pairs)
    ours = evaluator.score([pair for pair in pairs if pair.target is not None])
    raise_if_none(ours.failed, len(ours.videos))
    compared = baselines.compare(evaluator, ours, theirs, config.output)
    used = peak.get("device", peak.get("host"))
    own = baselines.own_name(model.name, [] if compared is None else compared.videos)
    rows = [TableRow(name=own, rows=ours.rows, memory=None if used is None else (used, 16), videos=ours.names)]
    rows += [] if compared is None else compared.table_rows()
    tables: list[Table] = [table1(config.bench, rows)]
    sections: list[Section] = []
    failed, videos = list(ours.failed), list(ours.videos)
    about: dict[str, Any] = {"bench": config.bench, "model": model.name, "peak_bytes_16_frames": peak}
    crossed = [pair for pair in pairs if pair.target is None]
    if crossed:
        other = evaluator.score(crossed)
        tables.append(_table("cross-identity: another figure's movement, no ground truth", other.rows))
        about["cross_identity"] = _json(other.rows)
        sections.append(Section(system=model.name, data="cross-identity", rows=other.rows))
        videos += other.videos
        failed += other.failed
    lines = [*published_lines(config.bench), *(line for row in rows for line in measured_lines(row))]
    if compared is not None:
        about |= compared.about
        tables += compared.tables
        sections += compared.sections
        failed += compared.failed
        lines += compared.lines
    tables.append(("notes to the tables", ["note"], [[note] for note in _notes(evaluator.rules.name, peak)]))
    total = SystemScores(rows=ours.rows, missing=ours.missing, videos=tuple(videos), failed=tuple(failed))
    printed = {tables[0][0]: [table1_latex(config.bench, rows, tables[0][0])]}
    systems = {own: videos, **({} if compared is None else compared.videos)}
    return evaluator.write(total, about, tables, sections=sections, lines=lines, latex=printed, systems=systems)


def _json(rows: Mapping[str, Row]) -> dict[str, Any]:
    return {name: row.to_json() for name, row in rows.items()}


def _table(title: str, rows: Mapping[str, Row]) -> Table:
    lines = [
        [name, rows[name].spec.title, *cells(rows[name])[:2], str(rows[name].videos)] for name in _CROSS if name in rows
    ]
    return title, ["metric", "", "value", "95 % t-interval", "videos"], lines


def _notes(protocol: str, peak: Mapping[str, int]) -> list[str]:
    kind = "the GPU's allocator" if "device" in peak else "resident memory of the whole process, there being no GPU"
    kind = kind if peak else "not measured: the first video is shorter"
    ours = (
        f"measured rows: protocol {protocol}; a cell names its metric where that is not the column's; memory "
        f"is the most in use ({kind}) while 16 frames are animated at the bench's size."
    )
    return [ours, *FOOTNOTES]
