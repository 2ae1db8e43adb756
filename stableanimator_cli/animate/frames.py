"""Frames of an animation for a program that shows or stores them itself: nothing is written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from stableanimator_cli.animate.live_preview import LivePreview, OnPreview
from stableanimator_cli.animate.prepare import open_inputs, prepare
from stableanimator_cli.animate.reference_face import FacesRefined, build_face_optimization
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.engine.engine import EngineCache
from stableanimator_cli.engine.render import SampleOptions, Timings, decode, sample
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder


@torch.inference_mode(False)  # tensors that a caller's inference mode creates cannot have gradients
def render_frames(
    config: AnimateConfig,
    model: ModelFolder,
    *,
    use_face: bool,
    engines: EngineCache,
    reporter: Reporter,
    on_preview: OnPreview | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames uint8[h,w,3] of a validated config as they are decoded. Raises ``SaError``.

    ``on_preview`` receives live previews before the first frame.
    """
    inputs = open_inputs(config, model, reporter)
    config = inputs.config
    prepared = prepare(inputs, engines, use_face=use_face, plan_only=False, reporter=reporter)
    engine, request = prepared.engine, prepared.request
    driving = prepared.driving
    estimator = inputs.estimator(config, driving, frames=request.plan.total, face_sets=prepared.face_sets)
    refine = build_face_optimization(config, engine, inputs.image, prepared.face, driving, reporter, estimator)
    onnx.warn_of_fallbacks(reporter)
    live = LivePreview(config, engine, reporter, has_anchor=request.has_anchor, on_preview=on_preview, writes=False)
    timings = Timings()
    with reporter.progress(engine.backbone.remaining_windows(request, 0), "denoise", "window") as bar:
        options = SampleOptions(on_window=lambda: bar.update(), on_step=live.after_step, refine=refine)
        latents = sample(engine, request, timings, options)
    segments = engine.backbone.total_steps(request) // config.sampling.steps
    faces = FacesRefined.of(refine, [] if refine is None else refine.log, request.frames, segments)
    if faces is not None:
        faces.report(reporter, takes_keypoints=engine.model.facts.skeleton is not None)
    yield from decode(engine, request, latents, timings)
