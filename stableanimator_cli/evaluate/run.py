"""``sa evaluate`` from flags to files: which task it is, and the plain one, videos against their ground truth.

Each task is imported when it is the one: torch takes seconds to load, and who mistypes a name waits for none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stableanimator_cli.config_evaluate import EvaluateConfig
from stableanimator_cli.config_toml import resolve
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.evaluate.driven import find_poses
from stableanimator_cli.evaluate.pairs import Pair, by_name, find_pictures, match
from stableanimator_cli.talk import Silent, Talk

if TYPE_CHECKING:
    from stableanimator_cli.evaluate.animated import Animate
    from stableanimator_cli.evaluate.scores import Table


class Result(Protocol):
    """What any task gives the command line."""

    @property
    def exit_code(self) -> int: ...

    def to_json(self) -> dict[str, Any]: ...

    def summary(self) -> str: ...

    def shown(self) -> list[Table]: ...


def run(
    *,
    flags: Mapping[str, Any],
    animate: Animate,
    config_file: Path | None = None,
    talk: Talk | None = None,
) -> Result:
    """Score videos. ``flags`` by option name, None where not given; see ``config_evaluate.EvaluateConfig``.

    Writes into ``--output``, each file whole or not at all. Raises ``SaError``.
    """
    talk = talk or Silent()
    names = {"inputs": "predicted reference"}
    config = resolve(EvaluateConfig, {names.get(key, key): value for key, value in flags.items()}, config_file)
    if config.output is not None:
        _check_output(config.output, config.inputs)
    if config.study:
        from stableanimator_cli.evaluate.study import write_study

        return write_study(config, with_sides, talk)
    if config.tally:
        from stableanimator_cli.evaluate.tally import tally

        return tally(config)
    if config.ablation is not None:
        from stableanimator_cli.evaluate.ablation import run_ablation

        return run_ablation(config, animate, talk)
    if config.bench is not None:
        from stableanimator_cli.evaluate.bench import run_bench

        return run_bench(config, animate, talk)
    return _compare(config, talk)


def _compare(config: EvaluateConfig, talk: Talk) -> Result:
    pairs = with_sides(match(*config.inputs), config)
    from stableanimator_cli.evaluate.compare import measuring

    bench = measuring(config, talk)
    return bench.finish(bench.measure(pairs), {})


def with_sides(pairs: Sequence[Pair], config: EvaluateConfig) -> list[Pair]:
    """Pairs with their reference pictures and motions, as ``--reference-picture`` and ``--poses`` give them."""
    sides: dict[str, dict[str, Path]] = {}
    for field, path, kind, find in (
        ("reference", config.reference_picture, "picture", find_pictures),
        ("poses", config.poses, "motion", find_poses),
    ):
        if path is not None:
            sides[field] = by_name(pairs, path, kind, find(path))
    return [replace(pair, **{field: named[pair.name] for field, named in sides.items()}) for pair in pairs]


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError("--output", str(output), "a folder, not a file", hint=f"try {output.with_suffix('')}-scores")
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise BadInput(path, "the folder of the scores", "videos in another folder", hint="choose another -o")
