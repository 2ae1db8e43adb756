"""Numerical parity with recordings of the reference implementation.

``python -m tests.parity FOLDER --prefix dev [--only NAME ...]`` reads a folder of golden files (``configs.json``,
``state_shapes.json`` and one file a case), fills our networks by the folder's rule, runs our networks, sampler and
pipeline, prints the largest error of each file and exits 1 if one is beyond its tolerance. With ``--serve`` it measures
rows of ``sa bench card``, ``parity/CASE/VARIANT``, which name a file and settings of the device.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stableanimator_cli.bench.card_rows import NOT_COMPILED, VARIANTS
from stableanimator_cli.bench.counters import track_memory
from stableanimator_cli.bench.row_process import NotApplicable, serve
from stableanimator_cli.config.animate import DecodeConfig, DeviceConfig, SamplingConfig
from stableanimator_cli.diffusion.schedule import image_noise, karras_sigmas, repeated_noise, scalings
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.cuda_graphs import GraphedCalls, Recorder
from stableanimator_cli.engine.device import DevicePlan, Networks, float32_precision
from stableanimator_cli.engine.engine import Engine, apply_plan
from stableanimator_cli.engine.render import RenderRequest, SampleOptions, Timings, render
from stableanimator_cli.engine.weights import builders, fill
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.nets.unet_blocks import call_block
from stableanimator_cli.records import ModelFolder
from tests import parity_faces, parity_skeleton, parity_training

MODULE, LATENTS, FRAMES = 1e-4, 1e-3, 2e-3  # absolute; relative to the spread; absolute in [0,1]


@dataclass(frozen=True, slots=True)
class Error:
    """One comparison: ``value`` must not exceed ``limit``."""

    what: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit  # false for NaN


CPU = DevicePlan(device=torch.device("cpu"), dtype=torch.float32)


class Recording:
    """A folder of golden files: configs, weights by the fill rule, tensors and arguments of cases. Networks are built
    for ``plan``."""

    def __init__(self, folder: Path, prefix: str, plan: DevicePlan = CPU) -> None:
        self.folder, self.prefix, self.plan = folder, prefix, plan
        self.configs: dict[str, Any] = self.json("configs")
        self.shapes: dict[str, dict[str, list[int]]] = self.json("state_shapes")

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def model(self) -> ModelFolder:
        """The recording's configs as a model folder; its weights come from the fill rule, not from files."""
        configs = {"unet": self.configs["unet"], "vae": self.configs["vae"], "image_encoder": self.configs["clip"]}
        return ModelFolder(
            name="recording",
            path=self.folder,
            files={},
            configs=configs | {"face_encoder": self.configs["face_encoder"]},
            defaults={},
            licence="",
            face_channel_order="bgr",
        )

    def build(self, name: str) -> nn.Module:
        """One of our networks, filled by name; names and shapes must be the reference's exactly."""
        theirs = {"image_encoder": "clip"}.get(name, name)
        tensors = {
            key: torch.from_numpy(np.asarray(tensor_for(f"{self.prefix}/{theirs}/{key}", tuple(shape))))
            for key, shape in self.shapes[theirs].items()
        }
        return fill(builders(self.model(), "distribution")[name], tensors, self.plan.dtype, self.folder / theirs)

    def on_device(self, name: str) -> nn.Module:
        return self.build(name).to(self.plan.device)

    def inputs(self, *tensors: Tensor) -> list[Tensor]:
        return [x.to(self.plan.device, self.plan.dtype) for x in tensors]

    def engine(self) -> Engine:
        names = ("unet", "vae", "image_encoder", "face_encoder", "pose_net")
        loaders = apply_plan({n: lambda n=n: self.build(n) for n in names}, self.plan)
        return Engine(self.model(), self.plan, Networks(loaders, self.plan))


