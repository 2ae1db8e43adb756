"""What a run that is broken off leaves, so that the same command goes on where it was and ends in the same bytes.

All noise is keyed by seed, name and frame, so a run is its latents, its step, and what face optimisation and the
identity gate have found so far. They lie in one hidden safetensors file beside the output, ``.OUT.mp4.state``, whose
metadata holds the rest as JSON and the facts (``same.py``) that decide the bytes. It is written every few seconds at
most and never takes more than a twentieth of the time; it goes away when the video and its record are whole.
"""

from __future__ import annotations

import contextlib
import glob
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stableanimator_cli.animate import fingerprint
from stableanimator_cli.animate.identity_gate import Identity
from stableanimator_cli.animate.validate import state_path
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.diffusion.face_optimization import RefineLogEntry, Target
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError, SaError
from stableanimator_cli.files import MARK, atomic_write, may_be_running
from stableanimator_cli.progress import Reporter
from stableanimator_cli.readers import parse_json
from stableanimator_cli.records import ModelFolder

FORMAT = "1"
INTERVAL = 5.0  # seconds of work that may be lost
_SHARE = 20  # at least so many times what a write took is worked before the next


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingState:
    """One drawing of the whole video, ``step`` steps into it: ``latents`` float32[t,c,h/8,w/8], and face optimisation's
    log and targets so far."""

    latents: Tensor
    step: int
    log: tuple[RefineLogEntry, ...] = ()
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BestSample:
    """The best drawing that the identity gate has measured, and its windows that failed."""

    drawn: SamplingState
    identity: Identity
    failed: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A run in the middle: the present drawing, the windows that each re-draw drew again (the present one last), the
    best drawing before it, what was called so far, and how often the run was taken up again."""

    now: SamplingState
    attempts: tuple[tuple[int, ...], ...] = ()
    best: BestSample | None = None
    calls: Counter[str]
    resumed: int = 0


class CheckpointManager:
    """Keeps the state of one run. ``found`` is what an earlier run left, None where there is nothing to go on from."""

    def __init__(
        self,
        config: AnimateConfig,
        model: ModelFolder,
        device: DevicePlan,
        reporter: Reporter,
        *,
        restart: bool = False,
    ) -> None:
        """Raises ``ConfigError`` where an unfinished run of other settings, inputs or weights lies in the output's
        place; ``restart`` throws it away."""
        self.path = state_path(config.output)
        self.kept = False
        self._talk = reporter
        self._config = config
        self._cheap = fingerprint.settings(config) | fingerprint.inputs(config) | fingerprint.machine(device)
        self._weights: Callable[[], fingerprint.Fingerprint] = lambda: fingerprint.weights(model)
        self._facts: fingerprint.Fingerprint | None = None
        self._due = time.monotonic() + INTERVAL
        self.found: Checkpoint | None = None
        if restart:
            self.path.unlink(missing_ok=True)
        elif self.path.exists() and all(path.exists() for path in fingerprint.inputs_of(config).values()):
            self.found = self._read()

    @property
    def facts(self) -> fingerprint.Fingerprint:
        """Weights are read for their digest only when a state is there, or is to be written for the first time."""
        if self._facts is None:
            self._facts = self._cheap | self._weights()
        return self._facts

    def due(self) -> bool:
        return time.monotonic() >= self._due

    def keep(self, saved: Checkpoint) -> None:
        """Write the state, whole or not at all. A disk that has no room for it costs the state, not the run."""
        facts, started = self.facts, time.monotonic()
        tensors, told = _packed(saved)
        told |= {"facts": facts, "host": platform.node()}
        try:
            with atomic_write(self.path, marked=True) as part:
                part.write_bytes(save(tensors, metadata={MARK: FORMAT, "format": FORMAT, "state": json.dumps(told)}))
        except (OSError, SaError) as error:
            self._talk.warning(f"{self.path}: not written ({error}); this run cannot go on after a break")
            self._due = float("inf")
            return
        self.kept = True
        self._due = time.monotonic() + max(INTERVAL, _SHARE * (time.monotonic() - started))

    def done(self) -> None:
        """The output is whole."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _read(self) -> Checkpoint | None:
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            if about.get("format") != FORMAT:
                raise self._refusal([f"format {about.get('format')} (now {FORMAT})"], "")
            told = parse_json(about["state"], self.path, "the state of a run", nan=True)
            saved = _unpacked(tensors, told)
            then, host = fingerprint.current_settings(told["facts"]), str(told["host"])
        except ConfigError:
            raise
        # read again by the same code that wrote it; whatever damage makes that stumble, the run starts over
        except (OSError, SaError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            self._talk.warning(f"{self.path}: not readable as the state of a run; it starts anew")
            return None
        # what is cheap to compare first, so that gigabytes are not read before a changed seed is said
        known = {name: value for name, value in then.items() if name in self._cheap}
        differ = fingerprint.diff(known, self._cheap) or fingerprint.diff(then, self.facts)
        if differ:
            raise self._refusal(differ, f" after {saved.now.step} steps")
        _sweep(self._config, host)
        self.kept = True
        return saved

    def _refusal(self, differ: Sequence[str], when: str) -> ConfigError:
        return ConfigError(
            "--output",
            str(self._config.output),
            f"what the run was begun with that was broken off here{when}: {'; '.join(differ)}",
            hint="repeat that command to go on with it, add --restart to begin anew, or choose another -o",
        )


def _packed(saved: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {
        "attempts": saved.attempts,
        "calls": dict(saved.calls),
        "resumed": saved.resumed,
        "now": _pack(saved.now, "now", tensors),
    }
    if saved.best is not None:
        told["best"] = _pack(saved.best.drawn, "best", tensors) | {"failed": saved.best.failed}
        tensors["best.similarity"] = torch.from_numpy(saved.best.identity.similarity)
    return tensors, told


def _pack(drawn: SamplingState, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    tensors[f"{name}.latents"] = drawn.latents.detach().cpu().contiguous()
    for index, target in enumerate(drawn.targets):
        tensors[f"{name}.target.{index}"] = target.vector.detach().cpu().clone()  # the best drawing may share it
    return {
        "step": drawn.step,
        "log": [asdict(entry) for entry in drawn.log],
        "boxes": [target.boxes for target in drawn.targets],
    }


def _unpacked(tensors: dict[str, Tensor], told: dict[str, Any]) -> Checkpoint:
    best = told.get("best")
    return Checkpoint(
        now=_unpack(told["now"], "now", tensors),
        attempts=tuple(tuple(row) for row in told["attempts"]),
        best=None
        if best is None
        else BestSample(
            drawn=_unpack(best, "best", tensors),
            identity=Identity(similarity=tensors["best.similarity"].numpy()),
            failed=tuple(best["failed"]),
        ),
        calls=Counter(told["calls"]),
        resumed=told["resumed"],
    )


def _unpack(told: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> SamplingState:
    boxes = [tuple(None if box is None else tuple(box) for box in row) for row in told["boxes"]]
    return SamplingState(
        latents=tensors[f"{name}.latents"],
        step=told["step"],
        log=tuple(RefineLogEntry(**entry) for entry in told["log"]),
        targets=tuple(Target(boxes=row, vector=tensors[f"{name}.target.{index}"]) for index, row in enumerate(boxes)),
    )


def _sweep(config: AnimateConfig, host: str) -> None:
    """Remove what killed runs of this output were writing: temporary files of processes that are gone. Only where the
    state was written on this machine; elsewhere process numbers mean nothing."""
    if sys.platform == "win32" or host != platform.node():
        return
    for path in (state_path(config.output), config.output, config.preview_path, config.record_path):
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            pid = part.name.split(".")[-2]
            if pid.isdecimal() and not may_be_running(int(pid)):
                part.unlink(missing_ok=True)
