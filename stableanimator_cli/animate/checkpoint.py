"""Checkpoint of an unfinished run: the same command resumes it and ends in the same bytes.

All noise is keyed by seed, name and frame. So a run is its latents (and a multistep sampler's last estimate), its step,
and the results of face optimisation and the identity gate so far. They are stored in one hidden safetensors file beside
the output, ``.OUT.mp4.state``. Its metadata holds the rest as JSON, with the fingerprint of everything that decides the
bytes. The file is written every few seconds and takes at most a twentieth of the time. It is deleted once the video and
its record are complete.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stableanimator_cli.animate import fingerprint
from stableanimator_cli.animate.identity_gate import FaceSimilarity
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.diffusion.face_optimization import RefineLogEntry, Target
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError, SaError
from stableanimator_cli.files import MARK, atomic_write, remove_temporary_files
from stableanimator_cli.progress import Reporter
from stableanimator_cli.readers import parse_json
from stableanimator_cli.records import STRIDE, ModelFolder

FORMAT = "1"
INTERVAL = 5.0  # seconds between two writes
_WRITE_RATIO = 20  # a write may take one part in this many of the time between two writes


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingState:
    """One sampling of the video after ``step`` steps: ``latents`` float32[t,c,h/8,w/8], the ``denoised`` estimate of
    the last step if the sampler needs it for the next, the log and targets of face optimisation so far, and other
    tensors that the backbone needs to resume (``render.SampleOptions.extra``)."""

    latents: Tensor
    step: int
    denoised: Tensor | None = None
    log: tuple[RefineLogEntry, ...] = ()
    targets: tuple[Target, ...] = ()
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestSample:
    """The best sampling that the identity gate has measured, and its windows that failed."""

    state: SamplingState
    identity: FaceSimilarity
    failed: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An unfinished run: the current sampling, the windows of each retry (the current one last), the best earlier
    sampling, the network calls so far, and how many times the run was resumed."""

    state: SamplingState
    attempts: tuple[tuple[int, ...], ...] = ()
    best: BestSample | None = None
    calls: Counter[str]
    resumed: int = 0