def tensor_for(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The fill rule of the recordings: a tensor from its name (FOLDER/README.md)."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    leaf = key.rsplit(".", 1)[-1]
    if len(shape) > 1:
        gain = 1.8 if "/pose_net/" in key else 1.0
        return x * np.float32(gain * np.prod(shape[1:]) ** -0.5)
    if leaf == "running_var":
        return 1 + np.float32(0.05) * np.abs(x)
    if "prelu" in key:
        return np.float32(0.25) + np.float32(0.05) * x
    if leaf == "scale":
        return 2 + np.float32(0.05) * x
    return (np.float32(1) if leaf == "weight" else np.float32(0)) + np.float32(0.05) * x


def distance(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}")
    return float((ours.float().cpu() - theirs.float()).abs().max())


def unet_io(recording: Recording, name: str) -> list[Error]:
    t = recording.tensors(name)
    keys = ("sample", "timestep", "encoder_hidden_states", "added_time_ids", "pose_latents")
    one, two = (recording.inputs(*(t[f"{prefix}.{key}"] for key in keys)) for prefix in ("inputs", "batch2_inputs"))
    one[1], two[1] = (t[f"{prefix}.timestep"].to(one[1].device) for prefix in ("inputs", "batch2_inputs"))
    free = torch.zeros_like(one[2])
    runs = {
        "output": (one, one[2], one[4]),
        "output_without_pose": (one, one[2], None),
        "output_uncond": (one, free, None),
        "batch2_output": (two, two[2], two[4]),
    }
    errors = []
    with recording.engine() as engine, engine.resident("unet"):
        unet, graphs = engine.networks["unet"], recording.plan.config.cuda_graphs
        if unet.run is call_block:
            unet.run = engine._block_runner()
        call = GraphedCalls(unet, Recorder(recording.plan.device)) if graphs else unet
        if graphs:  # they have one noise level for the batch
            del runs["batch2_output"]
            one[1] = float(one[1])
        for key, (inputs, tokens, pose) in runs.items():
            with engine._attentions_on_device(unet):
                prepared = unet.prepare(unet.context(tokens))
            for way, context in (("", unet.context(tokens)), (" prepared", prepared)):
                ours = call(inputs[0], inputs[1], context, inputs[3], pose)
                errors.append(Error(key + way, distance(ours, t[key]), MODULE))
    return errors


def id_adapter_io(recording: Recording, name: str) -> list[Error]:
    t = recording.tensors(name)
    attn = recording.on_device("unet").get_submodule(recording.json(name)["layer"])
    hidden, tokens = recording.inputs(t["hidden_states"], t["encoder_hidden_states"])
    ours = attn(hidden, encoder_hidden_states=tokens)
    return [Error("output", distance(ours, t["output"]), MODULE)]


def face_encoder_io(recording: Recording, name: str) -> list[Error]:
    encoder, t = recording.on_device("face_encoder"), recording.tensors(name)
    given = recording.inputs(t["id_embeds"], t["clip_embeds"])
    plain = encoder(*given)
    errors = [Error("output", distance(plain, t["output"]), MODULE)]
    if "output_shortcut_scale_half" in t:
        half = encoder(*given, shortcut=0.5)
        errors.append(Error("shortcut", distance(half, t["output_shortcut_scale_half"]), MODULE))
    return errors


def pose_net_io(recording: Recording, name: str) -> list[Error]:
    t = recording.tensors(name)
    ours = recording.on_device("pose_net")(*recording.inputs(t["pose_pixels"].flatten(0, -4)))
    return [Error("output", distance(ours, t["output"]), MODULE)]


@dataclass(frozen=True, slots=True)
class RecordedPoses:
    """Skeleton pictures of a recording, squashed to the output's size as the reference does."""

    pictures: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.pictures)

    def frame(self, index: int) -> np.ndarray:
        picture = self.pictures[index]
        there = resize_transform((picture.shape[1], picture.shape[0]), self.size, "stretch")
        return there.apply_image(picture, resample="bicubic")


