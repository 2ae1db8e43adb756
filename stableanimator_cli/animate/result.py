"""Results of ``sa animate``: the plan before a run, and ``OUT.json`` beside the video after it."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableanimator_cli import __version__, catalogue
from stableanimator_cli.animate import fingerprint, reference_face
from stableanimator_cli.animate.driving_frames import Driving
from stableanimator_cli.animate.identity_gate import FaceSimilarity, GateResult
from stableanimator_cli.animate.people import PlannedPeople, UndetectedPeople
from stableanimator_cli.animate.reference_face import FacesRefined
from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.catalogue.needed import Needed
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import to_toml
from stableanimator_cli.diffusion.face_optimization import RefineLogEntry
from stableanimator_cli.diffusion.guidance import window_branches
from stableanimator_cli.engine.device import peak_memory
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.memory.duration import Duration
from stableanimator_cli.engine.memory.fit import Choice
from stableanimator_cli.engine.memory.prediction import RenderMemory
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.files import atomic_write, sha256_of

if TYPE_CHECKING:
    from stableanimator_cli.animate.pipeline import AnimateJob

FORMAT = 1  # of OUT.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Animation:
    """A finished run: the video, its record, frames, exact rate and seconds per stage."""

    video: Path
    record: Path
    preview: Path | None
    frames: int
    fps: str
    seconds: Mapping[str, float]
    calls: Mapping[str, int]
    peak_bytes: Mapping[str, int]
    faces_refined: FacesRefined | None = None
    gate: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        paths = {"video": str(self.video), "record": str(self.record), "preview": self.preview and str(self.preview)}
        return asdict(self) | paths | {"warnings": list(self.warnings)}

    def summary(self) -> str:
        return str(self.video)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimationPlan:
    """Plan of a run, for ``--plan``. Nothing is loaded, and the model need not be downloaded."""

    data: Mapping[str, Any]

    @classmethod
    def of(
        cls, config: AnimateConfig, engine: Engine, request: RenderRequest, driving: Driving, memory: RenderMemory,
        duration: Duration, choices: Sequence[Choice] = (),
    ) -> AnimationPlan:  # fmt: skip
        """``choices``: settings changed by ``--max-memory``."""
        model, device = engine.model, engine.plan
        height, width = request.resized.shape[:2]
        mode = reference_face.mode_of(config, model)
        fetch = catalogue.download_of(model.downloads)
        people = (
            UndetectedPeople.of(config)
            if driving.undetected
            else PlannedPeople.of(config, driving.people, driving.numbers)
        )
        return cls(
            data={
                "model": model.name,
                "device": device.describe(),
                "processes": min(config.device.gpus, len(window_branches(request.plan, config.sampling.guidance))),
                "size": [width, height],
                "frames": request.frames,
                "fps": str(driving.fps),
                "seconds": round(float(request.frames / driving.fps), 3),
                "steps": config.sampling.steps,
                "windows": [list(window.frames) for window in request.plan],
                "weights": [list(window.weights) for window in request.plan],
                "face_optimization": mode,
                "people": people.to_json() if people else None,
                "calls": engine.backbone.count_calls(request),
                "weight_bytes": {
                    name: _bytes_of(model.files[name]) for name in model.networks if model.files[name].exists()
                },
                "memory": memory.to_json(),
                "duration": duration.to_json(),
                "download": fetch.to_json(),
                "chosen": [asdict(choice) for choice in choices],
                "text": {
                    "advice": device.advice(),
                    "denoiser": model.facts.denoiser,
                    "windows": request.plan.describe(),
                    "moving": " that shift from step to step (below: in the first)" if request.plan.shifted else "",
                    "faces": _faces(mode, config),
                    "people": people.describe() if people else "",
                    "memory": memory.describe() + (f"; the card has {device.card.memory} GiB" if device.card else ""),
                    "duration": duration.describe(),
                    "download": describe_download(fetch) if fetch.files else "",
                    "chosen": choices,
                },
                "config": tomllib.loads(to_toml(config)),
            }
        )

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in self.data.items() if key != "text"}

    def summary(self) -> str:
        d = self.data
        calls, text = d["calls"], d["text"]
        gib = sum(d["weight_bytes"].values()) / 2**30
        shallow = calls.get("unet_shallow", 0)
        cached = f", {shallow} of them with deep features of an earlier step (approximate)" if shallow else ""
        processes = f", {d['processes']} processes" if d["processes"] > 1 else ""
        return "\n".join(
            [
                f"model      {d['model']} ({gib:.2f} GiB of weights on disk)",
                f"device     {d['device']}{processes}{text['advice']}",
                f"output     {d['frames']} frames of {d['size'][0]}x{d['size'][1]} at {d['fps']} fps, "
                f"{d['seconds']:g} s",
                f"sampling   {d['steps']} steps, {len(d['windows'])} window(s){text['moving']}, "
                f"{calls[text['denoiser'].lower()]} {text['denoiser']} calls{cached}",
                f"faces      {text['faces']}",
                *([f"people     {text['people']}"] if text["people"] else []),
                f"decoding   {calls['vae_decode']} decoder calls",
                f"memory     {text['memory']}",
                f"time       {text['duration']}",
                *([f"download   {text['download']}"] if text["download"] else []),
                *(f"--max-memory      {choice}" for choice in text["chosen"]),
                text["windows"],
            ]
        )


def _bytes_of(path: Path) -> int:
    """Size of a file, or of a folder's files."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def describe_download(fetch: Needed) -> str:
    """Size and command of a download, and the free space for it."""
    folder = catalogue.cache_dir()
    near = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = f"{shutil.disk_usage(near).free / 1e9:.1f} GB are free at {near}"
    return f"{fetch.size}: {fetch.command}; {free}"


