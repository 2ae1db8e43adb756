"""Memory and work of a backbone that denoises segments with a transformer, counted on the ``meta`` device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.engine.backbones import backbone_of
from stableanimator_cli.engine.group_offload import bytes_of
from stableanimator_cli.engine.memory.prediction import RenderMemory
from stableanimator_cli.engine.memory.profile import FlopCounter, peak_bytes
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.engine.weights import build_on_meta, builders

_STAGES = {
    "motion detection": (),
    "text encoder": ("text_encoder",),
    "image encoder": ("image_encoder",),
    "VAE encoder": ("vae",),
    "Transformer": ("transformer",),
    "face optimisation": ("vae", "recogniser"),
    "VAE decoder": ("vae",),
    "face detection": ("vae",),
}
_RESIDENT_LATENTS = 8  # float32 copies of a segment's latents: noise, conditions, estimate, and the scheduler's history


@dataclass(slots=True)
class SegmentMemoryEstimator(MemoryEstimator):
    """``MemoryEstimator`` of a ``SegmentBackbone``: the transformer sees one segment at a time."""

    def of(self, config: AnimateConfig) -> RenderMemory:
        plan, length = config.device, config.windows.length
        transformer, vae = self._network("transformer").config, self._network("vae").config
        offload = "none" if self.device.type == "cpu" else plan.offload
        prepared = self._backbone.segment_bytes(transformer, vae, length, self.size, self.dtype, offload)
        latents = 4 * self._backbone.latent_values(vae, length, self.size)
        stored = len(self._backbone.plan_windows(self.frames, config.windows)) * latents
        work = {
            "text encoder": self._call("text_encoder", config),
            "image encoder": self._call("image_encoder", config),
            "VAE encoder": self._call("vae_encode", config),
            "Transformer": stored
            + _RESIDENT_LATENTS * latents
            + prepared
            + self._cast(config)
            + max(self._call(name, config) for name in self._backbone.denoiser_calls),
            "VAE decoder": stored + self._call("vae_decode", config),
        }
        if self._refines_faces(config):
            work["face optimisation"] = stored + _RESIDENT_LATENTS * latents + prepared + self._call("face", config)
        work |= self._detection(config, stored)
        return self._by_stage(_STAGES, work, lambda network: self._bytes(network, config), plan)

    def work(self, config: AnimateConfig) -> dict[str, FlopCounter]:
        """Operations of one call of each network, and of ``face``, an iteration of face optimisation on a chunk."""
        names = ["text_encoder", "image_encoder", "vae_encode", *self._backbone.denoiser_calls, "vae_decode"]
        if self._refines_faces(config):
            names.append("face")
        counters = {}
        for name in names:
            with FlopCounter() as counters[name], torch.set_grad_enabled(name == "face"):
                self._runs(config)[name]()
        return counters

    @property
    def _backbone(self) -> Any:
        return backbone_of(self.model)

    def _runs(self, config: AnimateConfig) -> dict[str, Callable[[], object]]:
        """One call of each network by name, on ``meta`` tensors."""
        calls = self._backbone.example_calls(self.model, self._network, config.windows.length, self.size, self.dtype)
        return {**calls, "face": lambda: self._face_step(config)}

    def _call(self, name: str, config: AnimateConfig) -> int:
        def count() -> int:
            for role in sorted({role for roles in _STAGES.values() for role in roles if role != "recogniser"}):
                self._network(role)  # built before anything is counted
            with torch.set_grad_enabled(name == "face"):
                return peak_bytes(self._runs(config)[name], on_cpu=self.device.type == "cpu")

        refine, face = config.refine, ()
        if name == "face":
            face = (refine.face, refine.crop_margin, config.decode.chunk, self.checkpointed(config))
        return self._cached(name, config.windows.length, *face, count=count)

    def _cast(self, config: AnimateConfig) -> int:
        """The largest weight in the dtype of the computation, to which diffusers casts an fp8 layer while it runs."""
        if config.device.quantization == "plain":
            return 0
        return max(weight.numel() for weight in self._network("transformer").parameters()) * self.dtype.itemsize

    def checkpointed(self, config: AnimateConfig) -> bool:
        """Frames of a segment are many: ``auto`` recomputes the decoder for each latent in the backward pass."""
        return config.refine.checkpointing != "off"

    def _network(self, role: str, weights: str = "plain") -> Any:
        def build() -> nn.Module:
            dtype = torch.float32 if role == "vae" else self.dtype
            return build_on_meta(builders(self.model, "distribution")[role], dtype).eval().requires_grad_(False)

        return self._built(role, "", build)

    def _prepared(self, role: str, config: AnimateConfig) -> Any:
        """A network with the quantization of ``config``."""
        if role != "transformer" or config.device.quantization != "fp8":
            return self._network(role)

        def build() -> Any:
            network: Any = replace(self, _networks={})._network(role)
            network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=self.dtype)
            return network

        return self._built(role, "fp8", build)

    def _bytes(self, role: str, config: AnimateConfig) -> int:
        """Bytes of a network on the device; with group offload one of its blocks, and what is not in blocks."""
        network = self._prepared(role, config)
        size = bytes_of(network)
        if role != "transformer" or config.device.offload != "group" or self.device.type == "cpu":
            return size
        blocks = [bytes_of(block) for block in network.blocks]
        return size - sum(blocks) + max(blocks)

    def _face_step(self, config: AnimateConfig) -> None:
        """Forward and backward through the decoder for one chunk of latents."""
        vae = self._network("vae")
        decoder = self._backbone.face_decoder(
            vae, Counter(), checkpointed=self.checkpointed(config), margin=config.refine.crop_margin
        )
        full = config.refine.face == "full"
        frames = config.windows.length if full else min(config.decode.chunk, config.windows.length)
        chunk = (frames - 1) // decoder.compression + 1 if full else max(1, frames // decoder.compression)
        shape = (chunk, vae.config["z_dim"], self.size[1] // decoder.scale, self.size[0] // decoder.scale)
        latents = torch.empty(shape, device="meta").requires_grad_(True)
        box = self._face_box
        embedded = self._embedding(box)
        if full:
            embedded(decoder.pixels(latents), (0, 0)).mean().backward()
            return
        with decoder.with_recorded_stats(latents.detach(), [range(chunk)]):
            embedded(*decoder.crop(latents, range(chunk), box)).mean().backward()