def pipeline(recording: Recording, name: str) -> list[Error]:
    t, args = recording.tensors(name), recording.json(name)
    size = (args["args.width"], args["args.height"])
    picture = t["reference"].numpy()
    total, tile = args["args.num_frames"], args["args.tile_size"]
    sampling = SamplingConfig(
        steps=args["args.num_inference_steps"],
        guidance=(args["args.min_guidance_scale"], args["args.max_guidance_scale"]),
        noise="repeat",
        noise_aug=args["args.noise_aug_strength"],
        motion_bucket=args["args.motion_bucket_id"],
        conditioning_fps=args["args.fps"],
        seed=args["seed"],
    )
    request = RenderRequest(
        image=picture,
        resized=resize_transform((picture.shape[1], picture.shape[0]), size, "stretch").apply_image(
            picture, resample="lanczos"
        ),
        face=t["face_embedding"].numpy(),
        poses=RecordedPoses(t["poses"].numpy(), size),
        plan=plan_windows(total, length=tile, overlap=args["args.tile_overlap"], blend="upstream"),
        sampling=sampling,
        decode=DecodeConfig(chunk=args["args.decode_chunk_size"]),
        noise_period=tile,
    )
    steps: list[Tensor] = []
    with recording.engine() as engine:
        refined = "args.num_optimization_iter" in args
        refine = parity_faces.refinement(recording, t, args, engine) if refined else None
        options = SampleOptions(on_step=lambda x, *_: steps.append(x.float().cpu()), refine=refine)
        frames = np.stack(list(render(engine, request, Timings(), options)))
    noise = t["initial_noise_tile"][0]
    pairs = list(zip(steps, t["latents_after_each_step"][:, 0], strict=True))
    latents = max(float((a - b).abs().max() / b.std()) for a, b in pairs)
    if refined:  # chaotic after a refined step (tests.parity_faces): the worst before it, the mean after it
        first = args["args.start_refine_step"]
        latents = max(
            float(((a - b).abs().max() if i < first else (a - b).abs().mean()) / b.std())
            for i, (a, b) in enumerate(pairs)
        )
    recorded = t["frames"].permute(0, 2, 3, 1).clamp(0, 1)
    rounding = 0.5 / 255  # ours are whole levels
    found = torch.from_numpy(frames).float() / 255
    sigmas = karras_sigmas(sampling.steps)
    steps_told = torch.tensor([scalings(float(s)).c_noise for s in sigmas[:-1]])
    return [
        Error("sigmas", distance(sigmas, t["sigmas"]), 0.0) if "sigmas" in t else Error("sigmas not recorded", 0, 0),
        Error("timesteps", distance(steps_told, t["timesteps"]) if "timesteps" in t else 0.0, 1e-6),
        Error("picture noise", distance(image_noise(sampling.seed, t["image_noise"].shape), t["image_noise"]), 0.0),
        Error(
            "latent noise",
            distance(repeated_noise(sampling.seed, tile, tile, noise.shape[1:], t["image_noise"].shape), noise),
            0.0,
        ),
        Error("latents / spread", latents, LATENTS),
        Error("frames (mean)", float((found - recorded).abs().mean()), 2 * FRAMES)
        if refined
        else Error("frames", max(0.0, distance(found, recorded) - rounding), FRAMES),
    ]


def full_keys(recording: Recording, name: str) -> list[Error]:
    """Every name and shape of the full-size networks, by a strict load of empty tensors on the meta device."""
    full = recording.json(name)
    configs = {"unet": full["unet_config"], "vae": {}, "image_encoder": {"projection_dim": 1024}}
    model = ModelFolder(
        name="full",
        path=recording.folder,
        files={},
        configs=configs,
        defaults={},
        licence="",
        face_channel_order="rgb",
    )
    errors = []
    for net in ("unet", "pose_net", "face_encoder"):
        with torch.device("meta"):
            tensors = {key: torch.empty(shape) for key, shape in dict(full[net]).items()}
            network = builders(model, "distribution")[net]()
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        network.load_state_dict(tensors, strict=True, assign=True)  # raises on a missing, extra or misshapen name
        differing = sum(shapes[key] != tensors[key].shape for key in tensors)
        errors.append(Error(f"{net} ({len(tensors)} tensors)", float(differing), 0.0))
    return errors