def _faces(mode: str, config: AnimateConfig) -> str:
    refine = config.refine
    if mode == "off":
        return "not optimised"
    first, last = refine.steps_of(config.sampling.steps)
    return f"optimised ({mode}) in steps {first}:{last}, {refine.iterations} iterations each, if a face is found"


def write(
    job: AnimateJob, *, log: Sequence[RefineLogEntry], faces: FacesRefined | None, identity: FaceSimilarity | None,
    gate: GateResult,
) -> Animation:  # fmt: skip
    """Write ``OUT.json``: enough to repeat the run and to check that it repeats.

    For a resumed run ``calls`` counts all parts; ``seconds`` and ``warnings`` are those of the last.
    """
    config, data = job.config, _record(job, log, faces, identity, gate)
    with atomic_write(config.record_path, marked=True) as temp:
        temp.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return Animation(
        video=config.target,
        record=config.record_path,
        preview=config.preview_path if config.has_preview_video else None,
        frames=job.request.frames,
        fps=data["output"]["fps"],
        seconds=data["seconds"],
        calls=job.timings.calls,
        peak_bytes=data["peak_bytes"],
        faces_refined=faces,
        gate=data["gate"],
        warnings=tuple(job.reporter.warnings),
    )


def _record(
    job: AnimateJob, log: Sequence[RefineLogEntry], faces: FacesRefined | None, identity: FaceSimilarity | None,
    gate: GateResult,
) -> dict[str, Any]:  # fmt: skip
    config, engine, request, driving = job.config, job.engine, job.request, job.driving
    return {
        "format": FORMAT,
        "stableanimator-cli": __version__,
        "config": tomllib.loads(to_toml(config)),
        "seed": config.sampling.seed,
        "model": {
            "name": engine.model.name,
            "path": str(engine.model.path),
            "sha256": weight_digests(engine.model),
        },
        "inputs": job.checkpoints.inputs,
        "output": {
            "path": str(config.target),
            "sha256": sha256_of(config.target),
            "frames": request.frames,
            "fps": str(driving.fps),
        },
        "motion": {
            "frames": list(driving.motion_frames),
            "times": None if driving.motion_times is None else [str(time) for time in driving.motion_times],
        },
        "face": request.face is not None,
        "people": [one.to_json() for one in job.face.people] or None,
        **{f"{name}_video_of": stream.person for name, stream in driving.streams.items()},
        "texture_error": None if job.texture_error is None else round(job.texture_error, 4),
        "identity": None if identity is None else identity.to_json(),
        "gate": gate.to_json(config.refine.min_csim),
        "redrawn_windows": [list(windows) for windows in gate.attempts],
        "face_optimization": "off" if job.refine is None else job.refine.settings.mode,
        "faces_refined": None if faces is None else asdict(faces),
        "refined": [asdict(entry) for entry in log],
        "warnings": list(job.reporter.warnings),
        "resumed": job.resumed,
        "windows": [list(window.frames) for window in request.plan],
        "device": engine.plan.describe(),
        "versions": {name: value for name, value in fingerprint.versions().items() if name != "stableanimator-cli"},
        "seconds": {name: round(value, 3) for name, value in job.timings.seconds.items()},
        "calls": job.timings.calls,
        "peak_bytes": peak_memory(engine.plan.device),
    }
