"""Comparison with a local clone of the reference implementation: speed and outputs for the same weights and noise.

Each side runs in its own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stableanimator_cli.bench import compare_reference
from stableanimator_cli.bench.context import BenchRun, ClipShape
from stableanimator_cli.bench.networks import FULL, open_bench_model, random_weights
from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.speed import relative_error
from stableanimator_cli.config.bench import CLONE_HINT
from stableanimator_cli.engine.device import DevicePlan, dtype_name, memory_guard
from stableanimator_cli.engine.weights import builders, fill
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.nets.unet import AnimationUNet, Context
from stableanimator_cli.records import ModelFolder

NETWORKS = ("unet", "pose_net", "face_encoder")
_SIGMA_INPUT = 0.5  # 0.25 ln sigma, somewhere in the middle of a run
_REQUIRED_FILES = tuple(
    f"animation/modules/{name}.py"
    for name in ("unet", "pose_net", "id_encoder", "attention_processor", "attention_processor_normalized")
)
_PYTHON_HINT = "its own requirements may want other versions: give an interpreter that has them with --python"
# the released shapes with a fifth of their width, for machines without a GPU
_SMALL_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [64, 128, 256, 256],
        "num_attention_heads": [1, 2, 4, 4],
        "cross_attention_dim": 256,
    },
    "image_encoder": {"projection_dim": 256},
}
Workloads = dict[str, Callable[[], Tensor]]


def model_to_compare(name: str) -> ModelFolder:
    """Shapes that the reference implementation supports: ``full``, or small ones for ``puppet`` (the default)."""
    full = open_bench_model(FULL)
    if name == FULL:
        return full
    if name != "puppet":
        raise ConfigError(
            "--networks", name, "full, or nothing for small ones, with compare: both sides get random weights"
        )
    configs = {role: {**config, **_SMALL_CONFIGS.get(role, {})} for role, config in full.configs.items()}
    return replace(full, name="small", configs=configs)


def make_inputs(model: ModelFolder, shape: ClipShape) -> dict[str, Tensor]:
    """Noise for every input, float32 on the CPU: latents, skeletons, one image and four face tokens, time ids."""
    unet = model.configs["unet"]
    height, width = shape.latent
    token, channels = unet["cross_attention_dim"], unet["block_out_channels"][0]
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return {
        "sample": noise(1, shape.frames, unet["in_channels"], height, width),
        "skeletons": noise(shape.frames, 3, shape.size[1], shape.size[0]).clamp(-1, 1),
        "pose": noise(shape.frames, channels, height, width),
        "image": noise(1, 1, token),
        "face": noise(1, compare_reference.FACE_TOKENS, token),
        "vector": noise(1, model.configs["face_encoder"]["id_embeddings_dim"]),
        "ids": torch.tensor([[6.0, 127.0, 0.02]]),
        "noise": torch.tensor([_SIGMA_INPUT]),
    }


def our_workloads(networks: Mapping[str, nn.Module], given: Mapping[str, Tensor]) -> Workloads:
    """The workloads as the engine runs them: projections of tokens and pose features are computed once per video."""
    unet, pose_net, encoder = cast(AnimationUNet, networks["unet"]), networks["pose_net"], networks["face_encoder"]
    conditional = unet.prepare(Context(given["image"], given["face"]))
    unconditional = unet.prepare(Context(torch.zeros_like(given["image"]), torch.zeros_like(given["face"])))
    pose_features = pose_net(given["skeletons"])

    def denoise(context: Context, pose: Tensor | None) -> Tensor:
        return unet(given["sample"], _SIGMA_INPUT, context, given["ids"], pose)

    return {
        "Face Encoder": lambda: encoder(given["vector"], given["image"]),
        "PoseNet": lambda: pose_net(given["skeletons"]),
        "UNet with face and pose": lambda: denoise(conditional, given["pose"]),
        "UNet, unconditional": lambda: denoise(unconditional, None),
        "a guided step of one window": lambda: torch.cat(
            [denoise(unconditional, None), denoise(conditional, pose_features)]
        ),
    }


@dataclass(slots=True)
class CloneProcess:
    """The clone's process. ``environment`` describes its libraries."""

    folder: Path
    work_dir: Path
    process: subprocess.Popen[str]
    environment: Mapping[str, str]

    def request(self, command: str) -> dict[str, Any]:
        """Send one line and return the reply. Raises ``BadInput`` with the clone's error."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return _read_reply(self.process, self.folder, command)
        return _read_reply(self.process, self.folder, command)

    def output(self, workload: str) -> Tensor:
        self.request(f"keep {workload}")
        return load_file(self.work_dir / "answer.safetensors")["answer"]


@contextmanager
def start_clone(folder: Path, work_dir: Path, python: Path | None) -> Iterator[CloneProcess]:
    """Start the clone's process and load the job in ``work_dir``; it is killed at the end of the block. Raises
    ``BadInput`` for a folder that is no clone or does not run here."""
    check_clone(folder)
    if python is not None and not python.is_file():
        raise ConfigError("--python", str(python), "an existing interpreter")
    words = [
        str(python or sys.executable),
        str(Path(compare_reference.__file__).resolve()),
        str(folder.resolve()),
        str(work_dir),
    ]
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    with (
        (work_dir / "said.txt").open("w") as said,
        subprocess.Popen(
            words,
            cwd=folder,
            env=os.environ | quiet,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        try:
            yield CloneProcess(folder, work_dir, process, _read_reply(process, folder, "what it imports"))
        finally:
            process.kill()


def check_clone(folder: Path) -> None:
    """Raise ``BadInput`` unless the folder has the files of the compared networks."""
    if not folder.is_dir():
        raise BadInput(folder, "no folder", "a clone of the reference implementation", hint=CLONE_HINT)
    missing = [name for name in _REQUIRED_FILES if not (folder / name).is_file()]
    if missing:
        found = f"no {missing[0]}" + (f" and {len(missing) - 1} more missing" if len(missing) > 1 else "")
        raise BadInput(folder, found, "a clone of the reference implementation", hint=CLONE_HINT)


def _read_reply(process: subprocess.Popen[str], folder: Path, activity: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        code = process.wait()
        raise BadInput(
            folder, f"that its process ended at {activity!r} (exit code {code})", "an answer", hint=_PYTHON_HINT
        )
    found = json.loads(line)
    if "failed" in found:
        raise BadInput(folder, f"an error at {activity!r}: {found['failed']}", "code that runs here", hint=_PYTHON_HINT)
    return found


def compare_networks(bench: BenchRun, model: ModelFolder) -> Table:
    """Time every workload, ours and theirs in turns."""
    folder, shape, plan = cast(Path, bench.config.against), bench.shape((128, 128), 16), bench.plan
    hint = "use a smaller --size or --frames, or --dtype bfloat16: both sides are on the device"
    with tempfile.TemporaryDirectory() as temp, memory_guard("comparing", hint), torch.no_grad():
        work, networks = Path(temp), {}
        for name in NETWORKS:
            build = builders(model, "distribution")[name]
            weights = random_weights(build)
            save_file(weights, work / f"{name}.safetensors")
            networks[name] = fill(build, weights, plan.dtype, Path(name)).to(plan.device)
        given = make_inputs(model, shape)
        save_file(given, work / "inputs.safetensors")
        _write_job(work, model, plan)
        ours = our_workloads(networks, {name: x.to(plan.device, plan.dtype) for name, x in given.items()})
        with start_clone(folder, work, bench.config.python) as clone:
            rows = [_compare_workload(bench, name, run, clone) for name, run in ours.items()]
            about = clone.environment
    return Table(
        title=f"Against the reference implementation, {model.name} networks, {shape}, {bench.dtype}",
        rows=rows,
        note=f"The same random weights and noise, {bench.rounds} round(s), interleaved, each side in its own process. "
        f"Theirs: {folder.name}, torch {about['torch']}, diffusers {about['diffusers']}, attention: "
        f"{about['attention']}. Ours as the engine runs: what depends on tokens alone and pose features are computed "
        f"once per video, not counted; their loop computes pose features in every step. "
        f"Products here reach {bench.roof().gflops:.4g} GFLOP/s.",
    )


def _compare_workload(bench: BenchRun, name: str, run: Callable[[], Tensor], clone: CloneProcess) -> dict[str, Any]:
    device = bench.plan.device
    ours, theirs = run().float().cpu(), _reference_output(clone, name)
    if ours.shape != theirs.shape:
        found, expected = f"{name} of shape {list(theirs.shape)}", f"{list(ours.shape)}, as ours"
        raise BadInput(clone.folder, found, expected, hint="it is another version than the one that this is after")
    variants = {"ours": run, "theirs": lambda: clone.request(name)}
    timed = bench.time(variants)
    row: dict[str, Any] = {"what": name, "ours, ms": 1e3 * timed.median("ours")}
    row |= {"theirs, ms": 1e3 * timed.median("theirs"), "times faster": timed.ratio("theirs", "ours")}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        row["ours, GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
        row["theirs, GiB"] = clone.request(f"peak {name}")["peak"] / 2**30
    return row | {"greatest error / greatest value": relative_error(theirs, ours)}


def _reference_output(clone: CloneProcess, name: str) -> Tensor:
    try:
        return clone.output(name)
    except (OSError, SafetensorError, KeyError) as error:
        raise BadInput(clone.folder, f"no answer of {name}", "a tensor") from error


def _write_job(work: Path, model: ModelFolder, plan: DevicePlan) -> None:
    unet = {key: value for key, value in model.configs["unet"].items() if not key.startswith("_")}
    face = {key: value for key, value in model.configs["face_encoder"].items() if not key.startswith("_")}
    token, clip = unet["cross_attention_dim"], model.configs["image_encoder"]["projection_dim"]
    job = {
        "device": str(plan.device),
        "dtype": dtype_name(plan.dtype),
        "threads": torch.get_num_threads(),
        "configs": {
            "unet": unet,
            "pose_net": {"noise_latent_channels": unet["block_out_channels"][0]},
            "face_encoder": face | {"cross_attention_dim": token, "clip_embeddings_dim": clip},
        },
    }
    (work / "job.json").write_text(json.dumps(job))
