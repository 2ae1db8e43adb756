"""Animation of a bench's cases. A video of the same inputs, weights and settings is not animated again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.errors import BatchFailed, Interrupted, SaError
from stableanimator_cli.evaluate.cases import Case
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.run_record import read_record
from stableanimator_cli.evaluate.stamp import Stamp
from stableanimator_cli.files import sha256_of
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder

Animate = Callable[[Mapping[str, Any], Path | None], None]
"""Runs ``sa animate`` with flags by option name and a settings file. The command line provides it: verbs do not import
one another."""
MEMORY_FRAMES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseAnimator:
    """One model with fixed settings. ``flags`` are further flags of ``sa animate``."""

    model: ModelFolder
    name: str
    animate: Animate
    settings: Path | None
    flags: Mapping[str, Any]
    reporter: Reporter

    def animate_cases(self, cases: Sequence[Case], folder: Path) -> list[Pair]:
        """Animate into ``folder`` and return the pairs to score. A failure does not stop the other cases: the
        ``BatchFailed`` at the end names the first."""
        pairs, failed = [], []
        weights = self._weights()
        with self.reporter.progress(len(cases), f"animate with {self.model.name}", "video") as bar:
            for case in cases:
                video = folder / f"{case.name}.mp4"
                try:
                    self._animate(case, video, weights)
                except Interrupted:
                    raise
                except SaError as error:
                    # a copy has no traceback, whose frames hold tensors that the next case needs room for
                    failed.append((case.name, copy.copy(error)))
                pairs.append(case.pair(video))
                bar.update()
        if failed:
            name, first = failed[0]
            raise BatchFailed(
                f"{len(failed)} of {len(cases)} videos could not be animated; the first is {name}: {first.message}",
                hint=first.hint,
            )
        return pairs

    def measure_memory(self, case: Case, folder: Path) -> dict[str, int]:
        """Peak bytes while the first 16 frames of a case are animated: ``device`` if there is a GPU, ``host`` for the
        whole process; empty if the case is shorter, or cannot be animated: ``animate_cases`` reports that."""
        video = folder / f"{case.name}.mp4"
        try:
            self._animate(case, video, self._weights(), frames=f"0:{MEMORY_FRAMES}")
        except Interrupted:
            raise
        except SaError:
            return {}
        record = read_record(video) or {"output": {}}
        if record["output"].get("frames") != MEMORY_FRAMES:
            return {}
        return {key: int(value) for key, value in (record.get("peak_bytes") or {}).items()}

    def _animate(self, case: Case, video: Path, weights: Mapping[str, str], **more: Any) -> None:
        video.parent.mkdir(parents=True, exist_ok=True)
        flags = {**self.flags, **more}
        source = {
            "flags": {key: str(value) for key, value in flags.items()},
            "settings": None if self.settings is None else sha256_of(self.settings),
            "inputs": [sha256_of(case.reference), sha256_of(case.motion)],
            "weights": dict(weights),
            "model": self._model_digest(),
        }
        stamp = Stamp(video, "asked", source)
        if stamp.is_current():
            return
        inputs = {"reference": case.reference, "motion": case.motion, "model": self.name}
        self.animate({**inputs, **flags, "output": video}, self.settings)
        stamp.write()

    def _model_digest(self) -> str:
        """sha256 of what decides a video besides weights: recommended settings, configs of networks, channel order."""
        model = self.model
        facts = [dict(model.defaults), dict(model.configs), model.face_channel_order, model.backbone]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _weights(self) -> dict[str, str]:
        """Digests of all files that decide a video."""
        return weight_digests(self.model, sorted(self.model.files.keys() - {"judge", "video"}))
