"""``--bench``: animate what is not yet animated, score it, and put our row under the published ones of Table 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stableanimator_cli import catalogue
from stableanimator_cli.config_evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.animated import Animate, Animator
from stableanimator_cli.evaluate.cases import Case, find_cases, place_of
from stableanimator_cli.evaluate.compare import Bench, Measured, measuring
from stableanimator_cli.evaluate.pairs import Pair, alone, find_videos
from stableanimator_cli.evaluate.scores import Row, Scores, Table, cells
from stableanimator_cli.evaluate.tables import FOOTNOTES, Ours, table1
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.talk import Talk

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


def run_bench(config: EvaluateConfig, animate: Animate, talk: Talk) -> Scores:
    """Animate and score. Raises ``BadInput`` (exit 3) that explains the layout where data are missing."""
    assert config.output is not None
    assert config.bench is not None
    place_of(config)  # what data are wanted is said before what weights are
    name, model = resolved(config)
    cases = find_cases(config, model, config.output / "data", talk)
    bench = measuring(config, talk, networks=networks_of(config), model=model)
    animator = Animator(model=model, name=name, animate=animate, settings=config.animate, flags={}, talk=talk)
    # first of all, while the process has used little: its peak cannot be taken back
    peak = animator.memory(cases[0], config.output / "memory")
    pairs = animator.animated(cases, config.output / "animated")
    driven = [pair for pair in pairs if pair.truth is not None]
    crossed = [pair for pair in pairs if pair.truth is None]
    measured = bench.measure(driven)
    rows = [Ours(name=f"{model.name} (measured)", rows=measured.rows, memory=peak.get("device", peak.get("host")))]
    rivals = _rivals(config, cases, bench)
    rows += [Ours(name=f"{rival} (measured)", rows=scored.rows) for rival, scored in rivals.items()]
    tables: list[Table] = [table1(config.bench, rows)]
    about: dict[str, Any] = {"bench": config.bench, "model": model.name, "peak_bytes_16_frames": peak}
    videos = list(measured.videos)
    if crossed:
        other = bench.measure(crossed)
        tables.append(_table("cross-identity: another figure's movement, no ground truth", other.rows))
        about["cross_identity"] = {key: row.to_json() for key, row in other.rows.items()}
        videos += other.videos
    if rivals:
        about["rivals"] = {key: {n: row.to_json() for n, row in one.rows.items()} for key, one in rivals.items()}
    tables.append(("notes to the tables", ["note"], [[note] for note in _notes(bench, peak)]))
    whole = Measured(rows=measured.rows, missing=measured.missing, videos=tuple(videos))
    return bench.finish(whole, about, tables)


def _rivals(config: EvaluateConfig, cases: Sequence[Case], bench: Bench) -> dict[str, Measured]:
    """Other systems' videos of the same cases: a folder a system, videos by the cases' names."""
    if config.rivals is None:
        return {}
    known = {case.name: case for case in cases if case.truth is not None}
    folders = sorted(entry for entry in config.rivals.iterdir() if entry.is_dir()) if config.rivals.is_dir() else []
    if not folders:
        raise BadInput(
            config.rivals, "no folders", "a folder a system, with its videos under the names of the bench's",
            hint=f"names: {', '.join(list(known)[:5])} ...",
        )  # fmt: skip
    measured = {}
    for folder in folders:
        videos = find_videos(folder)
        alone({name: case.reference for name, case in known.items()}, Path(str(config.bench)), videos, folder)
        measured[folder.name] = bench.measure(
            [
                Pair(name=name, predicted=videos[name], truth=case.truth, reference=case.reference, poses=case.poses)
                for name, case in known.items()
            ]
        )
    return measured


def _table(title: str, rows: Mapping[str, Row]) -> Table:
    lines = [
        [name, rows[name].spec.title, *cells(rows[name])[:2], str(rows[name].videos)] for name in _CROSS if name in rows
    ]
    return title, ["metric", "", "value", "95 % interval", "videos"], lines


def _notes(bench: Bench, peak: Mapping[str, int]) -> list[str]:
    kind = "the GPU's allocator" if "device" in peak else "resident memory of the whole process, there being no GPU"
    kind = kind if peak else "not measured: the first video is shorter"
    ours = (
        f"measured rows: protocol {bench.rules.name}; a cell names its metric where that is not the column's; memory "
        f"is the most in use ({kind}) while 16 frames are animated at the bench's size."
    )
    return [ours, *FOOTNOTES]
