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

from stableanimator_cli.bench import compare_pipelines, compare_reference
from stableanimator_cli.bench.context import BenchRun, ClipShape
from stableanimator_cli.bench.counters import track_memory
from stableanimator_cli.bench.networks import FULL, open_bench_model, random_weights
from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.speed import relative_error
from stableanimator_cli.config.bench import CLONE_HINT
from stableanimator_cli.engine.device import DevicePlan, Networks, dtype_name, memory_guard
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.weights import builders, fill
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.records import ModelFolder

_SIGMA_INPUT = 0.5  # 0.25 ln sigma, somewhere in the middle of a run
_REQUIRED_FILES = tuple(
    f"animation/modules/{name}.py"
    for name in ("unet", "pose_net", "id_encoder", "attention_processor", "attention_processor_normalized")
) + tuple(f"animation/pipelines/{name}.py" for name in ("inference_pipeline_animation", "euler_discrete_pro"))
_PYTHON_HINT = "its own requirements may want other versions: give an interpreter that has them with --python"
# the released shapes with a fifth of their width, for machines without a GPU
_SMALL_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [64, 128, 256, 256],
        "num_attention_heads": [1, 2, 4, 4],
        "cross_attention_dim": 256,
    },
    "image_encoder": {
        "projection_dim": 256,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "vae": {"block_out_channels": [32, 64, 128, 128]},
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


def make_inputs(model: ModelFolder, shape: ClipShape, window: int | None = None) -> dict[str, Tensor]:
    """Noise for every input on the CPU, float32: latents, skeletons, one image and four face tokens, time ids; and for
    pipelines the pixels of a picture and of skeletons, uint8. Inputs of single networks have ``window`` frames, or all.
    """
    unet = model.configs["unet"]
    height, width = shape.latent
    seen = window or shape.frames
    token, channels = unet["cross_attention_dim"], unet["block_out_channels"][0]
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return {
        "sample": noise(1, seen, unet["in_channels"], height, width),
        "skeletons": noise(seen, 3, shape.size[1], shape.size[0]).clamp(-1, 1),
        "pose": noise(seen, channels, height, width),
        "image": noise(1, 1, token),
        "face": noise(1, compare_reference.FACE_TOKENS, token),
        "vector": noise(1, model.configs["face_encoder"]["id_embeddings_dim"]),
        "ids": torch.tensor([[6.0, 127.0, 0.02]]),
        "noise": torch.tensor([_SIGMA_INPUT]),
        "latents": noise(shape.frames, unet["out_channels"], height, width),
        "identity": noise(1, 512),
        "picture": torch.randint(256, (shape.size[1], shape.size[0], 3), generator=generator, dtype=torch.uint8),
        "poses": torch.randint(
            256, (shape.frames, shape.size[1], shape.size[0], 3), generator=generator, dtype=torch.uint8
        ),
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
        (work_dir / "stderr.txt").open("w") as stderr,
        subprocess.Popen(
            words,
            cwd=folder,
            env=os.environ | quiet,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
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
        for name in compare_reference.NETWORKS:
            build = builders(model, "distribution")[name]
            weights = random_weights(build)
            save_file(weights, work / f"{name}.safetensors")
            networks[name] = fill(build, weights, plan.dtype, Path(name)).to(plan.device)
        weights = random_weights(compare_reference.make_recogniser)
        save_file(weights, work / "recogniser.safetensors")
        recogniser = fill(compare_reference.make_recogniser, weights, torch.float32, Path("recogniser"))
        given = make_inputs(model, shape)
        save_file(given, work / "inputs.safetensors")
        steps = bench.config.steps or 4
        write_job(work, model, plan, shape, steps=steps, iterations=bench.config.value("iterations"))
        moved = {name: x.to(plan.device, plan.dtype) for name, x in given.items() if x.is_floating_point()}
        ours = {name: (run, name) for name, run in our_workloads(networks, moved).items()}
        with Engine(model, plan, Networks({n: lambda n=n: networks[n] for n in networks}, plan)) as engine:
            settings = (shape, steps, bench.config.value("iterations"))
            ours |= compare_pipelines.our_pipelines(engine, recogniser.to(plan.device), given, *settings)
            with start_clone(folder, work, bench.config.python) as clone:
                rows = [_compare_workload(bench, name, *both, clone) for name, both in ours.items()]
                about = clone.environment
    return Table(
        title=f"Against the reference implementation, {model.name} networks, {shape}, {bench.dtype}",
        rows=rows,
        note=f"The same random weights and noise, {bench.rounds} round(s), interleaved, each side in its own process. "
        f"Theirs: {folder.name}, torch {about['torch']}, diffusers {about['diffusers']}, attention: "
        f"{about['attention']}. Ours as the engine runs: what depends on tokens alone and pose features are computed "
        f"once per video, not counted in networks and steps; their loop computes pose features in every step. "
        f"Renderings are all in, {steps} steps, networks loaded. Face optimisation is one refined step of "
        f"{bench.config.value('iterations')} iterations, theirs always of full frames and checkpointed, with a small "
        f"stand-in for the recogniser. An error of 0.002 in a rendering is the rounding of pixels to 255 levels. MiB "
        f"alive: operators' outputs, counted alike on both sides, without weights. "
        f"Products here reach {bench.roof().gflops:.4g} GFLOP/s.",
    )


def _compare_workload(
    bench: BenchRun, name: str, run: Callable[[], Tensor], theirs_name: str, clone: CloneProcess
) -> dict[str, Any]:
    device = bench.plan.device
    ours, theirs = run().float().cpu(), _reference_output(clone, theirs_name)
    if ours.shape != theirs.shape:
        found, expected = f"{name} of shape {list(theirs.shape)}", f"{list(ours.shape)}, as ours"
        raise BadInput(clone.folder, found, expected, hint="it is another version than the one that this is after")
    variants = {"ours": run, "theirs": lambda: clone.request(theirs_name)}
    timed = bench.time(variants)
    row: dict[str, Any] = {"what": name, "ours, ms": 1e3 * timed.median("ours")}
    row |= {"theirs, ms": 1e3 * timed.median("theirs"), "times faster": timed.ratio("theirs", "ours")}
    row["ours, MiB alive"] = track_memory(run).peak / 2**20
    row["theirs, MiB alive"] = clone.request(f"alive {theirs_name}")["alive"] / 2**20
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        row["ours, GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
        row["theirs, GiB"] = clone.request(f"peak {theirs_name}")["peak"] / 2**30
    return row | {"greatest error / greatest value": relative_error(theirs, ours)}


def _reference_output(clone: CloneProcess, name: str) -> Tensor:
    try:
        return clone.output(name)
    except (OSError, SafetensorError, KeyError) as error:
        raise BadInput(clone.folder, f"no answer of {name}", "a tensor") from error


def write_job(
    work: Path,
    model: ModelFolder,
    plan: DevicePlan,
    shape: ClipShape,
    *,
    steps: int,
    iterations: int,
    training_dtype: torch.dtype = torch.float32,
) -> None:
    """Write what the clone's process needs beside weights and inputs."""
    configs = {
        role: {key: value for key, value in model.configs[role].items() if not key.startswith("_")}
        for role in ("unet", "face_encoder", "vae", "image_encoder")
    }
    unet, clip = configs["unet"], configs["image_encoder"]
    configs["pose_net"] = {"noise_latent_channels": unet["block_out_channels"][0]}
    configs["face_encoder"] |= {
        "cross_attention_dim": unet["cross_attention_dim"], "clip_embeddings_dim": clip["projection_dim"],
    }  # fmt: skip
    job = {
        "device": str(plan.device),
        "dtype": dtype_name(plan.dtype),
        "training_dtype": dtype_name(training_dtype),
        "threads": torch.get_num_threads(),
        "configs": configs,
        "steps": steps,
        "iterations": iterations,
        "box": compare_pipelines.face_of(shape.size),
    }
    (work / "job.json").write_text(json.dumps(job))
