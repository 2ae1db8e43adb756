"""The process that measures rows of the reference implementation for ``sa bench card --against``.

``python -m stableanimator_cli.bench.card_reference JOB``, where ``JOB`` is JSON: ``device``, ``small``, ``clone`` and
``python``. Each row starts the clone's own process with random weights, as ``sa bench compare`` does with equal ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stableanimator_cli.bench import compare
from stableanimator_cli.bench.card_rows import frames_of, size_of
from stableanimator_cli.bench.compare_reference import NETWORKS, WINDOW
from stableanimator_cli.bench.context import ClipShape
from stableanimator_cli.bench.networks import FULL, network_on_meta
from stableanimator_cli.bench.row_process import serve
from stableanimator_cli.bench.training import preset_stage
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.device import DTYPES, DevicePlan
from stableanimator_cli.engine.group_offload import bytes_of

_STEP = "a guided step of one window"
_WORKLOADS = {"unet": _STEP, "render": "rendering", "face": "face optimisation", "train": "training step"}


def measure(job: dict[str, Any], row: str) -> dict[str, Any]:
    """Seconds and peak bytes of ``reference/GROUP/WHAT``, once after a step that loads what is needed."""
    group, small = row.split("/")[1], job["small"]
    workload, python = _WORKLOADS[group], job["python"]
    plan, shape, training_dtype = _settings(job, group, row.partition("/")[2])
    model = compare.model_to_compare("puppet" if small else FULL)
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        save_file(compare.make_inputs(model, shape, min(shape.frames, WINDOW)), work / "inputs.safetensors")
        steps, iterations = (2, 1) if small else (25, 3)
        settings: dict[str, Any] = {"steps": steps, "iterations": iterations, "training_dtype": training_dtype}
        compare.write_job(work, model, plan, shape, **settings)
        with compare.start_clone(Path(job["clone"]), work, None if python is None else Path(python)) as clone:
            clone.request(workload if group in ("face", "train") else _STEP)
            started = time.perf_counter()
            if plan.device.type == "cuda":
                peak = clone.request(f"peak {workload}")["peak"]
                seconds = time.perf_counter() - started
            else:
                clone.request(workload)
                seconds = time.perf_counter() - started
                networks = (network_on_meta(model, role, plan.dtype) for role in NETWORKS)
                peak = clone.request(f"alive {workload}")["alive"] + sum(map(bytes_of, networks))
            about = clone.environment
    return {"seconds": seconds, "peak": peak, "attention": about["attention"]}


def _settings(job: dict[str, Any], group: str, name: str) -> tuple[DevicePlan, ClipShape, torch.dtype]:
    """Device plan, shape, and dtype of a training step, in which the networks that learn are float32."""
    plan = DevicePlan.of(DeviceConfig(device=job["device"]))
    if group == "train":
        config, _, shape = preset_stage(name.partition("/")[2], plan.device, small=job["small"])
        float32 = DevicePlan.of(DeviceConfig(device=job["device"], dtype="float32"))
        return float32, shape, DTYPES[config.memory.dtype]
    frames, size = (2, (64, 64)) if job["small"] else (16, (512, 512))
    if group != "face":
        size = size_of(name)
    if group == "render":
        frames = frames_of(name)
    return plan, ClipShape(size=size, frames=frames), torch.float32


def main() -> None:
    job = json.loads(sys.argv[1])
    serve(lambda row: measure(job, row))


if __name__ == "__main__":
    main()
