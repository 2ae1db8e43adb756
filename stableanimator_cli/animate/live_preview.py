"""The live preview: a strip of frames of the denoised estimate, decoded small while the video is sampled."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.errors import SaError
from stableanimator_cli.files import carries_mark
from stableanimator_cli.media.image import save_image
from stableanimator_cli.progress import Reporter

OnPreview = Callable[[Image.Image, Step], None]
"""Receives a strip of frames and the step that it was taken in."""

FRAMES = 4  # of the video, evenly spread
LONGEST_SIDE = 32  # of a frame's latents; larger ones are averaged down first: 256 pixels


class LivePreview:
    """Shows the denoised estimate every few steps and in the last: in ``OUT.live.png``, and to ``on_preview``.

    It decodes copies and draws no noise, so the video stays the same to the byte. A failed preview is a warning.
    """

    def __init__(
        self,
        config: AnimateConfig,
        engine: Engine,
        reporter: Reporter,
        *,
        has_anchor: bool,
        on_preview: OnPreview | None = None,
        writes: bool = True,
    ) -> None:
        """``has_anchor``: frame 0 of the latents is no frame of the video. ``writes`` False: only ``on_preview``."""
        self._path = config.live_preview_path if writes and config.has_live_preview else None
        self._every = config.preview_every or max(1, config.sampling.steps // 5)
        self._engine, self._reporter, self._has_anchor, self._on_preview = engine, reporter, has_anchor, on_preview
        if self._path is not None:
            reporter.info(f"{self._path}: replaced every {self._every} step(s), removed at the end")

    def after_step(self, latents: Tensor, denoised: Tensor, step: Step) -> None:
        """The ``StepCallback`` of a sampling."""
        done = step.index + 1
        shown = self._path is not None or self._on_preview is not None
        if shown and (done % self._every == 0 or done == step.total):
            self._show(denoised, step)

    def remove(self) -> None:
        """Remove the image: the video is complete."""
        if self._path is not None:
            with contextlib.suppress(OSError, SaError):
                if not self._path.is_symlink() and carries_mark(self._path):
                    self._path.unlink()

    def _show(self, denoised: Tensor, step: Step) -> None:
        try:
            image = Image.fromarray(strip(self._engine, denoised[int(self._has_anchor) :]))
            if self._path is not None:
                save_image(self._path, image, "PNG")
        except SaError as error:
            self._reporter.warning(f"no live preview: {error.message}")
            self._path = self._on_preview = None
            return
        if self._on_preview is not None:
            self._on_preview(image, step)


def strip(engine: Engine, latents: Tensor) -> np.ndarray:
    """Latents [t,c,h,w] of a video in the sampler's scale -> some frames side by side, uint8[h,w,3], decoded alone."""
    indices = np.linspace(0, len(latents) - 1, min(FRAMES, len(latents))).round().astype(int)
    small = latents[indices.tolist()].detach()
    scale = LONGEST_SIDE / max(small.shape[-2:])
    if scale < 1:
        small = functional.interpolate(small, [max(1, round(side * scale)) for side in small.shape[-2:]], mode="area")
    guard = memory_guard("decoding the live preview", "leave --preview live out")
    with engine.resident("vae"), torch.no_grad(), guard:
        # counts apart: a record counts what made the video
        decoder = engine.backbone.decoder(engine.networks["vae"], Counter())
        return np.concatenate(list(decoder.frames(small, chunk=1)), axis=1)
