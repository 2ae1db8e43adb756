"""``sa evaluate`` from flags to files: chooses the task, and compares videos with their ground truth.

Each task is imported when it is chosen, after the options are checked: torch takes seconds to load.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stableanimator_cli.catalogue import evaluation_cache
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.config.schema import check_file, resolve
from stableanimator_cli.devices import check_device_exists
from stableanimator_cli.errors import ConfigError, SaError
from stableanimator_cli.evaluate import cases, figures, report, side_by_side
from stableanimator_cli.evaluate.checks import check_pairs, raise_if_none
from stableanimator_cli.evaluate.driving_points import find_poses
from stableanimator_cli.evaluate.pairs import (
    FACE_PASTE,
    Pair,
    find_baselines,
    find_images,
    find_videos,
    match,
    match_files,
)
from stableanimator_cli.evaluate.protocols import PROTOCOLS
from stableanimator_cli.evaluate.scores import by_video
from stableanimator_cli.evaluate.tables import TableRow
from stableanimator_cli.files import check_apart, check_replaceable, locked_output
from stableanimator_cli.progress import NullReporter, Reporter

if TYPE_CHECKING:
    from stableanimator_cli.evaluate.animate_cases import Animate
    from stableanimator_cli.evaluate.scores import Table


_LEVELS = 3  # of the folders that are read: systems, their videos, the images of a video
_FURTHER = (
    "csim_ref_judge",
    "clip_i",
    "dino",
    "jedi",
    "face_rate",
    "identity_drift",
)  # beside the protocol's table, in LaTeX


class Result(Protocol):
    """Result of any task, for the command line."""

    @property
    def exit_code(self) -> int: ...

    @property
    def failure(self) -> SaError | None:
        """The error of a check that did not hold, though everything was written."""

    def to_json(self) -> dict[str, Any]: ...

    def summary(self) -> str: ...

    def shown(self) -> list[Table]: ...


def run(
    *, flags: Mapping[str, Any], animate: Animate, config_file: Path | None = None, reporter: Reporter | None = None
) -> Result:
    """Score videos into ``--output``. ``flags`` by option name, None if not given; see ``EvaluateConfig``.

    Each file is written atomically. Raises ``SaError``.
    """
    reporter = reporter or NullReporter()
    names = {"inputs": "predicted_reference"}
    config = resolve(EvaluateConfig, {names.get(key, key): value for key, value in flags.items()}, config_file)
    check_device_exists(config.device)
    if config.animate is not None:
        check_file(AnimateConfig, config.animate)
    if config.strips is not None:
        figures.check_installed()
    if config.output is None:
        config = replace(config, output=config.default_output)
    if config.output is None:
        return _run_task(config, animate, reporter)
    _check_output(config.output, _inputs(config, config_file), _files(config, config.output))
    if config.strips is not None:
        figures.check_folder(config.output)
    with locked_output(config.output, "sa evaluate", folder=True):
        report.remove_unfinished(config.output)
        return _run_task(config, animate, reporter)


def _run_task(config: EvaluateConfig, animate: Animate, reporter: Reporter) -> Result:
    if config.study:
        from stableanimator_cli.evaluate.study import write_study

        return write_study(config, with_sides, reporter)
    if config.tally:
        from stableanimator_cli.evaluate.study_results import tally

        return tally(config)
    with evaluation_cache.in_use():
        if config.ablation is not None:
            from stableanimator_cli.evaluate.ablation import run_ablation

            return run_ablation(config, animate, reporter)
        if config.bench is not None:
            from stableanimator_cli.evaluate.bench import run_bench

            return run_bench(config, animate, reporter)
        return _compare(config, reporter)


def _compare(config: EvaluateConfig, reporter: Reporter) -> Result:
    assert config.output is not None
    if config.without_target:
        pairs = [Pair(name=name, predicted=path) for name, path in find_videos(config.inputs[0]).items()]
    else:
        pairs = match(*config.inputs)
    pairs = with_sides(pairs, config)
    names = [pair.name for pair in pairs]
    figures.check_videos(config.strip_videos, names)
    found = find_baselines(config.baselines, names, config.inputs[0])
    folders = [*found, *([FACE_PASTE] if config.face_paste else [])]
    check_replaceable(*(path for name in names for path in side_by_side.files_of(name, config.output, folders)))
    systems = {
        system: [replace(pair, predicted=videos[pair.name]) for pair in pairs] for system, videos in found.items()
    }
    for one in (pairs, *systems.values()):
        check_pairs(one, PROTOCOLS[config.rules], truncate=config.truncate, reporter=reporter)
    from stableanimator_cli.evaluate import baselines, identity_check
    from stableanimator_cli.evaluate.evaluator import open_evaluator
    from stableanimator_cli.evaluate.latex_tables import systems_latex

    evaluator = open_evaluator(config, reporter)
    if config.without_target:
        identity_check.check_references(pairs, evaluator.detector)
    scores = evaluator.score(pairs)
    raise_if_none(scores.failed, len(scores.videos))
    tables = [by_video(scores.videos)] if config.without_target else []
    compared = baselines.compare(evaluator, scores, systems, config.output)
    if compared is None:
        return evaluator.write(scores, {}, tables)
    tables = [baselines.systems_table(evaluator, scores, compared), *compared.tables, *tables]
    scores = replace(scores, failed=(*scores.failed, *compared.failed))
    own = baselines.own_name(config.system_name, compared.videos)
    ours = TableRow(name=own, rows=scores.rows, memory=baselines.recorded_memory(scores.videos), videos=scores.names)
    printed = systems_latex([ours, *compared.table_rows()], (*evaluator.rules.table, *_FURTHER))
    return evaluator.write(
        scores, compared.about, tables, sections=compared.sections, lines=compared.lines,
        latex={tables[0][0]: printed}, systems={own: scores.videos, **compared.videos},
    )  # fmt: skip


def with_sides(pairs: Sequence[Pair], config: EvaluateConfig) -> list[Pair]:
    """Pairs with their reference images and motions, as ``--reference-picture`` and ``--poses`` give them."""
    sides: dict[str, dict[str, Path]] = {}
    for field, path, kind, find in (
        ("reference", config.reference_picture, "image", find_images),
        ("poses", config.poses, "motion", find_poses),
    ):
        if path is not None:
            sides[field] = match_files(pairs, path, kind, find(path))
    return [replace(pair, **{field: named[pair.name] for field, named in sides.items()}) for pair in pairs]


def _files(config: EvaluateConfig, output: Path) -> list[Path]:
    """The files that the run writes whatever its videos are."""
    if config.tally:
        from stableanimator_cli.evaluate.study_results import files_of

        return files_of(output)
    return [] if config.study else report.files_of(output)


def _inputs(config: EvaluateConfig, config_file: Path | None) -> list[Path]:
    """Every file and folder that the run reads."""
    given = [*config.inputs, config.reference_picture, config.poses, config.baselines, config.variants, config.animate]
    named = [Path(name) for name in (config.model, config.judge) if name is not None and Path(name).exists()]
    bench = None if config.bench is None else cases.bench_folder(config)
    inputs = [path for path in (*given, bench, config_file, *named) if path is not None]
    return [*inputs, *(link for path in (*given, bench) if path is not None for link in _links_in(path))]


def _links_in(folder: Path, levels: int = _LEVELS) -> Iterator[Path]:
    """Links in a folder of videos, through which a run reads what is elsewhere."""
    if not levels or not folder.is_dir():
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink():
            yield Path(entry.path)
        elif entry.is_dir():
            yield from _links_in(Path(entry.path), levels - 1)


def _check_output(output: Path, inputs: Sequence[Path], files: Sequence[Path]) -> None:
    """Raise for a folder of scores that would change an input or replace a file that ``sa`` did not write."""
    if os.path.lexists(output) and not output.is_dir():
        raise ConfigError("--output", str(output), "a folder, not a file", hint=f"try {output.with_suffix('')}-scores")
    check_apart(output, inputs)
    check_replaceable(*files)
