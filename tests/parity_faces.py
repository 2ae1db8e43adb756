"""Parity of face optimisation (HJB) with recordings of the reference implementation (see ``tests.parity``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from stableanimator_cli.diffusion.face_optimization import FaceOptimization, FaceOptimizationSettings, Target
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.diffusion.schedule import scalings
from stableanimator_cli.engine.decoder import FaceDecoder
from stableanimator_cli.nets.arcface import ArcFace, crop_resize
from tests.nets.iresnet import IResNet, filled, to_onnx

TOLERANCE = 1e-3  # of the clean estimate after one iteration
OUTLIERS = 0.005  # share of elements that Adam may send the other way, where a tiny gradient changes its sign
# After more iterations the recording is chaotic: noise of 1e-6 on the input moves 4 % of the elements by more than 1e-3
# in the second. The mean over all elements stays small and still tells a wrong rate, box, chunk or loss.
MEAN = 1e-3


def recogniser(config: dict[str, Any], prefix: str) -> ArcFace:
    """The recordings' IResNet, filled by name, executed as the ONNX graph that a user would have."""
    net = filled(IResNet(features=config["num_features"], layers=config["layers"]), prefix)
    return ArcFace(to_onnx(net)).requires_grad_(False)


def optimisation(
    vae: Any, face: ArcFace, boxes: Sequence[Sequence[int]], reference: Tensor, settings: FaceOptimizationSettings,
    resident: Callable[[], AbstractContextManager[None]] = nullcontext,
):  # fmt: skip
    """A hook as ``sa animate --preset released`` makes it; recorded boxes are y0 y1 x0 x1."""
    target = Target(boxes=tuple((x0, y0, x1, y1) for y0, y1, x0, x1 in boxes), vector=reference[0])
    return FaceOptimization(
        decoder=FaceDecoder(vae, Counter()),
        embed=lambda pixels, places: face.embed(crop_resize(pixels, places)),
        targets=[target],
        settings=settings,
        resident=resident,
    )


def step(recording: Any, name: str) -> list[tuple[str, float, float]]:
    """One scheduler step: the clean estimate, plain and after each number of iterations, and the latents after it."""
    t, args = recording.tensors(name), recording.json(name)
    sigmas = t["sigmas"].tolist()
    index, total = args["step_index"], args["num_inference_steps"]
    now = Step(index, total, sigmas[index], sigmas[index + 1])
    scale = scalings(now.sigma)
    sample = t["sample"][0]
    clean = scale.skip * sample + scale.out * t["model_output"][0]
    after = (sample - clean) / now.sigma * (now.sigma_next - now.sigma) + sample
    errors = [
        ("x0 plain", _worst(clean, t["x0_plain"][0]), 1e-4),
        ("latents plain / spread", _worst(after, t["prev_plain"][0]) / float(after.std()), TOLERANCE),
    ]
    vae = recording.on_device("vae")
    face = recogniser(recording.configs["arcface"], recording.prefix).to(recording.plan.device)
    for iterations in range(1, args["iterations"] + 1):
        recorded = t["x0_refined" if iterations == args["iterations"] else f"x0_refined_{iterations}"][0]
        settings = FaceOptimizationSettings(
            mode="full",
            steps=(index, index + 1),
            iterations=iterations,
            lr=args["learning_rate"] / (1 - index / total),  # recorded as it was used: fallen already
            chunk=args["decode_chunk_size"],
        )
        hook = optimisation(vae, face, args["boxes_ymin_ymax_xmin_xmax"], t["reference_embedding"], settings)
        refined = hook(clean, now)
        if iterations == 1:
            far = float(((refined - recorded).abs() > TOLERANCE).float().mean())
            errors.append((f"x0 refined 1: share beyond {TOLERANCE:g}", far, OUTLIERS))
        errors.append((f"x0 refined {iterations}: mean", _mean(refined, recorded), MEAN))
    moved = (sample - refined) / now.sigma * (now.sigma_next - now.sigma) + sample
    errors.append(("latents refined / spread: mean", _mean(moved, t["prev_refined"][0]) / float(moved.std()), MEAN))
    return errors


def _mean(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().mean())


def _worst(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def refinement(recording: Any, t: dict[str, Tensor], args: dict[str, Any], engine: Any) -> FaceOptimization:
    """The hook of a recorded pipeline: steps are inclusive there."""
    settings = FaceOptimizationSettings(
        mode="full",
        steps=(args["args.start_refine_step"], args["args.end_refine_step"] + 1),
        iterations=args["args.num_optimization_iter"],
        chunk=args["args.decode_chunk_size"],
    )
    face = recogniser(recording.configs["arcface"], recording.prefix).to(recording.plan.device)
    boxes, reference = args["boxes"], t["reference_embedding"]

    def resident() -> AbstractContextManager[None]:
        return engine.resident("vae")

    return optimisation(engine.networks["vae"], face, boxes, reference, settings, resident)
