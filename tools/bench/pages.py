"""Parts that the commands of long measurements share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from stableanimator_cli.bench.harness import Interval, bootstrap_interval
from stableanimator_cli.bench.results import environment, page_heading, update_page
from stableanimator_cli.bench.rows import Row
from tools.command import report

T = TypeVar("T")


def collect(rows: Iterable[T], describe: Callable[[T], str]) -> list[T]:
    """All rows; each is reported as soon as it is measured."""
    measured = []
    for row in rows:
        report(f"{len(measured)}: {describe(row)}")
        measured.append(row)
    return measured


def column(clips: Sequence[Mapping[str, Row]], variant: str, figure: str) -> np.ndarray:
    """A figure of one variant by clip, float64[n]; NaN for a clip without it."""
    values = (clip[variant][figure] for clip in clips)
    return np.array([np.nan if value is None else value for value in values], np.float64)


def mean_interval(values: np.ndarray) -> Interval | None:
    """Mean and bootstrap interval of the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    return bootstrap_interval(finite, np.mean) if len(finite) else None


def page_section(title: str, module: str, arguments: Sequence[str], text: str) -> str:
    """A generated section of a Markdown page: title, command and machine above the text."""
    return f"{page_heading(title, command_line(module, arguments), environment(torch.device('cpu')))}\n\n{text}"


def write_section(page: Path | None, name: str, section: str) -> None:
    """Put a section between its markers; nothing without a page."""
    if page is not None:
        update_page(page, {name: section})


def command_line(module: str, arguments: Sequence[str]) -> str:
    """The command for a page: folders by their last name only, without ``--page`` and ``--minutes``."""
    shown, rest = [], iter(arguments)
    for argument in rest:
        if argument in ("--page", "--minutes"):
            next(rest, None)
        else:
            shown.append(Path(argument).name if "/" in argument else argument)
    return shlex.join(["python", "-m", module, *shown])
