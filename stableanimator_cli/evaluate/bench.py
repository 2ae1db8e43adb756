"""``--bench``: animate what is not yet animated, score it, and put our row under the published ones of Table 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stableanimator_cli import catalogue
from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.animate_cases import Animate, Animator
from stableanimator_cli.evaluate.cases import Case, find_cases, place_of
from stableanimator_cli.evaluate.checks import raise_if_none
from stableanimator_cli.evaluate.evaluator import Evaluator, SystemScores, measuring
from stableanimator_cli.evaluate.pairs import Pair, alone, find_videos
from stableanimator_cli.evaluate.scores import Row, Scores, Section, Table, cells, video_json
from stableanimator_cli.evaluate.side_by_side import files_of
from stableanimator_cli.evaluate.tables import FOOTNOTES, Ours, measured_lines, published_lines, table1
from stableanimator_cli.files import check_replaceable
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder

PUPPET_NETWORKS = ("lpips_puppet", "fvd_puppet")
ROLES = ("unet", "pose_net", "face_encoder", "vae", "image_encoder", "face")
_CROSS = ("csim_ref", "csim_ref_judge", "face_rate", "identity_drift", "keypoint_error", "keypoint_pck", "flicker",
          "seam_score")  # fmt: skip


def networks_of(config: EvaluateConfig) -> tuple[str, ...] | None:
    """Drawn figures are measured by their own networks, everything else by those of the protocol (None)."""
    return PUPPET_NETWORKS if config.bench in (None, "puppet") else None


def resolved(config: EvaluateConfig) -> tuple[str, ModelFolder]:
    """The model that animates: ``--model``, else ``puppet`` for drawn figures and the usual one for the rest."""
    name = config.model or ("puppet" if config.bench in (None, "puppet") else catalogue.default_model(ROLES))
    return name, catalogue.open_model(name, ROLES)


def run_bench(config: EvaluateConfig, animate: Animate, reporter: Reporter) -> Scores:
    """Animate and score. Raises ``BadInput`` (exit 3) that explains the layout where data are missing."""
    assert config.output is not None
    assert config.bench is not None
    place_of(config)  # what data are wanted is said before what weights are
    name, model = resolved(config)
    cases = find_cases(config, model, config.output / "data", reporter)
    check_replaceable(*(path for case in cases for path in files_of(case.name, config.output)))
    others = _rival_pairs(config, cases)
    bench = measuring(config, reporter, networks=networks_of(config), model=model)
    for others_pairs in others.values():
        bench.check(others_pairs)
    animator = Animator(model=model, name=name, animate=animate, settings=config.animate, flags={}, reporter=reporter)
    # first of all, while the process has used little: its peak cannot be taken back
    peak = animator.memory(cases[0], config.output / "memory")
    pairs = animator.animated(cases, config.output / "animated")
    driven = [pair for pair in pairs if pair.truth is not None]
    crossed = [pair for pair in pairs if pair.truth is None]
    bench.check(pairs)
    measured = bench.measure(driven)
    raise_if_none(measured.failed, len(measured.videos))
    most = peak.get("device", peak.get("host"))
    rows = [Ours(name=model.name, rows=measured.rows, memory=most, videos=_names(measured))]
    rivals = {name: bench.measure(pairs) for name, pairs in others.items()}
    rows += [Ours(name=rival, rows=scored.rows, videos=_names(scored)) for rival, scored in rivals.items()]
    tables: list[Table] = [table1(config.bench, rows)]
    sections: list[Section] = []
    failed = list(measured.failed)
    about: dict[str, Any] = {"bench": config.bench, "model": model.name, "peak_bytes_16_frames": peak}
    videos = list(measured.videos)
    if crossed:
        other = bench.measure(crossed)
        tables.append(_table("cross-identity: another figure's movement, no ground truth", other.rows))
        about["cross_identity"] = {key: row.to_json() for key, row in other.rows.items()}
        sections.append(Section(system=model.name, data="cross-identity", rows=other.rows))
        videos += other.videos
        failed += other.failed
    if rivals:
        about["rivals"] = {key: {n: row.to_json() for n, row in one.rows.items()} for key, one in rivals.items()}
        about["rival_videos"] = {key: [video_json(video) for video in one.videos] for key, one in rivals.items()}
    for rival, one in rivals.items():
        sections.append(Section(system=rival, data="", rows=one.rows, videos=one.videos))
        failed += [replace(video, name=f"{rival}/{video.name}") for video in one.failed]
    tables.append(("notes to the tables", ["note"], [[note] for note in _notes(bench, peak)]))
    whole = SystemScores(rows=measured.rows, missing=measured.missing, videos=tuple(videos), failed=tuple(failed))
    lines = [*published_lines(config.bench), *(line for row in rows for line in measured_lines(row))]
    return bench.finish(whole, about, tables, sections=sections, lines=lines)


def _names(measured: SystemScores) -> tuple[str, ...]:
    return tuple(video.name for video in measured.videos)


def _rival_pairs(config: EvaluateConfig, cases: Sequence[Case]) -> dict[str, list[Pair]]:
    """Other systems' videos of the same cases: one folder per system, videos by the cases' names."""
    if config.baselines is None:
        return {}
    known = {case.name: case for case in cases if case.truth is not None}
    entries = sorted(config.baselines.iterdir()) if config.baselines.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        raise BadInput(
            config.baselines, "no folders", "one folder per system, with its videos under the names of the bench's",
            hint=f"names: {', '.join(list(known)[:5])} ...",
        )  # fmt: skip
    found = {}
    for folder in folders:
        videos = find_videos(folder)
        alone({name: case.reference for name, case in known.items()}, Path(str(config.bench)), videos, folder)
        found[folder.name] = [
            Pair(name=name, predicted=videos[name], truth=case.truth, reference=case.reference, poses=case.poses)
            for name, case in known.items()
        ]
    return found


def _table(title: str, rows: Mapping[str, Row]) -> Table:
    lines = [
        [name, rows[name].spec.title, *cells(rows[name])[:2], str(rows[name].videos)] for name in _CROSS if name in rows
    ]
    return title, ["metric", "", "value", "95 % t-interval", "videos"], lines


def _notes(bench: Evaluator, peak: Mapping[str, int]) -> list[str]:
    kind = "the GPU's allocator" if "device" in peak else "resident memory of the whole process, there being no GPU"
    kind = kind if peak else "not measured: the first video is shorter"
    ours = (
        f"measured rows: protocol {bench.rules.name}; a cell names its metric where that is not the column's; memory "
        f"is the most in use ({kind}) while 16 frames are animated at the bench's size."
    )
    return [ours, *FOOTNOTES]
