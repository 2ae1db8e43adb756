"""Cases to videos by a model. What was animated from the same inputs with the same weights and settings is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.catalogue.download import digest
from stableanimator_cli.errors import BadInput, BatchFailed, Interrupted, SaError
from stableanimator_cli.evaluate.cases import Case
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.report import write_text
from stableanimator_cli.evaluate.run_record import read_record
from stableanimator_cli.files import MARK, check_replaceable, sha256_of
from stableanimator_cli.progress import Reporter
from stableanimator_cli.readers import read_json
from stableanimator_cli.records import ModelFolder

Animate = Callable[[Mapping[str, Any], Path | None], None]
"""Animates: flags of ``sa animate`` by option name, and a file of further settings. The command line brings it, for
verbs are blind to one another."""
MEMORY_FRAMES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Animator:
    """One model with fixed settings. ``flags`` are further flags of ``sa animate``."""

    model: ModelFolder
    name: str
    animate: Animate
    settings: Path | None
    flags: Mapping[str, Any]
    reporter: Reporter

    def animated(self, cases: Sequence[Case], folder: Path) -> list[Pair]:
        """Pairs to score, the videos in ``folder``. One that fails does not stop the others: ``BatchFailed`` at the
        end names the first."""
        pairs, failed = [], []
        weights = self._weights()
        with self.reporter.progress(len(cases), f"animate with {self.model.name}", "video") as bar:
            for case in cases:
                video = folder / f"{case.name}.mp4"
                try:
                    self._one(case, video, weights, {})
                except Interrupted:
                    raise
                except SaError as error:
                    failed.append((case.name, error))
                pairs.append(
                    Pair(name=case.name, predicted=video, truth=case.truth, reference=case.reference, poses=case.poses)
                )
                bar.update()
        if failed:
            name, first = failed[0]
            raise BatchFailed(
                f"{len(failed)} of {len(cases)} videos could not be animated; the first is {name}: {first.message}",
                hint=first.hint,
            )
        return pairs

    def memory(self, case: Case, folder: Path) -> dict[str, int]:
        """Most bytes in use while the first 16 frames of a case are animated: ``device`` where there is a GPU, ``host``
        the whole process; empty where the case is shorter."""
        video = folder / f"{case.name}.mp4"
        self._one(case, video, self._weights(), {"frames": f"0:{MEMORY_FRAMES}"})
        record = read_record(video) or {"output": {}}
        if record["output"].get("frames") != MEMORY_FRAMES:
            return {}
        return {key: int(value) for key, value in (record.get("peak_bytes") or {}).items()}

    def _one(self, case: Case, video: Path, weights: Mapping[str, str], more: Mapping[str, Any]) -> None:
        video.parent.mkdir(parents=True, exist_ok=True)
        flags = {"reference": case.reference, "motion": case.motion, "model": self.name, **self.flags, **more}
        asked = {
            "flags": {key: str(value) for key, value in flags.items() if key not in ("reference", "motion", "model")},
            "settings": None if self.settings is None else sha256_of(self.settings),
            "inputs": [sha256_of(case.reference), sha256_of(case.motion)],
            "weights": dict(weights),
        }
        note = video.with_name(f".{video.stem}.asked.json")
        check_replaceable(note)
        if _is_done(video, note, asked):
            return
        self.animate({**flags, "output": video}, self.settings)
        write_text(note, json.dumps({"tool": MARK, **asked, "video": sha256_of(video)}, indent=1) + "\n")

    def _weights(self) -> dict[str, str]:
        """Digests of all that decides a video."""
        files = {role: path for role, path in self.model.files.items() if role not in ("judge", "video")}
        return {role: sha256_of(path) if path.is_dir() else digest(path) for role, path in sorted(files.items())}


def _is_done(video: Path, note: Path, asked: Mapping[str, Any]) -> bool:
    try:
        told = read_json(note, "a note of what was animated")
    except BadInput:
        return False
    return video.is_file() and told == {"tool": MARK, **asked, "video": sha256_of(video)}
