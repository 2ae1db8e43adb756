"""What a run of ``sa evaluate`` is asked to do. See ``config`` for how flags, file and defaults are merged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli.config.schema import check_choices, option, paths_of, require
from stableanimator_cli.errors import ConfigError

PUBLISHED_BENCHES = ("tiktok", "unseen100")
TABLES = ("table2", "table3", "table4", "table5")
_NUMBERS = re.compile(r"\s*\d{1,9}(\s*,\s*\d{1,9})*\s*")


def parse_paths(value: Any, label: str = "PREDICTED REFERENCE") -> tuple[Path, ...]:
    """Paths from the command line, or from TOML one a line of a text."""
    return paths_of(value, label)


def parse_numbers(value: Any, label: str) -> tuple[int, ...]:
    """``"16,32"`` -> (16, 32): whole numbers from 0."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, str) or _NUMBERS.fullmatch(value) is None:
        raise ConfigError(label, value, "whole numbers with commas between, as 16,32")
    return tuple(int(part) for part in value.split(","))


def parse_names(value: Any, label: str) -> tuple[str, ...]:
    """``"00335,00336"`` -> ("00335", "00336")."""
    if isinstance(value, tuple):
        return value
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if not names or not all(names) or any("/" in name for name in names):
        raise ConfigError(label, value, "names with commas between, as 00335,00336")
    return tuple(names)


def _dump(parts: tuple[Any, ...]) -> str:
    return ",".join(map(str, parts))


def _dump_paths(paths: tuple[Path, ...]) -> str:
    return "\n".join(map(str, paths))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """One run of ``sa evaluate``.

    ``inputs`` are PREDICTED and REFERENCE, the folders of a study, or what ``tally`` reads. ``output`` is the folder of
    the scores. ``protocol`` None: ``disco256`` for the published benches, else ``native``. ``model`` brings detectors
    and the face recogniser, and animates benches; ``judge`` is the independent recogniser. ``borders`` are first frames
    of windows or chunks where no run record tells them. ``bench`` is a name or a folder, ``data`` where published ones
    lie, ``ids`` which of their videos; ``figures`` and ``length`` how many puppets and frames of each, ``animate`` more
    settings of the animation, a TOML file. ``seeds`` are sampling seeds of an ablation. ``bootstrap_samples`` and
    ``seed``: the bootstrap; ``seed`` also sorts a study.
    """

    inputs: tuple[Path, ...] = option("PREDICTED REFERENCE", (), parse=parse_paths, dump=_dump_paths)
    output: Path | None = option("--output", None)
    protocol: Literal["disco256", "native"] | None = option("--protocol", None)
    truncate: bool = option("--truncate", False)
    reference_picture: Path | None = option("--reference-picture", None)
    poses: Path | None = option("--poses", None)
    borders: tuple[int, ...] | None = option("--borders", None, parse=parse_numbers, dump=_dump)
    model: str | None = option("--model", None)
    judge: str | None = option("--judge", None)
    bench: str | None = option("--bench", None)
    data: Path | None = option("--data", None)
    ids: tuple[str, ...] | None = option("--ids", None, parse=parse_names, dump=_dump)
    figures: int = option("--figures", 8)
    length: int = option("--length", 32)
    animate: Path | None = option("--animate", None)
    baselines: Path | None = option("--baselines", None, formerly="rivals", old_flag="--rivals")
    ablation: Literal["table2", "table3", "table4", "table5"] | None = option("--ablation", None)
    variants: Path | None = option("--variants", None)
    seeds: tuple[int, ...] = option("--seeds", (0, 1, 2), parse=parse_numbers, dump=_dump)
    study: bool = option("--study", False)
    tally: bool = option("--tally", False)
    bootstrap_samples: int = option("--bootstrap-samples", 200, formerly="draws", old_flag="--draws")
    seed: int = option("--seed", 0)
    device: str = option("--device", "auto")

    def __post_init__(self) -> None:
        check_choices(self)
        require(1 <= self.figures <= 10_000, "--figures", self.figures, "1 to 10000")
        require(1 <= self.length <= 100_000, "--length", self.length, "1 to 100000 frames")
        require(
            100 <= self.bootstrap_samples <= 1_000_000, "--bootstrap-samples", self.bootstrap_samples, "100 to 1000000"
        )
        require(0 <= self.seed < 2**63, "--seed", self.seed, "0 to 2**63 - 1")
        if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device) is None:
            raise ConfigError("--device", self.device, "auto, cpu, cuda, cuda:N or mps")
        self._check_task()

    def _check_task(self) -> None:
        """One task a run, and what belongs to it."""
        named = [
            name
            for name, given in (("--bench", self.bench and not self.ablation), ("--ablation", self.ablation),
                                ("--study", self.study), ("--tally", self.tally))
            if given
        ]  # fmt: skip
        if len(named) > 1:
            raise ConfigError(named[1], "on", f"one task a run, not {' with '.join(named)}")
        task = named[0] if named else None
        if task is None and len(self.inputs) != 2:
            raise ConfigError(
                "PREDICTED REFERENCE", " ".join(map(str, self.inputs)) or None, "two files or folders of videos",
                hint="name what was made and the ground truth, or say --bench puppet",
            )  # fmt: skip
        if task in ("--bench", "--ablation") and self.inputs:
            raise ConfigError("PREDICTED", str(self.inputs[0]), f"nothing beside {task}, which makes its own videos")
        if task == "--study" and len(self.inputs) < 2:
            raise ConfigError("--study", len(self.inputs), "two folders or more, ours first")
        if task == "--tally" and not self.inputs:
            raise ConfigError("--tally", None, "files of answers, or folders that hold them")
        if self.ablation is not None:
            if self.variants is None:
                raise ConfigError("--ablation", self.ablation, "--variants DIR, which holds a model folder a variant")
            distinct = len(set(self.seeds))
            require(distinct == len(self.seeds) >= 3, "--seeds", _dump(self.seeds), "three different seeds")
        elif self.variants is not None:
            raise ConfigError("--variants", str(self.variants), "--ablation table2, table3, table4 or table5")
        if self.baselines is not None and (self.bench is None or self.ablation is not None):
            raise ConfigError(
                "--baselines", str(self.baselines), "a --bench on whose videos they are scored, no --ablation"
            )
        if task in ("--bench", "--ablation", "--tally"):
            for name, path in (("--reference-picture", self.reference_picture), ("--poses", self.poses)):
                if path is not None:
                    raise ConfigError(
                        name, str(path), f"nothing beside {task}",
                        hint="leave it out" if self.tally else "a folder of a bench holds references/ and poses/",
                    )  # fmt: skip
        if self.output is None and task != "--tally":
            raise ConfigError("--output", None, "a folder for the scores", hint="add -o scores")

    @property
    def rules(self) -> Literal["disco256", "native"]:
        """The protocol of this run."""
        return self.protocol or ("disco256" if self.bench in PUBLISHED_BENCHES else "native")
