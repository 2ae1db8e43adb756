"""Reports of a run over many videos: ``index.jsonl`` and ``report.json``, from the clips in the output folder.

The index does not depend on interruptions or on the processes that wrote the clips. Seconds and hosts are in
``report.json`` under ``host``.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stableanimator_cli import __version__
from stableanimator_cli.files import MARK, atomic_write, json_text, translate_os_errors
from stableanimator_cli.preprocess.clip import Outcome, write_json
from stableanimator_cli.readers import read_json_lines

INDEX, REPORT, PAGE = "index.jsonl", "report.json", "report.html"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessReport:
    """Result of a run. ``output`` is the folder of clips, or the file written: what a script needs next."""

    output: Path
    clips: int = 0
    made: int = 0
    cached: int = 0
    frames: int = 0
    failed: tuple[Mapping[str, Any], ...] = ()
    pending: int = 0
    poses: Mapping[str, Any] | None = None
    report: Path | None = None
    message: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return 7 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"output": str(self.output), "frames": self.frames}
        if self.report is not None:
            data |= {"clips": self.clips, "made": self.made, "kept": self.cached, "pending": self.pending}
            data |= {"failed": list(self.failed), "report": str(self.report)}
        if self.poses is not None:
            data["poses"] = dict(self.poses)
        data |= dict(self.data)
        if self.failed:
            data |= {"error": "batch-failed", "message": self.message, "exit_code": self.exit_code}
        return data

    def summary(self) -> str:
        return str(self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessPlan:
    """The plan of a run, from ``--plan``."""

    data: Mapping[str, Any]
    exit_code: int = 0
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(self.data)

    def summary(self) -> str:
        return "\n".join(f"{name:10} {value}" for name, value in self.data.items() if name != "config")


def index_line(outcome: Outcome, out: Path) -> dict[str, Any]:
    """One line of ``index.jsonl``."""
    source = outcome.source
    line: dict[str, Any] = {
        "number": source.number,
        "clip": None,
        "status": outcome.status,
        "source": str(source.path.resolve()),
        MARK: __version__,
    }
    if outcome.status == "ok" and outcome.folder is not None:
        record = outcome.record
        line |= {
            "clip": outcome.folder.relative_to(out).as_posix(),
            "frames": record["frames"],
            "size": record["size"],
            "fps": record["fps"],
            "people": len(record["people"]["kept"]),
            "findings": [one["code"] for one in record["findings"]],
            "sha256": record["source"]["sha256"],
            "key": record["key"],
        }
    elif outcome.error is not None:
        line["error"] = {key: outcome.error[key] for key in ("error", "message", "hint")}
    return line


def write_index(out: Path, outcomes: Sequence[Outcome]) -> None:
    """Write ``index.jsonl``."""
    lines = [index_line(outcome, out) for outcome in outcomes]
    with atomic_write(out / INDEX) as temp, translate_os_errors(out / INDEX):
        temp.write_text("".join(json_text(line) for line in lines), encoding="utf-8")


def listed_clips(out: Path) -> set[Path] | None:
    """Folders of the clips in ``index.jsonl``, which are those that ``sa train`` reads; None without an index."""
    if not (out / INDEX).is_file():
        return None
    hint = "run the same `sa preprocess` again: it rewrites the index"
    rows = (row for _, row in read_json_lines(out / INDEX, "an index of clips", hint=hint) if isinstance(row, dict))
    return {out / str(row.get("clip")) for row in rows if row.get("status") == "ok"}


def write_report(
    out: Path,
    outcomes: Sequence[Outcome],
    *,
    config: Mapping[str, Any],
    host: Mapping[str, Any],
    misalignment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``report.json`` and return its data: totals, quality and findings per clip, reasons of failures."""
    done = [outcome for outcome in outcomes if outcome.status == "ok"]
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    codes = Counter(one["code"] for outcome in done for one in outcome.record["findings"])
    digests = Counter(outcome.record["source"]["sha256"] for outcome in done)
    data = {
        "format": FORMAT,
        "stableanimator-cli": __version__,
        "config": dict(config),
        "totals": {
            "videos": len(outcomes),
            "clips": len(done),
            "failed": len(failed),
            "pending": len(outcomes) - len(done) - len(failed),
            "frames": sum(outcome.record["frames"] for outcome in done),
            "findings": dict(sorted(codes.items())),
            "same_source": sum(count - 1 for count in digests.values()),
        },
        "failed": [
            {"source": str(outcome.source.path.resolve()), "name": outcome.source.name, **(outcome.error or {})}
            for outcome in failed
        ],
        "clips": [
            {
                "clip": outcome.folder.relative_to(out).as_posix() if outcome.folder else None,
                "source": outcome.record["source"],
                "size": outcome.record["size"],
                "fps": outcome.record["fps"],
                "quality": outcome.record["quality"],
                "repairs": {key: outcome.record["repairs"].get(key, 0) for key in ("frames", "points")},
                "findings": outcome.record["findings"],
                "misalignment": (misalignment or {}).get(outcome.source.name),
            }
            for outcome in done
        ],
        "host": {"python": platform.python_version(), "system": platform.platform(), **host},
    }
    write_json(out / REPORT, data)
    return data