class CheckpointManager:
    """Reads and writes the checkpoint of one run. ``restored`` is an earlier run's, None if there is none to resume.

    ``saved``: whether a checkpoint is on disk. ``inputs``: path and digest of each input when the run started.
    """

    def __init__(
        self,
        config: AnimateConfig,
        model: ModelFolder,
        device: DevicePlan,
        reporter: Reporter,
        *,
        restart: bool = False,
    ) -> None:
        """Raises ``ConfigError`` if the output has a checkpoint of other settings, inputs or weights; ``restart``
        deletes it."""
        self.path = config.state_path
        self.saved = False
        self.restored: Checkpoint | None = None
        self._reporter = reporter
        self._config = config
        self._model = model
        self.inputs = fingerprint.input_files(config)
        self._cheap = fingerprint.settings(config) | fingerprint.inputs(self.inputs) | fingerprint.machine(device)
        self._people: fingerprint.Fingerprint = {}
        self._stored_people: fingerprint.Fingerprint = {}
        self._due = time.monotonic() + INTERVAL
        if restart:
            self.path.unlink(missing_ok=True)
        elif self.path.exists() and all(path.exists() for path in config.inputs.values()):
            self.restored = self._read()
        if self.restored is None:  # perhaps a run was killed before its first checkpoint
            _remove_temporary_files(config, platform.node())

    @cached_property
    def facts(self) -> fingerprint.Fingerprint:
        """With digests of the weights, which are read only once a checkpoint exists or is written."""
        return self._cheap | fingerprint.weights(self._model)

    def set_people(self, people: fingerprint.Fingerprint) -> None:
        """People and faces as they were detected (``fingerprint.people``), for what is saved from now on. Raises
        ``ConfigError`` if the restored checkpoint began with others, or does not know with whom."""
        self._people = people
        if self.restored is None or self._stored_people == people:
            return
        if not self._stored_people:
            raise ConfigError(
                "--output",
                str(self._config.target),
                "an unfinished run that records who has which face; this one began with one face or an older version",
                hint="add --restart to start over, or choose another -o",
            )
        differences = fingerprint.diff(self._stored_people, people)
        raise self._refusal(differences, f" after {self.restored.state.step} steps")

    def due(self) -> bool:
        return time.monotonic() >= self._due

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, complete or not at all. A full disk is a warning: the run continues without."""
        facts, started = self.facts | self._people, time.monotonic()
        tensors, fields = _pack(checkpoint)
        fields |= {"facts": facts, "host": platform.node()}
        metadata = {MARK: FORMAT, "format": FORMAT, "state": json.dumps(fields)}
        try:
            with atomic_write(self.path, marked=True) as temp:
                temp.write_bytes(save(tensors, metadata=metadata))
        except (OSError, SaError) as error:
            self._reporter.warning(f"{self.path}: not written ({error}); this run cannot be resumed")
            self._due = float("inf")
            return
        self.saved = True
        self._due = time.monotonic() + max(INTERVAL, _WRITE_RATIO * (time.monotonic() - started))

    def delete(self) -> None:
        """Delete the checkpoint: the output is complete."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _read(self) -> Checkpoint | None:
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            if metadata.get("format") != FORMAT:
                raise self._refusal([f"format {metadata.get('format')} (now {FORMAT})"], "")
            fields = parse_json(metadata["state"], self.path, "the checkpoint of a run", nan=True)
            checkpoint = _unpack(tensors, fields)
            stored, host = fingerprint.current_settings(fields["facts"], self._cheap), str(fields["host"])
            height, width = checkpoint.state.latents.shape[-2:]
            stored.setdefault("size", f"{width * STRIDE}x{height * STRIDE}")  # once absent if the model's own
        except ConfigError:
            raise
        # whatever damage makes the code stumble that reads what it wrote, the run starts over
        except (OSError, SaError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            self._reporter.warning(f"{self.path}: not readable as the checkpoint of a run; starting over")
            return None
        # cheap comparisons first: a changed seed is reported before gigabytes of weights are read
        self._stored_people = {
            name: stored.pop(name)
            for name in list(stored)
            if name == fingerprint.PEOPLE or name.startswith(fingerprint.FACE_OF)
        }
        known = {name: value for name, value in stored.items() if name in self._cheap}
        differences = fingerprint.diff(known, self._cheap) or fingerprint.diff(stored, self.facts)
        if differences:
            raise self._refusal(differences, f" after {checkpoint.state.step} steps")
        _remove_temporary_files(self._config, host)
        self.saved = True
        return checkpoint

    def _refusal(self, differences: Sequence[str], when: str) -> ConfigError:
        return ConfigError(
            "--output",
            str(self._config.target),
            f"the settings of the unfinished run that was interrupted here{when}: {'; '.join(differences)}",
            hint="repeat that command to resume it, add --restart to start over, or choose another -o",
        )


def _pack(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    fields: dict[str, Any] = {
        "attempts": checkpoint.attempts,
        "calls": dict(checkpoint.calls),
        "resumed": checkpoint.resumed,
        "now": _pack_state(checkpoint.state, "now", tensors),
    }
    if checkpoint.best is not None:
        fields["best"] = _pack_state(checkpoint.best.state, "best", tensors) | {"failed": checkpoint.best.failed}
        identity = checkpoint.best.identity
        tensors["best.similarity"] = torch.from_numpy(identity.similarity)
        if identity.people:
            columns = [one.similarity for one in identity.people]
            tensors["best.people"] = torch.from_numpy(np.stack(columns, axis=1))
            fields["best"]["people"] = [one.person for one in identity.people]
    return tensors, fields


def _pack_state(state: SamplingState, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    tensors[f"{name}.latents"] = state.latents.detach().cpu().contiguous()
    if state.denoised is not None:
        tensors[f"{name}.denoised"] = state.denoised.detach().cpu().contiguous()
    # copies: the best sampling may share them, which safetensors refuses to write
    for key, value in state.extra.items():
        tensors[f"{name}.extra.{key}"] = value.detach().cpu().contiguous().clone()
    for index, target in enumerate(state.targets):
        tensors[f"{name}.target.{index}"] = target.vector.detach().cpu().clone()
    return {
        "step": state.step,
        "log": [asdict(entry) for entry in state.log],
        "boxes": [target.boxes for target in state.targets],
    }


def _unpack(tensors: dict[str, Tensor], fields: dict[str, Any]) -> Checkpoint:
    best = None
    if (row := fields.get("best")) is not None:
        identity = FaceSimilarity(similarity=tensors["best.similarity"].numpy())
        if "best.people" in tensors:
            identity = FaceSimilarity.of_people(tensors["best.people"].numpy(), row["people"])
        best = BestSample(state=_unpack_state(row, "best", tensors), identity=identity, failed=tuple(row["failed"]))
    return Checkpoint(
        state=_unpack_state(fields["now"], "now", tensors),
        attempts=tuple(tuple(windows) for windows in fields["attempts"]),
        best=best,
        calls=Counter(fields["calls"]),
        resumed=fields["resumed"],
    )


def _unpack_state(fields: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> SamplingState:
    boxes = [tuple(None if box is None else tuple(box) for box in row) for row in fields["boxes"]]
    prefix = f"{name}.extra."
    return SamplingState(
        latents=tensors[f"{name}.latents"],
        step=fields["step"],
        denoised=tensors.get(f"{name}.denoised"),
        log=tuple(RefineLogEntry(**entry) for entry in fields["log"]),
        targets=tuple(Target(boxes=row, vector=tensors[f"{name}.target.{index}"]) for index, row in enumerate(boxes)),
        extra={key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
    )


def _remove_temporary_files(config: AnimateConfig, host: str) -> None:
    """Remove temporary files of killed runs of this output, which is locked, unless its checkpoint was written on
    another machine: elsewhere process ids mean nothing."""
    if sys.platform == "win32" or host != platform.node():
        return
    for path in (config.state_path, config.preview_path, config.live_preview_path, config.record_path):
        remove_temporary_files(path.parent, re.escape(path.name))
    target = config.target
    remove_temporary_files(target.parent, rf"{re.escape(target.name)}(?:\.old)?", folders=True)
