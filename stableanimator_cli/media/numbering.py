"""Numbers of the files of a folder with one file per frame."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from stableanimator_cli.media.image import SUFFIXES
from stableanimator_cli.progress import Reporter

_NUMBER = re.compile(r"(\D*|.*\D)(\d{1,18})(\D*)", re.ASCII)  # the last number of a name


def warn_of_missing_numbers(folder: Path, reporter: Reporter) -> None:
    """Report the message of ``missing_numbers``, if any."""
    if message := missing_numbers(folder):
        reporter.warning(message)


def missing_numbers(folder: Path) -> str | None:
    """A message if the numbers of a folder's images or JSON files jump, else None: later frames then move up.

    Numbers in equal steps, as of every second frame, do not jump. None also for a file, and for names of several forms.
    """
    if not folder.is_dir():
        return None
    kinds = (*SUFFIXES, ".json")
    files = [file for file in folder.iterdir() if file.suffix.lower() in kinds and not file.name.startswith(".")]
    matches = [_NUMBER.fullmatch(file.stem) for file in files]
    numbers = sorted(int(match[2]) for match in matches if match)
    forms = {(match[1], match[3]) for match in matches if match}
    if len(numbers) < len(files) or len(forms) != 1 or len({file.suffix for file in files}) != 1:
        return None
    steps = [after - before for before, after in pairwise(numbers)]
    if not steps:
        return None
    often = Counter(steps)
    usual = min(steps, key=lambda step: (-often[step], step))
    jumps = [index for index, step in enumerate(steps) if step > usual]
    if not jumps:
        return None
    before, after = numbers[jumps[0]], numbers[jumps[0] + 1]
    more = f" and at {len(jumps) - 1} more places" if len(jumps) > 1 else ""
    jump = f"after the file of number {before} comes that of {after}{more}"
    return f"{folder.name}: {jump}; frames are taken as consecutive"
