"""Wan-Animate-2 (Wan2.2-Animate-2-14B), base and distilled: the parts of diffusers' modular pipeline.

The driving video itself is the motion: no skeletons, no crops of faces. Once per segment a pass of the transformer over
its latents stores each layer's keys and values, to which every denoising step attends. The distilled weights differ in
steps, guidance and scheduler only, which are settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import WanAnimate2Transformer3DModel
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor, nn
from transformers import AutoTokenizer

from stableanimator_cli.engine.backbones.diffusers_folder import check_prompts, load_part, load_scheduler, quiet
from stableanimator_cli.engine.backbones.segments import SegmentBackbone
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.nets.frame_attention import HostKVCache, prepare_mask, set_frame_attention
from stableanimator_cli.records import ModelFolder

TOKENS = 512
"""Length of the prompt's embedding."""
DRIVING_PROMPT = "人物动作的参考视频"
"""The text beside the driving video, fixed by the authors: "reference video of a person's movements"."""
_CLIP_SIDE = 224  # pixels, to which the authors scale images for the image encoder


class WanAnimate2(SegmentBackbone):
    """A flow-matching transformer that attends to the tokens of a driving video."""

    transformer = WanAnimate2Transformer3DModel
    denoiser_calls = ("transformer", "driving_pass")

    def adapted(self, transformer: nn.Module, *, compiled: bool) -> nn.Module:
        """Compiled blocks have diffusers' own attention."""
        return transformer if compiled else set_frame_attention(transformer)

    def shown_frame(self, frame: int, total: int) -> int:
        """Beyond the end the motion runs back, and the last frame is shown twice, as the authors pad."""
        turned = frame % (2 * total)
        return min(turned, 2 * total - 1 - turned)

    def count_calls(self, request: RenderRequest) -> dict[str, int]:
        segments, steps = len(request.plan), request.sampling.steps
        guided = request.sampling.guidance[0] != 1
        return {
            "transformer": segments * steps * (1 + guided),
            "driving_pass": segments,
            "windows": segments * steps,
            "text_encoder": 2 + guided,
            "image_encoder": 2,
            "vae_encode": 1 + 2 * segments,
            "vae_decode": 2 * segments - 1,
        }

    def segment_bytes(
        self, transformer: Any, vae: Any, length: int, size: tuple[int, int], dtype: torch.dtype, offload: str
    ) -> int:
        """Keys and values of the driving video in every layer, with group offload of one layer."""
        layers, geometry = 1 if offload == "group" else transformer["num_layers"], _Geometry.of(vae, length, size)
        return 2 * layers * transformer["dim"] * geometry.frames * geometry.tokens * dtype.itemsize

    def example_calls(
        self, model: ModelFolder, network: Callable[[str], Any], length: int, size: tuple[int, int], dtype: torch.dtype
    ) -> dict[str, Callable[[], object]]:
        (width, height), vae = size, network("vae").config
        geometry = _Geometry.of(vae, length, size)
        frames, grid = geometry.frames, (2 * geometry.rows, 2 * geometry.columns)

        def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, device="meta", dtype=kind)

        def call(cache: WanAnimate2KVCache, mode: str) -> None:
            net, vision = network("transformer"), network("image_encoder").config
            config = net.config
            cached = mode == "cached"
            prepare_mask(net, frames, geometry.tokens, torch.device("meta"))
            count = frames + cached
            net(
                [empty(vae["z_dim"], count, *grid)],
                timestep=empty(1, kind=torch.float32),
                encoder_hidden_states=[empty(TOKENS, config["text_dim"])],
                encoder_hidden_states_image=empty(
                    1, (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size
                ),
                condition_latents=[empty(config["in_dim"] - vae["z_dim"], count, *grid)],
                kv_cache=cache,
                kv_cache_mode=mode,
                **(geometry.of_step if cached else geometry.of_driving),
            )

        def image_encoder() -> None:
            encoder = network("image_encoder")
            encoder(pixel_values=empty(1, 3, _CLIP_SIDE, _CLIP_SIDE), output_hidden_states=True)

        def vae_decode() -> None:
            latents = empty(frames, vae["z_dim"], *grid, kind=torch.float32)
            for _ in self.decoder(network("vae"), Counter()).parts(latents):
                pass

        config = network("transformer").config
        filled = WanAnimate2KVCache(config["num_layers"])  # counted by ``segment_bytes``
        heads = config["num_heads"]
        for layer in filled.layer_caches:
            tokens = empty(1, frames * geometry.tokens, heads, config["dim"] // heads)
            layer.store(tokens, tokens)
        return {
            "transformer": lambda: call(filled, "cached"),
            "driving_pass": lambda: call(_NullCache(config["num_layers"]), "extract"),
            "vae_encode": lambda: network("vae").encode(empty(1, 3, length, height, width, kind=torch.float32)),
            "vae_decode": vae_decode,
            "image_encoder": image_encoder,
            "text_encoder": lambda: network("text_encoder")(empty(1, TOKENS, kind=torch.int64)),
        }

    def open_rendering(self, engine: Engine, request: RenderRequest) -> _Rendering:
        with quiet():  # it reports that torchvision, which is not used, is not installed
            from diffusers.modular_pipelines.wan_animate_2.encoders import (
                clip_visual_encode,
                encode_vae,
                get_i2v_mask,
                get_t5_prompt_embeds,
            )

        files, sampling = engine.model.files, request.sampling
        device, dtype = engine.plan.device, engine.plan.dtype
        guidance = sampling.guidance[0]
        tokenizer = load_part(AutoTokenizer, files["tokenizer"])
        check_prompts(tokenizer, sampling, TOKENS)
        with engine.resident("text_encoder"):
            prompts = [DRIVING_PROMPT, sampling.prompt, *([sampling.negative_prompt] if guidance != 1 else [])]
            engine.calls["text_encoder"] += len(prompts)
            encoder = engine.networks["text_encoder"]
            texts = [get_t5_prompt_embeds(encoder, tokenizer, text, TOKENS, device)[0].to(dtype) for text in prompts]
        pixels = _pixels([request.resized], device)[0]
        with engine.resident("image_encoder"):
            engine.calls["image_encoder"] += 2
            encoder = engine.networks["image_encoder"]
            first = _pixels([request.poses.frame(0)], device)[0]
            image, driver = (
                clip_visual_encode(encoder, each, device, encoder.dtype).to(dtype) for each in (pixels, first)
            )
        with engine.resident("vae"):
            engine.calls["vae_encode"] += 1
            vae = engine.networks["vae"]
            latents = encode_vae(vae, pixels[None, :, None])[0]
        channels, _, rows, columns = latents.shape
        reference = torch.cat([get_i2v_mask(1, rows, columns, 1, device=str(device)), latents])
        height, width = request.resized.shape[:2]
        geometry = _Geometry.of(vae.config, request.noise_period, (width, height))
        return _Rendering(
            engine=engine, request=request, scheduler=load_scheduler(files["scheduler"]), guidance=guidance,
            driving_text=texts[0], texts=texts[1:], image=image, driver=driver, reference=reference,
            geometry=geometry, shape=(1, channels, geometry.frames + 1, rows, columns),
            encode_vae=encode_vae, mask=get_i2v_mask,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Grid of a segment's driving tokens (``frames``, ``rows``, ``columns``), its frames and its (height, width).

    A token is one latent frame of 2x2 latents, which diffusers' class assumes too.
    """

    frames: int
    rows: int
    columns: int
    length: int
    area: tuple[int, int]

    @classmethod
    def of(cls, vae: Any, length: int, size: tuple[int, int]) -> _Geometry:
        """``vae``: its config; ``size``: (width, height)."""
        frames, side = (length - 1) // vae["scale_factor_temporal"] + 1, 2 * vae["scale_factor_spatial"]
        return cls(frames, size[1] // side, size[0] // side, length, (size[1], size[0]))

    @property
    def tokens(self) -> int:
        """Tokens per latent frame."""
        return self.rows * self.columns

    @property
    def of_driving(self) -> dict[str, Any]:
        """Arguments of the pass over the driving video."""
        return {"seq_len": self.frames * self.tokens, "offset_grid_sizes": self._grid}

    @property
    def of_step(self) -> dict[str, Any]:
        """Arguments of a denoising step, whose first latent is the reference image's."""
        return {
            "seq_len": (self.frames + 1) * self.tokens,
            "reference_grid_sizes": self._grid,
            "origin_len": self.length,
            "origin_area": list(self.area),
        }

    @property
    def _grid(self) -> Tensor:
        return torch.tensor([[self.frames, self.rows, self.columns]])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendering:
    """A rendering: ``texts`` of the prompt and, if guided, of the negative one; ``image`` CLIP's features of the
    reference and ``driver`` of the first driving frame; ``reference`` its mask and latents. Functions are diffusers'.
    """

    engine: Engine
    request: RenderRequest
    scheduler: Any
    guidance: float
    driving_text: Tensor
    texts: list[Tensor]
    image: Tensor
    driver: Tensor
    reference: Tensor
    geometry: _Geometry
    shape: tuple[int, ...]
    encode_vae: Callable[[Any, Tensor], Tensor]
    mask: Callable[..., Tensor]

    def segment(self, frames: Sequence[int], previous: Tensor | None) -> _Segment:
        engine, geometry = self.engine, self.geometry
        device, dtype = engine.plan.device, engine.plan.dtype
        height, width = geometry.area
        rows, columns = self.shape[-2:]
        driving = _pixels([self.request.poses.frame(frame) for frame in frames], device)
        shared = 0 if previous is None else len(previous)
        conditions = torch.zeros(1, 3, len(frames), height, width, device=device)
        if previous is not None:
            conditions[0, :, :shared] = previous.transpose(0, 1)
        with engine.resident("vae"):
            engine.calls["vae_encode"] += 2
            vae = engine.networks["vae"]
            latents = self.encode_vae(vae, driving.transpose(0, 1)[None])[0]
            before = self.encode_vae(vae, conditions)[0]
        masks = [self.mask(geometry.frames, rows, columns, known, device=device) for known in (len(frames), shared)]
        offloaded = engine.plan.config.offload == "group" and device.type != "cpu"
        with engine.resident("transformer"):
            engine.calls["driving_pass"] += 1
            transformer = engine.networks["transformer"]
            layers = transformer.config.num_layers
            cache = HostKVCache(layers) if offloaded else WanAnimate2KVCache(layers)
            prepare_mask(transformer, geometry.frames, geometry.tokens, device)
            transformer(
                [latents.to(dtype)],
                timestep=torch.ones(1, device=device, dtype=dtype),
                encoder_hidden_states=[self.driving_text],
                encoder_hidden_states_image=self.driver,
                condition_latents=[torch.cat([masks[0], latents]).to(dtype)],
                kv_cache=cache,
                kv_cache_mode="extract",
                **geometry.of_driving,
            )
        known = torch.cat([self.reference, torch.cat([masks[1], before])], dim=1).to(dtype)
        return _Segment(rendering=self, cache=cache, known=known)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """``known``: masks and latents of the reference and of the frames before, [20,t,h,w]."""

    rendering: _Rendering
    cache: WanAnimate2KVCache
    known: Tensor

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        conditional = self._call(latents[0], timestep, self.rendering.texts[0], unconditional=False)
        if self.rendering.guidance == 1:
            return conditional
        unconditional = self._call(latents[0], timestep, self.rendering.texts[1], unconditional=True)
        return unconditional + self.rendering.guidance * (conditional - unconditional)

    def _call(self, latents: Tensor, timestep: Tensor, text: Tensor, *, unconditional: bool) -> Tensor:
        engine = self.rendering.engine
        engine.calls["transformer"] += 1
        sample = engine.networks["transformer"](
            [latents.to(engine.plan.dtype)],
            timestep=timestep.expand(1),
            encoder_hidden_states=[text],
            encoder_hidden_states_image=self.rendering.image,
            condition_latents=[self.known],
            kv_cache=self.cache,
            kv_cache_mode="cached",
            is_uncondtion=unconditional,  # diffusers' spelling: one block is skipped
            **self.rendering.geometry.of_step,
        ).sample
        return sample[0][None]


class _NullCache(WanAnimate2KVCache):
    """A cache that stores nothing, to count a call without it."""

    def get(self, layer_idx: int) -> Any:
        return _NullCacheLayer()


class _NullCacheLayer:
    def store(self, key: Tensor, value: Tensor) -> None:
        """Forget both."""


def _pixels(images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Images uint8[h,w,3] as float32[t,3,h,w] in [-1,1], to the bit as diffusers. The order in memory, on
    which the rounding of CLIP's scaling depends, is that of the images."""
    scaled = torch.from_numpy(np.stack(images).astype(np.float32) / 255.0)
    return (2.0 * scaled.permute(0, 3, 1, 2) - 1.0).to(device)


BACKBONE = WanAnimate2()
