"""``metrics.jsonl``: one line per step, with the results of validation after it; and detection of loss spikes."""

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
_HISTORY = 101  # number of losses for the median
_MAX_BYTES = 2**30  # millions of steps
_MIN_HISTORY = 20  # losses before spikes are detected


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All complete lines. A last line that a kill has truncated is ignored."""
    path = run / METRICS
    if not path.is_file():
        return []
    what, hint = "the metrics of a run", f"delete {path}, or its last lines"
    rows = []
    for number, value in read_json_lines(path, what, nan=True, cut=True, limit=_MAX_BYTES, hint=hint):
        row = replace(Fields.of(value, path, what, hint=hint), where=f"line {number}: ")
        row.whole("step")
        row.number("loss", nan=True)
        rows.append(dict(row.table))
    return rows


class Metrics:
    """The metrics of one run, truncated to the first ``upto`` steps: later ones were lost with their checkpoint.

    One rank ``writes``. All ranks keep the recent losses, so that they stop together.
    """

    def __init__(self, run: Path, upto: int, *, writes: bool = True) -> None:
        self.path = run / METRICS
        rows = [row for row in read_metrics(run) if row["step"] <= upto]
        self._step = upto
        self.losses = deque((row["loss"] for row in rows), maxlen=_HISTORY)
        self._file: TextIO | None = self._rewrite(rows) if writes else None

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> TextIO:
        """Write a file with these rows and open it to append."""
        with atomic_write(self.path) as temp, translate_os_errors(self.path):
            temp.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with translate_os_errors(self.path):
            return self.path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one step and flush."""
        if self._file is not None:
            with translate_os_errors(self.path):
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
        self.losses.append(row["loss"])
        self._step = row["step"]

    def add(self, values: Mapping[str, Any]) -> None:
        """Add ``values`` to the line of the last step, unless the user has deleted it."""
        if self._file is not None:
            self._file.close()
            rows = read_metrics(self.path.parent)
            if rows and rows[-1]["step"] == self._step:
                rows[-1] |= values
            self._file = self._rewrite(rows)

    def close(self) -> None:
        if self._file is not None:
            with translate_os_errors(self.path):
                self._file.close()

    def check_spike(self, loss: float, norm: float, factor: float) -> str | None:
        """The problem with a step, or None.

        Loss or gradient norm is not finite, or the loss is more than ``factor`` times the median of recent losses
        (0 disables this check).
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if not factor or len(self.losses) < _MIN_HISTORY:
            return None
        median = statistics.median(self.losses)
        if loss > factor * median:
            return f"the loss {loss:.4g} is more than {factor:g} times the median of recent losses, {median:.4g}"
        return None


def bad_batch(step: int, problem: str, samples: Sequence[tuple[str, Sequence[int], float]]) -> CheckFailed:
    """The error for a bad step. ``samples`` are (clip, frames, loss), listed with the worst first."""
    worst = sorted(samples, key=lambda sample: -sample[2] if math.isfinite(sample[2]) else -math.inf)
    batch = "; ".join(f"{clip} frames {_format_frames(frames)} (loss {loss:.4g})" for clip, frames, loss in worst)
    return CheckFailed(
        f"step {step}: {problem}; the batch was {batch}",
        hint="the last checkpoint is intact: check these clips, lower --lr, or, if the loss was finite, "
        "continue with --resume RUN --spike 0",
    )


def _format_frames(frames: Sequence[int]) -> str:
    return ",".join(map(str, frames)) if len(frames) <= 4 else f"{frames[0]} to {frames[-1]} ({len(frames)})"
