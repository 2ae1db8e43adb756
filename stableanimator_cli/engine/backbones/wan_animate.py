"""Wan-Animate (Wan2.2-Animate-14B): diffusers' ``WanAnimatePipeline`` with its parts from a folder in its layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanAnimateTransformer3DModel
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil

from stableanimator_cli.engine.backbones.diffusers_folder import (
    check_prompts,
    load_part,
    load_scheduler,
    quiet,
    text_embedding,
)
from stableanimator_cli.engine.backbones.segments import SegmentBackbone
from stableanimator_cli.engine.conditioning import PoseFrames
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.records import ModelFolder

TOKENS = 512
"""Length of the prompt's embedding."""


class WanAnimate(SegmentBackbone):
    """A flow-matching transformer conditioned on the reference's latents, a pose video and a video of the face."""

    transformer = WanAnimateTransformer3DModel

    def count_calls(self, request: RenderRequest) -> dict[str, int]:
        segments, steps = len(request.plan), request.sampling.steps
        guided = request.sampling.guidance[0] > 1
        return {
            "transformer": segments * steps * (1 + guided),
            "windows": segments * steps,
            "text_encoder": 1 + guided,
            "image_encoder": 1,
            "vae_encode": 1 + 2 * segments,
            "vae_decode": 2 * segments - 1,
        }

    def example_calls(
        self, model: ModelFolder, network: Callable[[str], Any], length: int, size: tuple[int, int], dtype: torch.dtype
    ) -> dict[str, Callable[[], object]]:
        width, height = size

        def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, device="meta", dtype=kind)

        def transformer() -> None:
            net, vae = network("transformer"), network("vae").config
            config = net.config
            frames, scale = (length - 1) // vae["scale_factor_temporal"] + 1, vae["scale_factor_spatial"]
            grid, face = (height // scale, width // scale), config["motion_encoder_size"]
            vision = network("image_encoder").config
            net(
                hidden_states=empty(1, config["in_channels"], frames + 1, *grid),
                timestep=empty(1, kind=torch.int64),
                encoder_hidden_states=empty(1, TOKENS, config["text_dim"]),
                encoder_hidden_states_image=empty(
                    1, (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size
                ),
                pose_hidden_states=empty(1, vae["z_dim"], frames, *grid),
                face_pixel_values=empty(1, 3, length, face, face),
                return_dict=False,
            )

        def vae_decode() -> None:
            vae = network("vae")
            frames, scale = (length - 1) // vae.config["scale_factor_temporal"] + 1, vae.config["scale_factor_spatial"]
            latents = empty(frames, vae.config["z_dim"], height // scale, width // scale, kind=torch.float32)
            for _ in self.decoder(vae, Counter()).parts(latents):
                pass

        def image_encoder() -> None:
            encoder = network("image_encoder")
            side = encoder.config.image_size
            encoder(pixel_values=empty(1, 3, side, side), output_hidden_states=True)

        def text_encoder() -> None:
            tokens = empty(1, TOKENS, kind=torch.int64)
            network("text_encoder")(tokens)  # a mask would be read, and meta tensors have no values

        return {
            "transformer": transformer,
            "vae_encode": lambda: network("vae").encode(empty(1, 3, length, height, width, kind=torch.float32)),
            "vae_decode": vae_decode,
            "image_encoder": image_encoder,
            "text_encoder": text_encoder,
        }

    def open_rendering(self, engine: Engine, request: RenderRequest) -> _Rendering:
        with quiet():  # it reports that torchvision, which is not used, is not installed
            from diffusers import WanAnimatePipeline

        files, sampling = engine.model.files, request.sampling
        device, dtype = engine.plan.device, engine.plan.dtype
        height, width = request.resized.shape[:2]
        guidance = sampling.guidance[0]
        resized = Image.fromarray(request.resized)
        tokenizer = load_part(AutoTokenizer, files["tokenizer"])
        check_prompts(tokenizer, sampling, TOKENS)
        with engine.resident("text_encoder"):
            prompts = [sampling.prompt, *([sampling.negative_prompt] if guidance > 1 else [])]
            engine.calls["text_encoder"] += len(prompts)
            texts = [
                text_embedding(engine.networks["text_encoder"], tokenizer, prompt, TOKENS, device).to(dtype)
                for prompt in prompts
            ]
        kind: Any = WanAnimatePipeline  # whose own types allow no missing part
        pipe = kind(
            tokenizer=tokenizer, text_encoder=None, vae=engine.networks["vae"],
            scheduler=load_scheduler(files["scheduler"]),
            image_processor=load_part(CLIPImageProcessorPil, files["image_processor"]), image_encoder=None,
            transformer=None,
        )  # fmt: skip
        with engine.resident("image_encoder"):
            engine.calls["image_encoder"] += 1
            encoder = engine.networks["image_encoder"]
            pixels = pipe.image_processor(images=resized, return_tensors="pt").to(device, encoder.dtype)
            image = encoder(**pixels, output_hidden_states=True).hidden_states[-2].to(dtype)
        with engine.resident("vae"):
            engine.calls["vae_encode"] += 1
            pixels = pipe.vae_image_processor.preprocess(resized, height=height, width=width, resize_mode="fill")
            reference = pipe.prepare_reference_image_latents(pixels.to(device, torch.float32), device=device)
        frames = (request.noise_period - 1) // pipe.vae_scale_factor_temporal + 1
        return _Rendering(
            engine=engine, request=request, pipe=pipe, texts=texts, image=image, reference=reference,
            guidance=guidance, shape=(1, pipe.vae.config.z_dim, frames + 1, *reference.shape[-2:]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendering:
    """A rendering: ``texts`` of the prompt and, if guided, of the negative one; ``image`` CLIP's features."""

    engine: Engine
    request: RenderRequest
    pipe: Any
    texts: list[Tensor]
    image: Tensor
    reference: Tensor
    guidance: float
    shape: tuple[int, ...]

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    def segment(self, frames: Sequence[int], previous: Tensor | None) -> _Segment:
        pipe, engine = self.pipe, self.engine
        device, dtype = engine.plan.device, engine.plan.dtype
        height, width = self.request.resized.shape[:2]
        face_size = engine.model.configs["transformer"].get("motion_encoder_size", 512)
        faces = self._video(self.request.streams["face"], frames, (face_size, face_size))
        poses = self._video(self.request.poses, frames, (width, height))
        with engine.resident("vae"):
            engine.calls["vae_encode"] += 2
            pose = pipe.prepare_pose_latents(poses, device=device).to(dtype)
            conditions = pipe.prepare_prev_segment_cond_latents(
                None if previous is None else previous.transpose(0, 1)[None],
                segment_frame_length=len(frames),
                start_frame=int(previous is not None),
                height=height,
                width=width,
                prev_segment_cond_frames=1 if previous is None else len(previous),
                device=device,
            )
        return _Segment(
            rendering=self, pose=pose, faces=faces.to(dtype), reference=torch.cat([self.reference, conditions], dim=2)
        )

    def _video(self, images: PoseFrames, frames: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Images as the pipeline's video [1,3,t,h,w] in [-1,1]."""
        images_of_frames = [Image.fromarray(images.frame(frame)) for frame in frames]
        video = self.pipe.video_processor.preprocess_video(images_of_frames, height=size[1], width=size[0])
        return video.to(self.engine.plan.device, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    rendering: _Rendering
    pose: Tensor
    faces: Tensor
    reference: Tensor

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        sample = torch.cat([latents, self.reference], dim=1)
        conditional = self._call(sample, timestep, self.rendering.texts[0], self.faces, "cond")
        if self.rendering.guidance <= 1:
            return conditional
        # without the face's expression, as the authors: black pixels
        unconditional = self._call(sample, timestep, self.rendering.texts[1], self.faces * 0 - 1, "uncond")
        return unconditional + self.rendering.guidance * (conditional - unconditional)

    def _call(self, sample: Tensor, timestep: Tensor, text: Tensor, faces: Tensor, branch: str) -> Tensor:
        engine = self.rendering.engine
        engine.calls["transformer"] += 1
        transformer = engine.networks["transformer"]
        with transformer.cache_context(branch):
            return transformer(
                hidden_states=sample.to(engine.plan.dtype),
                timestep=timestep.expand(1),
                encoder_hidden_states=text,
                encoder_hidden_states_image=self.rendering.image,
                pose_hidden_states=self.pose,
                face_pixel_values=faces,
                return_dict=False,
            )[0]


BACKBONE = WanAnimate()