CASES: dict[str, Callable[[Recording, str], list[Error]]] = {
    "unet_io": unet_io,
    "id_adapter_io": id_adapter_io,
    "face_encoder_io": face_encoder_io,
    "pose_net_io": pose_net_io,
    "basic_pipeline": pipeline,
    "basic_pipeline_ramp": pipeline,
    "hjb_step_i0": lambda recording, name: [Error(*row) for row in parity_faces.step(recording, name)],
    "hjb_step_i1": lambda recording, name: [Error(*row) for row in parity_faces.step(recording, name)],
    "hjb_pipeline": pipeline,
    "full_keys": full_keys,
    "train_noise": lambda recording, name: [
        Error(*row) for row in parity_training.noise(recording.tensors(name), recording.json(name))
    ],
    "train_loss": lambda recording, name: [Error(*row) for row in parity_training.loss(recording.tensors(name))],
    "skeleton_draw": lambda recording, name: [
        Error(what, float(differing), 0.0) for what, differing in parity_skeleton.drawings(recording.folder, name)
    ],
    "skeleton_cases": lambda recording, name: [Error(*row) for row in parity_skeleton.aligned(recording.folder, name)],
    "pose_decode": lambda recording, name: [Error(*row) for row in parity_skeleton.decoded(recording.folder, name)],
}


def case_of(name: str) -> str | None:
    """The case that a file belongs to: its name, or the longest case that it continues (``unet_io_large``)."""
    matching = [case for case in CASES if name == case or name.startswith(f"{case}_")]
    return max(matching, key=len, default=None)


def run(folder: Path, prefix: str, only: list[str] | None = None) -> dict[str, list[Error]]:
    """Errors by file. Without ``only``: every file of the folder that one of our cases reads."""
    recording = Recording(folder, prefix)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.npz"), *folder.glob("full_keys*.json")]
    names = only or sorted({file.stem for file in files if case_of(file.stem)})
    with torch.no_grad():
        return {name: CASES[case_of(name) or name](recording, name) for name in names}


def serve_rows(folder: Path, prefix: str, device: str) -> None:
    """Measure rows ``parity/CASE/VARIANT`` of standard input, as ``sa bench card`` asks for them."""

    def measure(row: str) -> dict[str, Any]:
        _, name, variant = row.split("/")
        case = case_of(name)
        if case is None:
            raise NotApplicable("tests/parity.py does not read this file")
        try:
            plan = DevicePlan.of(DeviceConfig(device=device, **({"dtype": "float32"} | VARIANTS[variant])))
        except ConfigError as error:
            raise NotApplicable(error.hint or error.message) from error
        on_card = plan.device.type == "cuda"
        if plan.config.compile != "off" and not on_card:
            raise NotApplicable(NOT_COMPILED)
        found: list[list[Error]] = []
        with torch.no_grad(), float32_precision(tf32=False):
            if on_card:
                torch.cuda.init()  # statistics of a device with a number exist from then on
                torch.cuda.reset_peak_memory_stats(plan.device)
            started = time.perf_counter()
            counted = None if on_card else track_memory(lambda: found.append(CASES[case](recording(plan), name)))
            if on_card:
                found.append(CASES[case](recording(plan), name))
            seconds = time.perf_counter() - started
        worst = max(found[0], key=lambda e: e.value / e.limit if e.limit else e.value)
        if not all(e.holds for e in found[0]) and (variant == "float32" or worst.value != worst.value):
            raise ValueError(f"{worst.what}: {worst.value:.3g}, at most {worst.limit:g}")
        peak = torch.cuda.max_memory_allocated(plan.device) if counted is None else counted.peak
        return {"error": worst.value, "of": worst.what, "limit": worst.limit, "seconds": seconds, "peak": peak}

    def recording(plan: DevicePlan) -> Recording:
        return Recording(folder, prefix, plan)

    serve(measure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prefix", default="dev", help="first part of the fill rule's keys")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--serve", action="store_true", help="measure rows of `sa bench card`")
    parser.add_argument("--device", default="cpu", help="of --serve")
    args = parser.parse_args(argv)
    if args.serve:
        serve_rows(args.folder, args.prefix, args.device)
        return 0
    for name in args.only or ():
        if case_of(name) is None or not any(args.folder.glob(f"{name}.*")):
            parser.error(f"no case {name} in {args.folder}; cases are {', '.join(CASES)}")
    results = run(args.folder, args.prefix, args.only)
    for name, errors in results.items():
        for error in errors:
            verdict = "ok" if error.holds else "BEYOND"
            print(f"{name:22} {error.what:32} {error.value:10.3g}  limit {error.limit:<8g} {verdict}")
    failed = [name for name, errors in results.items() if not all(error.holds for error in errors)]
    print(
        f"{len(results) - len(failed)} of {len(results)} within tolerance" + (f"; beyond: {failed}" if failed else "")
    )
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
