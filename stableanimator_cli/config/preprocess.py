"""What a run of ``sa preprocess`` is asked to do. See ``config`` for how flags, file and defaults are merged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli.config.animate import Range, Size, dump_range, dump_size, parse_fps, parse_range, parse_size
from stableanimator_cli.config.schema import check_choices, option, paths_of, require
from stableanimator_cli.errors import ConfigError

Align = Literal["upstream", "affine", "bones", "similarity", "none"]
Shard = tuple[int, int]


def parse_inputs(value: Any, label: str = "INPUT") -> tuple[Path, ...]:
    """Paths from the command line, or from TOML one a line of a text."""
    paths = paths_of(value, label)
    require(bool(paths), label, value, "one path or more")
    return paths


def parse_shard(value: str | Shard, label: str = "--shard") -> Shard:
    """``"0/4"`` -> (0, 4): the first of four parts of the list."""
    if isinstance(value, tuple):
        return value
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*([1-9]\d{0,5})\s*", value) if isinstance(value, str) else None
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(label, value, "I/N with I from 0 to N - 1, as 0/4")
    return int(match[1]), int(match[2])


def _dump_inputs(inputs: tuple[Path, ...]) -> str:
    return "\n".join(map(str, inputs))


def _dump_shard(shard: Shard) -> str:
    return f"{shard[0]}/{shard[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessConfig:
    """One run of ``sa preprocess``.

    ``output`` is the folder of clips, or the file or folder that a motion is converted to; ``poses`` the skeleton video
    of one clip. ``every`` detects people in every k-th frame only; ``gap`` is the longest gap in frames that is closed,
    ``smooth`` the width of the smoothing in frames, 0 for none. ``source`` says whether a clip folder links to its
    video or holds a copy. ``ray`` is the address of a cluster, ``local`` for one on this machine. ``person`` None is
    the largest of a video, and everybody of a motion that is converted; ``size`` (width, height), ``order`` and ``to``
    are about conversions alone.
    """

    inputs: tuple[Path, ...] = option("INPUT", parse=parse_inputs, dump=_dump_inputs)
    output: Path | None = option("--output", None)
    poses: Path | None = option("--poses", None)
    layout: Literal["clips", "upstream"] = option("--layout", "clips")
    to: Literal["json", "png"] = option("--to", "json")
    model: str | None = option("--model", None)
    order: Literal["134", "133"] = option("--order", "134")
    size: Size | None = option("--size", None, parse=parse_size, dump=dump_size)
    person: str | None = option("--person", None)
    align: Align = option("--align", "none")
    reference: Path | None = option("--reference", None)
    smooth: float = option("--smooth", 0.0)
    gap: int = option("--gap", 8)
    every: int = option("--every", 1)
    detect_threshold: float = option("--detect-threshold", 0.3)
    frames: Range | None = option("--frames", None, parse=parse_range, dump=dump_range)
    fps: Fraction | None = option("--fps", None, parse=parse_fps)
    source: Literal["link", "copy"] = option("--source", "link")
    preview: bool = option("--preview", False)
    lint: bool = option("--lint", False)
    workers: int = option("--workers", 1)
    shard: Shard | None = option("--shard", None, parse=parse_shard, dump=_dump_shard)
    ray: str | None = option("--ray", None)
    device: str = option("--device", "auto")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.person is not None:
            known = re.fullmatch(r"largest|all|\d{1,6}|[^,]+,[^,]+,[^,]+,[^,]+", self.person)
            require(bool(known), "--person", self.person, "largest, all, a person's number, or a box x0,y0,x1,y1")
        require(math.isfinite(self.smooth) and 0 <= self.smooth <= 1000, "--smooth", self.smooth, "0 to 1000")
        require(0 <= self.gap <= 10_000, "--gap", self.gap, "0 to 10000 frames")
        require(1 <= self.every <= 64, "--every", self.every, "1 to 64 frames")
        require(0 < self.detect_threshold < 1, "--detect-threshold", self.detect_threshold, "between 0 and 1")
        require(1 <= self.workers <= 256, "--workers", self.workers, "1 to 256")
        if self.fps is not None:
            require(0 < self.fps <= 1000, "--fps", str(self.fps), "more than 0 and at most 1000")
        if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device) is None:
            raise ConfigError("--device", self.device, "auto, cpu, cuda, cuda:N or mps")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """What makes sense only together, or only apart."""
        if self.align != "none" and self.reference is None:
            raise ConfigError("--align", self.align, "a --reference PICTURE to align to")
        if self.ray is not None and self.workers > 1:
            raise ConfigError("--workers", self.workers, "no --workers with --ray", hint="the cluster decides how many")
        if self.preview and self.poses is None:
            raise ConfigError("--preview", "on", "--poses OUT.mp4, beside which the preview goes")
        if self.poses is not None and self.poses.suffix.lower() not in (".mp4", ".mov", ".m4v"):
            raise ConfigError("--poses", str(self.poses), "a name ending in .mp4 or .mov", hint="-o writes other forms")

    @property
    def who(self) -> str:
        """Whose motion is taken from a video: ``largest`` where nobody was named."""
        return self.person or "largest"

    def of_clip(self) -> dict[str, Any]:
        """The settings that decide what a clip holds: a change of one of them makes clips anew."""
        return {
            "layout": self.layout,
            "person": self.who,
            "smooth": self.smooth,
            "gap": self.gap,
            "every": self.every,
            "detect_threshold": self.detect_threshold,
            "frames": None if self.frames is None else list(self.frames),
            "fps": None if self.fps is None else str(self.fps),
            "source": self.source,
        }
