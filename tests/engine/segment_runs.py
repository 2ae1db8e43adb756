"""Samplings of backbones that go segment by segment: frames, resumed runs, and faces that are optimised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stableanimator_cli.diffusion.face_optimization import FaceOptimization
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine.backbones.segments import SegmentBackbone
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, SampleOptions, Timings, decode, sample
from stableanimator_cli.nets.arcface import ArcFace
from tests.nets.iresnet import IResNet, filled, to_onnx

SEGMENTS: list[tuple[int, int, int, dict[str, Any]]] = [
    (9, 9, 1, {}),
    (5, 9, 1, {}),  # shorter than a segment
    (12, 9, 1, {}),
    (20, 9, 1, {"steps": 2}),
    (20, 13, 5, {"steps": 2}),
]
"""Frames, frames of a segment, shared frames, and settings of the sampling."""


def ours(engine: Engine, wanted: RenderRequest, **more: Any) -> np.ndarray:
    latents = sample(engine, wanted, Timings(), SampleOptions(**more))
    return np.stack(list(decode(engine, wanted, latents, Timings())))


def check_frames(engine: Engine, backbone: SegmentBackbone, wanted: RenderRequest, theirs: np.ndarray) -> None:
    """Our frames are ``theirs``, and the calls of the networks are those that were counted before."""
    found = ours(engine, wanted)
    assert np.array_equal(found, theirs)
    assert len(found) == wanted.plan.total
    counted = backbone.count_calls(wanted)
    assert {name: engine.calls[name] for name in counted if name != "windows"} == {
        name: count for name, count in counted.items() if name != "windows"
    }


def check_resumes(
    engine: Engine, wanted: RenderRequest, refine: Callable[[], FaceOptimization | None] = lambda: None
) -> list[int]:
    """A sampling that is resumed after any step equals the unbroken one to the bit. Returns the steps."""
    states, extra = [], {}

    def keep(latents: Tensor, denoised: Tensor, step: Step) -> None:
        assert torch.isfinite(denoised).all()
        states.append((latents.clone(), {name: value.clone() for name, value in extra.items()}, step.index + 1))

    whole = sample(engine, wanted, Timings(), SampleOptions(on_step=keep, extra=extra, refine=refine()))
    for latents, kept, step in states[:-1]:
        options = SampleOptions(extra=dict(kept), refine=refine(), latents=latents, first_step=step)
        assert torch.equal(sample(engine, wanted, Timings(), options), whole), step
    assert torch.equal(sample(engine, wanted, Timings(), SampleOptions(refine=refine())), whole)
    return [step for *_, step in states]


def random_recogniser() -> ArcFace:
    return ArcFace(to_onnx(filled(IResNet(widths=(4, 8, 8, 16), features=32, stem=4))))


def check_faces_come_nearer(
    engine: Engine, wanted: RenderRequest, optimise: FaceOptimization, similarity: Callable[[np.ndarray], float]
) -> None:
    """In both of two segments, which share one frame and the second of which is padded."""
    plain, better = ours(engine, wanted), ours(engine, wanted, refine=optimise)
    assert [entry.step for entry in optimise.log] == [0, 1, 2, 0, 1, 2]
    assert [entry.faces for entry in optimise.log] == [8] * 3 + [7] * 3  # neither shared frames nor padding
    assert all(entry.after > entry.before for entry in optimise.log)
    for part in (slice(0, 9), slice(9, 16)):
        assert similarity(better[part]) > similarity(plain[part]) + 0.002
