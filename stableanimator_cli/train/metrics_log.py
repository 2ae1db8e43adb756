"""``metrics.jsonl``: one line a step, with what validation measured after it, cut back to the checkpoint on resume; and
losses that are out of proportion."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from stableanimator_cli.errors import CheckFailed
from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.readers import read_json_lines
from stableanimator_cli.readers_fields import Fields

METRICS = "metrics.jsonl"
_REMEMBERED = 101  # losses that the median is taken of
_BYTES = 2**30  # of the file: millions of steps
_FEWEST = 20  # before which no loss is called a spike


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines that are whole; a last line that a kill cut in two is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    what, hint = "the metrics of a run", f"delete {path}, or what follows the line before it"
    rows = []
    for number, value in read_json_lines(path, what, nan=True, cut=True, limit=_BYTES, hint=hint):
        row = replace(Fields.of(value, path, what, hint=hint), where=f"line {number}: ")
        row.whole("step")
        row.number("loss", nan=True)
        rows.append(dict(row.table))
    return rows


class Metrics:
    """Open for one run. ``upto`` steps stay of what is there, the lines after them are of steps that were lost. One
    rank writes; all of them remember, so that they stop together."""

    def __init__(self, run: Path, upto: int, *, writes: bool = True) -> None:
        self.path = run / METRICS
        kept = [row for row in read_metrics(run) if row["step"] <= upto]
        self.losses = deque((row["loss"] for row in kept), maxlen=_REMEMBERED)
        self._file: TextIO | None = self._begun(kept) if writes else None

    def _begun(self, rows: Sequence[Mapping[str, Any]]) -> TextIO:
        """The file with these rows in it, to be gone on with."""
        with atomic_write(self.path) as part, translate_os_errors(self.path):
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with translate_os_errors(self.path):
            return self.path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """One step; on the disk when this returns, as far as the system says."""
        if self._file is not None:
            with translate_os_errors(self.path):
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
        self.losses.append(row["loss"])

    def add(self, values: Mapping[str, Any]) -> None:
        """Put what was measured after the last step into its line."""
        if self._file is not None:
            self._file.close()
            *before, last = read_metrics(self.path.parent)
            self._file = self._begun([*before, {**last, **values}])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def check_spike(self, loss: float, norm: float, factor: float) -> str | None:
        """What is wrong with a step, or None: loss or gradient not finite, or a loss ``factor`` times the median of the
        last hundred (0: not looked at)."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if not factor or len(self.losses) < _FEWEST:
            return None
        middle = statistics.median(self.losses)
        if loss > factor * middle:
            return f"the loss {loss:.4g} is more than {factor:g} times the median of late, {middle:.4g}"
        return None


def bad_batch(step: int, what: str, samples: Sequence[tuple[str, Sequence[int], float]]) -> CheckFailed:
    """The error for a suspicious step: ``samples`` as (clip, frames, loss), named with the worst first."""
    worst = sorted(samples, key=lambda sample: -sample[2] if math.isfinite(sample[2]) else -math.inf)
    told = "; ".join(f"{clip} frames {_spans(frames)} (loss {loss:.4g})" for clip, frames, loss in worst)
    return CheckFailed(
        f"step {step}: {what}; the batch was {told}",
        hint="the last checkpoint is good. Look at these clips, lower --lr, or, where the loss was "
        "finite, go on with --resume RUN --spike 0",
    )


def _spans(frames: Sequence[int]) -> str:
    return ",".join(map(str, frames)) if len(frames) <= 4 else f"{frames[0]} to {frames[-1]} ({len(frames)})"
