"""The process that measures our rows of ``sa bench card``: ``python -m stableanimator_cli.bench.card_worker JOB``.

``JOB`` is JSON: ``device`` and ``small``. Every row opens its networks, measures and frees them, so that its peak is
its own. ``peak`` and ``predicted`` are bytes with weights: torch's CUDA allocator against ``sa animate --plan`` without
the reserve. On a CPU the peak is counted: weights and the outputs of operators.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stableanimator_cli import catalogue
from stableanimator_cli.bench import face_optimization, roofline, speed, training
from stableanimator_cli.bench.card_rows import NOT_COMPILED, VARIANTS, checkout, frames_of, size_of
from stableanimator_cli.bench.context import ClipShape
from stableanimator_cli.bench.counters import track_memory
from stableanimator_cli.bench.git import commit_of
from stableanimator_cli.bench.networks import FULL, open_bench_model, open_engine
from stableanimator_cli.bench.preprocessing import open_or_draw_clip
from stableanimator_cli.bench.rendering import make_request, render_frames
from stableanimator_cli.bench.results import environment
from stableanimator_cli.bench.row_process import NotApplicable, serve
from stableanimator_cli.config.animate import AnimateConfig, DeviceConfig
from stableanimator_cli.config.refine import RefineConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.capture import Detectors, extract_motion
from stableanimator_cli.detect.roles import ROLES
from stableanimator_cli.engine.cuda_graphs import GraphedCalls, Recorder
from stableanimator_cli.engine.device import DTYPES, DevicePlan, float32_precision
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.group_offload import bytes_of
from stableanimator_cli.engine.memory.prediction import RenderMemory
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.engine.memory.train import predict
from stableanimator_cli.engine.memory.train_step import random_inputs
from stableanimator_cli.engine.training import trainable_parameters
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.nets.unet_blocks import call_block
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.records import NETWORKS
from stableanimator_cli.train.optimizer import build_optimizer
from stableanimator_cli.train.stage import training_settings

Found = dict[str, Any]
STEPS, SMALL_STEPS = 25, 2


def describe_machine(device: torch.device) -> Found:
    """The environment of a card's page, with the commit of the checkout and the card's properties."""
    root = checkout()
    commit = None if root is None else commit_of(root, "docs/cards")  # this command writes pages there
    found = environment(device) | {"commit": commit}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"memory": card.total_memory, "capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda}
        found |= {"cards": torch.cuda.device_count()}
    return found


@dataclass(slots=True, kw_only=True)
class CardWorker:
    """Measure rows on ``device``; ``small``: the model ``puppet`` and small sizes."""

    device: torch.device
    small: bool
    _plain: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def measure_row(self, row: str) -> Found:
        """Measure a row by its name."""
        group = row.partition("/")[0]
        found = getattr(self, f"_{group}")(row)  # groups are those of ``card_rows``
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    def _hello(self, row: str) -> Found:
        return {"environment": describe_machine(self.device)}

    def _plan(self, **fields: Any) -> DevicePlan:
        if fields.get("compile", "off") != "off" and self.device.type == "cpu":
            raise NotApplicable(NOT_COMPILED)
        try:
            return DevicePlan.of(DeviceConfig(device=str(self.device), **fields))
        except ConfigError as error:
            raise NotApplicable(error.hint or error.message) from error

    @contextmanager
    def _engine(self, plan: DevicePlan) -> Iterator[Engine]:
        with open_engine(open_bench_model("puppet" if self.small else FULL), plan) as engine:
            yield engine

    def _measure(self, run: Callable[[], object], weights: int, times: int = 1) -> Found:
        """Seconds (the best of ``times``) and peak bytes of ``run``, which was run before. A GPU holds all that the row
        has loaded; on a CPU ``weights`` are added to what is counted."""
        wait = roofline.synchronizer(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        taken = []
        for _ in range(times):
            wait()
            started = time.perf_counter()
            run()
            wait()
            taken.append(time.perf_counter() - started)
        if self.device.type == "cuda":
            return {"seconds": min(taken), "peak": torch.cuda.max_memory_allocated(self.device)}
        return {"seconds": min(taken), "peak": weights + track_memory(run).peak}

    def _predict(
        self, engine: Engine, size: tuple[int, int], frames: int, face: str = "off"
    ) -> tuple[RenderMemory, Found]:
        """Predicted memory, and the FLOPs of a call of each network."""
        refine: Any = RefineConfig(face=face)  # type: ignore[arg-type]
        config = AnimateConfig(
            reference=Path("reference"), motion=Path("motion"), output=Path("output"), size=size,
            device=engine.plan.config, refine=refine,
        )  # fmt: skip
        estimator = MemoryEstimator(
            model=engine.model, device=self.device, dtype=engine.plan.dtype, size=size, frames=frames
        )
        return estimator.of(config), {name: counter.total for name, counter in estimator.work(config).items()}

    def _roofline(self, row: str) -> Found:
        dtype = DTYPES[row.partition("/")[2]]
        plan = self._plan(dtype="float32")
        with float32_precision(tf32=False):
            sizes, repeats = (roofline.TINY, 2) if self.small else (roofline.LARGE, roofline.REPEATS)
            roof, rows = roofline.measure_roof(plan, dtype, sizes, repeats)
        return {"gflops": roof.gflops, "bandwidth": roof.bandwidth, "seconds": sum(r["ms"] for r in rows) / 1e3}

    def _unet(self, row: str) -> Found:
        return self._guided_step(size_of(row), {})

    def _variant(self, row: str) -> Found:
        size = (64, 64) if self.small else (512, 512)
        if size not in self._plain:
            self._guided_step(size, {})
        return self._guided_step(size, VARIANTS[row.partition("/")[2]])

    def _guided_step(self, size: tuple[int, int], fields: Found) -> Found:
        """Both branches of one window, through the engine's settings ``fields``, and the error beside the plain way."""
        plan, frames = self._plan(**fields), 2 if self.small else 16
        with self._engine(plan) as engine, torch.no_grad(), engine.resident("unet"):
            unet: AnimationUNet = engine.networks["unet"]
            if unet.run is call_block:
                unet.run = engine._block_runner()
            call = GraphedCalls(unet, Recorder(plan.device)) if plan.config.cuda_graphs else unet
            with engine._attentions_on_device(unet):
                run = speed.guided_step(unet, ClipShape(size=size, frames=frames), plan, call)
            output = run().float().cpu()
            memory, work = self._predict(engine, size, frames)
            weights = memory.stages["UNet"][0]
            if plan.config.offload == "none" or self.device.type == "cpu":  # on a CPU nothing is offloaded
                weights -= memory.stages["VAE encoder"][0]
            found = self._measure(run, bytes_of(unet), times=3)
        if fields:
            found["error"] = speed.relative_error(self._plain[size], output)
        else:
            self._plain[size] = output
        return found | {"predicted": weights + memory.stages["UNet"][1], "tflop": 2 * work["unet"] / 1e12}

    def _render(self, row: str) -> Found:
        frames, size = frames_of(row), size_of(row)
        steps, window = (SMALL_STEPS, 4) if self.small else (STEPS, 16)
        with self._engine(self._plan()) as engine:
            requests = [
                make_request(size, frames, n, window=min(window, frames), overlap=1 if self.small else 4)
                for n in (1, steps)
            ]
            render_frames(engine, requests[0])  # loads the networks
            engine.calls.clear()
            weights = sum(bytes_of(engine.networks[role]) for role in NETWORKS)
            found = self._measure(lambda: render_frames(engine, requests[1]), weights)
            runs = 2 if self.device.type == "cpu" else 1  # counting runs it again
            memory, work = self._predict(engine, size, frames)
            flops = work["unet"] * engine.calls["unet"] + work["decoder"] * engine.calls["vae_decode"]
        return found | {"predicted": memory.allocated, "tflop": flops / runs / 1e12, "steps": steps}

    def _face(self, row: str) -> Found:
        mode = row.partition("/")[2]
        case = face_optimization.RefineCase()
        case = replace(case, size=(64, 64), frames=2, chunk=2, iterations=1) if self.small else replace(case, frames=16)
        with self._engine(self._plan()) as engine:
            clip = face_optimization.draw_clip(engine, case)
            hook = face_optimization.build_hook(engine, case, clip, mode)
            hook(clip.latents, face_optimization.STEP)
            vae = engine.networks["vae"]
            found = self._measure(lambda: hook(clip.latents, face_optimization.STEP), bytes_of(vae))
            memory, work = self._predict(engine, case.size, case.frames, mode)
            if mode == "crop":
                found["error"] = face_optimization.crop_error(engine, case, clip, clip.latents).image_error
        chunks = -(-case.frames // case.chunk)
        before = memory.stages["image encoder"][0]
        predicted = memory.stages["VAE encoder"][0] - before + memory.stages["face optimisation"][1]
        return found | {"predicted": predicted, "tflop": case.iterations * chunks * work["face"] / 1e12}

    def _train(self, row: str) -> Found:
        preset = row.partition("/")[2]
        config, stage, shape = training.preset_stage(preset, self.device, small=self.small)
        size, frames, dtype = shape.size, shape.frames, config.memory.dtype
        model = open_bench_model("puppet" if self.small or preset == "puppet" else FULL)
        settings = training_settings(config, stage)
        parts = training.open_parts(model, settings, self._plan(dtype=dtype))
        parts.model.to(self.device)
        optimizer = build_optimizer(config.optimizer, 0.0, trainable_parameters(parts.model).values())
        inputs = random_inputs(parts.model, 1, frames, size, self.device)
        loss = training.train_step(parts, inputs, optimizer)
        state = sum(bytes_in_state(one) for one in getattr(optimizer, "optimizers", [optimizer]))
        found = self._measure(lambda: training.train_step(parts, inputs, optimizer), bytes_of(parts.model) + state)
        on_cpu = self.device.type == "cpu"
        build = functools.partial(build_optimizer, config.optimizer, 0.0)
        planned = predict(model, settings, size=size, frames=frames, on_cpu=on_cpu, optimizer=build)
        if not torch.isfinite(loss).all():
            raise ValueError(f"the loss is {float(loss)}")
        return found | {"predicted": planned.total - planned.reserve, "size": f"{frames}x{size[0]}x{size[1]}"}

    def _detectors(self, row: str) -> Found:
        """People, poses and faces of a drawn clip, and the largest distance of a keypoint from the CPU's, in pixels."""
        if self.device.type == "cuda" and not onnx.on_card(str(self.device)):
            raise NotApplicable("ONNX Runtime is installed without CUDA: pip install onnxruntime-gpu")
        clip = open_or_draw_clip(None, (256, 256), 4 if self.small else 32)
        found, model = [], catalogue.open_model("puppet", ROLES)
        for device in (str(self.device), "cpu"):
            detectors = Detectors.open(model, device)
            extract_motion(clip, detectors)
            started = time.perf_counter()
            motion = extract_motion(clip, detectors).motion
            found.append((time.perf_counter() - started, motion.keypoints[..., :2]))
        (seconds, here), (_, there) = found
        error = float(np.nanmax(np.abs(here - there))) if here.shape == there.shape else None
        if error is None:
            raise ValueError(f"keypoints of shape {here.shape} on the card, {there.shape} on the CPU")
        return {"seconds": seconds, "error": error, "frames per second": clip.count / seconds}

    def _ranks(self, row: str) -> Found:
        """The same video by one and by two processes, through ``sa animate``; error in levels of 255."""
        if self.device.type == "cuda" and torch.cuda.device_count() < 2:
            raise NotApplicable("this machine has one card")
        size = (64, 64) if self.small else (256, 256)
        seconds, frames, digests = [], [], []
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            scene = sample_scene("test", 0, framing="portrait", size=size, frames=7, behaviour="wave")
            write_image(folder / "person.png", scene.reference(size).image)
            save_motion(folder / "motion.npz", scene.motion(size))
            for gpus in (1, 2):
                video = folder / f"{gpus}.mp4"
                words = f"animate person.png motion.npz -o {video.name} --model puppet --size {size[0]}x{size[1]}"
                words += " --steps 2 --window 4 --overlap 1 --preset fast --allow-no-face --force"
                words += f" --gpus {gpus} --device {self.device.type}"
                _run_sa(words.split(), folder)
                record = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
                seconds.append(record["seconds"]["denoise"])
                frames.append(np.stack([frame for _, frame in open_clip(video).frames()]).astype(int))
                digests.append(hashlib.sha256(video.read_bytes()).hexdigest())
        error = float(np.abs(frames[0] - frames[1]).max())
        return {"seconds": seconds[1], "one rank, s": seconds[0], "error": error, "same bytes": len(set(digests)) == 1}


def _run_sa(words: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "stableanimator_cli", *words, "--json", "--quiet"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": _path()})
    if run.returncode:
        lines = (run.stdout + run.stderr).strip().splitlines() or ["no message"]
        raise ValueError(f"sa animate ended with {run.returncode}: {lines[0]}")


def _path() -> str:
    """The folder that the package was imported from, in front of the others: the command runs in another folder."""
    here = str(Path(catalogue.__file__).resolve().parent.parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def bytes_in_state(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimiser's moments."""
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> None:
    job = json.loads(sys.argv[1])
    device = torch.device(job["device"])
    serve(CardWorker(device=device, small=job["small"]).measure_row)


if __name__ == "__main__":
    main()
