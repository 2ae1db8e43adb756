"""Complete renderings from image and skeletons to frames: by variant, by stage and by length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch

from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.counters import count_all
from stableanimator_cli.bench.harness import bootstrap_interval
from stableanimator_cli.bench.networks import open_engine
from stableanimator_cli.bench.results import Table
from stableanimator_cli.config.animate import DecodeConfig, SamplingConfig
from stableanimator_cli.diffusion.windows import Blend, plan_windows
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Timings, render

CHUNK = 4
LENGTHS = (16, 64, 300)


@dataclass(frozen=True, slots=True)
class NoisePoses:
    """Skeletons of noise, generated on access: speed does not depend on their content."""

    frames: int
    size: tuple[int, int]

    def __len__(self) -> int:
        return self.frames

    def frame(self, index: int) -> np.ndarray:
        width, height = self.size
        return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_request(
    size: tuple[int, int], frames: int, steps: int, *, window: int = 16, overlap: int = 4, blend: Blend = "smooth"
) -> RenderRequest:
    """A guided rendering with a face."""
    rng = np.random.default_rng(0)
    width, height = size
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return RenderRequest(
        image=image,
        resized=image,
        face=rng.standard_normal(512).astype(np.float32),
        poses=NoisePoses(frames, size),
        plan=plan_windows(frames, length=window, overlap=overlap, blend=blend),
        sampling=SamplingConfig(steps=steps, guidance=(3.0, 3.0)),
        decode=DecodeConfig(chunk=CHUNK, overlap=0),
        noise_period=window,
    )


def render_frames(engine: Engine, request: RenderRequest, stages: Timings | None = None) -> np.ndarray:
    return np.stack(list(render(engine, request, stages or Timings())))


def time_rendering(bench: BenchRun) -> list[Table]:
    """Time renderings with several device plans, and the stages of the plain one."""
    model, plan, shape, steps = bench.model(), bench.plan, bench.shape((128, 128), 16), bench.config.steps or 4
    plans = {
        "plain": plan,
        "pose features recomputed in each call": replace(plan, config=replace(plan.config, pose_budget_mb=0)),
        "one network at a time (--offload model)": replace(plan, config=replace(plan.config, offload="model")),
    }
    request = make_request(shape.size, shape.frames, steps)
    engines = {name: open_engine(model, one) for name, one in plans.items()}
    stages: list[Timings] = []
    frames_of, costs, calls = {}, {}, {}

    def run_variant(name: str) -> np.ndarray:
        seen = Timings()
        engines[name].calls.clear()
        frames_of[name] = render_frames(engines[name], request, seen)
        calls[name] = seen.calls
        if name == "plain":
            stages.append(seen)
        return frames_of[name]

    try:
        for name in engines:
            costs[name] = count_all(lambda name=name: run_variant(name))
            bench.tick()
        stages.clear()  # counted runs are slower
        variants = {name: lambda name=name: run_variant(name) for name in engines}
        timed = bench.time(variants, warm_up=0)
    finally:
        for engine in engines.values():
            engine.networks.close()
    rows = []
    for name in plans:
        seconds, cost = timed.median(name), costs[name]
        rows.append(
            {
                "way": name,
                "s": seconds,
                "times faster than plain": timed.ratio("plain", name) if name != "plain" else None,
                "TFLOP": cost.flops / 1e12,
                "% of roof": bench.roof().percent(cost.flops, seconds),
                "GiB alive without weights": cost.bytes / 2**30,
                "UNet calls": calls[name]["unet"],
                "frames through PoseNet": calls[name]["pose_net_frames"],
                "greatest error (levels of 255)": int(
                    np.abs(frames_of["plain"].astype(int) - frames_of[name].astype(int)).max()
                ),
            }
        )
    parts = [
        {"stage": stage, "s": bootstrap_interval([seen.seconds[stage] for seen in stages])}
        for stage in stages[0].seconds
    ]
    what = f"{shape}, {steps} steps, guided"
    return [
        Table(title=f"All in, {model.name}: {what}", rows=rows, note=f"{bench.rounds} round(s), interleaved."),
        Table(title="The plain way by stage", rows=parts, note="Seconds, medians; networks are loaded already."),
    ]


def measure_lengths(bench: BenchRun) -> list[Table]:
    """Cost of length: planned windows and calls of each blend, and peak bytes of actual runs."""
    model, shape, steps = bench.model(), bench.shape((64, 64), 64), bench.config.steps or 1
    size, longest = shape.size, shape.frames
    lengths = sorted({length for length in LENGTHS if length < longest} | {longest})
    planned = []
    for length in lengths:
        for blend in get_args(Blend):
            windows = plan_windows(length, length=16, overlap=4, blend=blend)
            evaluations = sum(len(window.frames) for window in windows)
            planned.append(
                {
                    "frames": length,
                    "blend": blend,
                    "windows": len(windows),
                    "UNet calls per guided step": 2 * len(windows),
                    "frames computed for one of output": evaluations / length,
                }
            )
    made = []
    with open_engine(model, bench.plan) as engine:
        render_frames(engine, make_request(size, 2, 1))  # networks are loaded before anything is counted
        for length in lengths:
            request = make_request(size, length, steps)

            def run(request: RenderRequest = request) -> int:
                engine.calls.clear()
                with torch.no_grad():
                    return sum(1 for _ in render(engine, request, Timings()))  # frames are not stored, as in a video

            cost = count_all(run)
            latents = 4 * length * 4 * (size[0] // 8) * (size[1] // 8)
            row: dict[str, Any] = {"frames": length, "UNet calls": engine.calls["unet"]}
            row |= {"decoder calls": engine.calls["vae_decode"], "TFLOP per frame": cost.flops / 1e12 / length}
            row |= {"MiB alive": cost.bytes / 2**20, "MiB of its latents": latents / 2**20}
            made.append(row)
            bench.tick()
    what = f"{size[0]}x{size[1]}, {steps} steps, guided"
    return [
        Table(title="Windows of 16, overlap 4, as planned", rows=planned),
        Table(
            title=f"Memory by length, {model.name}: {what}",
            rows=made,
            note="Bytes of operator outputs, without weights. PoseNet features are cached up to a budget of 1 GiB.",
        ),
    ]
