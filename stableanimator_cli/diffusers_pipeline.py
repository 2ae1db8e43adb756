"""``StableAnimatorPipeline``: the same networks as a diffusers pipeline, for programs that are written against one.

Schedulers, callbacks, ``to`` and offload hooks are those of diffusers. Windows, pose features and conditioning are
those of ``sa animate``; face optimisation is a hook on the scheduler (``diffusion.scheduler_hook.refined``).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, DiffusionPipeline, EulerDiscreteScheduler
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from stableanimator_cli import catalogue
from stableanimator_cli.backbone_facts import DEFAULT
from stableanimator_cli.catalogue.remedy import remedy
from stableanimator_cli.detect.face import WIDTH, FaceReader
from stableanimator_cli.diffusion.guidance import blender, window_branches
from stableanimator_cli.diffusion.schedule import SIGMA_MAX, SIGMA_MIN
from stableanimator_cli.diffusion.windows import Blend, WindowPlan, plan_windows
from stableanimator_cli.engine.conditioning import (
    Conditioning,
    PeopleFaces,
    PoseFeatures,
    clip_token,
    face_tokens,
    reference_latents,
    time_ids,
)
from stableanimator_cli.engine.decoder import Decoder
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing, NoFace
from stableanimator_cli.files import atomic_write
from stableanimator_cli.media.image import check_frame, pixels_of
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.nets.face_encoder import FaceEncoder
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.nets.pose_net import PoseNet
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.records import NETWORKS, STRIDE, ModelFolder
from stableanimator_cli.train.base_model import plain_name
from stableanimator_cli.train.export import write_model_folder

ImageInput = Image.Image | np.ndarray
"""An image: of PIL, converted as ``sa animate`` reads it from a file, or uint8[h,w,3] in RGB."""

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class StableAnimatorPipelineOutput(BaseOutput):
    """``frames``: one list of PIL images, float[1,t,h,w,3] in 0..1 (``np``), or a tensor [1,t,...] (``pt``,
    ``latent``)."""

    frames: list[list[Image.Image]] | np.ndarray | Tensor


@dataclass(frozen=True)
class _Frames:
    """Skeleton images with random access, as ``PoseFeatures`` reads them."""

    images: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def frame(self, index: int) -> np.ndarray:
        return self.images[index]


class StableAnimatorPipeline(DiffusionPipeline):
    """Animate a person in an image with skeleton images, and keep the face.

    ``from_pretrained`` opens a model of the catalogue, a model folder or a download of the reference implementation;
    ``save_pretrained`` writes a model folder, which ``sa animate --model`` opens too. Nothing is downloaded.
    """

    model_cpu_offload_seq = "image_encoder->face_encoder->pose_net->unet->vae"
    _callback_tensor_inputs = ("latents",)
    vae: AutoencoderKLTemporalDecoder
    image_encoder: CLIPVisionModelWithProjection
    unet: AnimationUNet
    pose_net: PoseNet
    face_encoder: FaceEncoder
    scheduler: Any

    def __init__(
        self,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        unet: AnimationUNet,
        scheduler: Any,
        pose_net: PoseNet,
        face_encoder: FaceEncoder,
        model: ModelFolder | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, image_encoder=image_encoder, unet=unet, scheduler=scheduler, pose_net=pose_net,
            face_encoder=face_encoder,
        )  # fmt: skip
        self.model = model
        self._faces: FaceReader | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype = torch.float32,
        id_adapter: IDMode | None = None,
        scheduler: Any = None,
    ) -> StableAnimatorPipeline:
        """Load a model on the CPU. ``scheduler`` None is Euler with SVD's noise levels.

        Raises ``ModelMissing`` with the command that downloads the files, and ``ModelDamaged``.
        """
        model = catalogue.open_model(pretrained_model_name_or_path, NETWORKS)
        if model.backbone != DEFAULT:
            problem = f"{model.path}: a model of the backbone {model.backbone}, expected {DEFAULT}"
            raise ModelDamaged(problem, hint="this pipeline has one backbone: use `sa animate` or `api.animate`")
        load = loaders(model, torch_dtype, id_adapter or model.defaults.get("id_adapter", "distribution"))
        scheduler = scheduler or EulerDiscreteScheduler(
            prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX,
            timestep_type="continuous", timestep_spacing="leading", steps_offset=1, interpolation_type="linear",
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        )  # fmt: skip
        networks: dict[str, Any] = {role: load[role]() for role in NETWORKS}
        return cls(**networks, scheduler=scheduler, model=model)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a model folder with the present weights. Raises ``BadInput`` if ``save_directory`` is not empty."""
        folder = Path(save_directory)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(folder, "an existing file or folder", "a new folder", hint="choose another folder")
        model = self._require_model()
        tensors = {role: getattr(self, role).state_dict() for role in NETWORKS}
        with atomic_write(folder, folder=True) as temp:
            shutil.rmtree(temp, ignore_errors=True)
            temp.mkdir(parents=True)
            summary = f"{model.name}, saved by StableAnimatorPipeline"
            write_model_folder(model, tensors, temp, name=plain_name(folder.name), summary=summary, training={})

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        pose_images: Sequence[ImageInput],
        face_image: ImageInput | None = None,
        *,
        face_embedding: np.ndarray | PeopleFaces | None = None,
        allow_no_face: bool = False,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        min_guidance_scale: float = 3.0,
        max_guidance_scale: float = 3.0,
        fps: int = 7,
        motion_bucket_id: float = 127,
        noise_aug_strength: float = 0.02,
        tile_size: int = 16,
        tile_overlap: int = 4,
        blend: Blend = "smooth",
        decode_chunk_size: int = 4,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        return_dict: bool = True,
    ) -> StableAnimatorPipelineOutput | tuple[Any]:
        """Animate ``image`` with one skeleton image per frame, all of the output's size or resized to it.

        Args:
            face_image: shows the face to keep, ``image`` if None; ``face_embedding``: its ArcFace vector float32[512],
                or several people's, each with a region (``engine.conditioning.PeopleFaces``).
            height, width: of the output, multiples of 8; those of the first skeleton image if None.
            tile_size, tile_overlap, blend: windows of a long video (``sa animate --window --overlap --blend``).
            generator: draws the noise on the image first, then the latents, as ``sa animate --noise repeat`` does.
            latents: initial unit noise [1,t,c,h/8,w/8].
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.

        Raises ``NoFace`` without a face unless ``allow_no_face``, ``ModelMissing`` if the model has no face recogniser
        and there is no embedding, and ``ValueError`` for other sizes than multiples of 8, arrays, vectors, steps and
        output types.
        """
        if output_type not in _OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} is not one of {', '.join(_OUTPUT_TYPES)}")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}, expected 1 or more")
        if isinstance(face_embedding, np.ndarray):
            _check_vector(face_embedding)
        drawn_on = torch.device("cpu") if generator is None else generator.device
        skeletons = [_rgb(pose) for pose in pose_images]
        if not skeletons:
            raise ValueError("no skeleton image: one is needed per frame")
        size = (width or skeletons[0].shape[1], height or skeletons[0].shape[0])
        if size[0] % STRIDE or size[1] % STRIDE:
            raise ValueError(f"size {size[0]}x{size[1]} is not a multiple of {STRIDE}")
        pixels = _rgb(image)
        if face_embedding is None:
            face_embedding = self._embed(pixels if face_image is None else _rgb(face_image), allow_no_face)
        transform = resize_transform((pixels.shape[1], pixels.shape[0]), size, "crop")
        x0, y0, x1, y1 = (round(side) for side in transform.box)
        noise = randn_tensor((1, 3, *size[::-1]), generator, device=drawn_on).cpu()
        conditioning = self._condition(
            pixels[y0:y1, x0:x1],
            transform.apply_image(pixels, resample="lanczos"),
            noise,
            noise_aug_strength,
            face_embedding,
            _Frames([_resized(skeleton, size) for skeleton in skeletons]),
            (fps, motion_bucket_id),
        )
        plan = plan_windows(len(skeletons), length=tile_size, overlap=tile_overlap, blend=blend)
        if latents is None:
            shape = (
                1,
                min(tile_size, plan.total),
                conditioning.reference.shape[1],
                size[1] // STRIDE,
                size[0] // STRIDE,
            )
            tile = randn_tensor(shape, generator, device=drawn_on)
            latents = tile.repeat(1, -(-plan.total // shape[1]), 1, 1, 1)[:, : plan.total]
        predict = self._predictor(conditioning, plan, (min_guidance_scale, max_guidance_scale))
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        x: Tensor = latents.to(self._execution_device, torch.float32) * self.scheduler.init_noise_sigma
        with cast(Any, self).progress_bar(total=num_inference_steps) as bar:
            for index, timestep in enumerate(self.scheduler.timesteps):
                output = predict(self.scheduler.scale_model_input(x, timestep)[0], timestep, index)
                x = self.scheduler.step(output[None], timestep, x).prev_sample
                if callback_on_step_end is not None:
                    x = callback_on_step_end(self, index, timestep, {"latents": x}).get("latents", x)
                bar.update()
        frames = self._output(x, decode_chunk_size, output_type)
        self.maybe_free_model_hooks()
        return StableAnimatorPipelineOutput(frames=frames) if return_dict else (frames,)

    def _require_model(self) -> ModelFolder:
        if self.model is None:
            raise ModelMissing("this pipeline was not opened from a model", hint="use from_pretrained")
        return self.model

    def _embed(self, image: np.ndarray, allow_no_face: bool) -> np.ndarray | None:
        """The ArcFace vector of the largest face."""
        model = self._require_model()
        if "face" not in model.files:
            if allow_no_face:
                return None
            hint = f"{remedy(model, 'face')}, pass face_embedding=, or allow_no_face=True"
            raise ModelMissing(f"model {model.name!r} has no face detector", hint=hint)
        if self._faces is None:
            self._faces = FaceReader(model.files["face"], model.face_channel_order, str(self._execution_device))
        known = [face.embedding for face in self._faces.faces(image) if face.embedding is not None]
        if not known and not allow_no_face:
            hint = "use an image where the face is larger and seen from the front, or allow_no_face=True"
            raise NoFace("no face found in the image", hint=hint)
        return known[0] if known else None

    def _condition(
        self,
        image: np.ndarray,
        resized: np.ndarray,
        noise: Tensor,
        noise_aug: float,
        face: np.ndarray | PeopleFaces | None,
        poses: _Frames,
        rates: tuple[int, float],
    ) -> Conditioning:
        """As ``engine.Engine.encode``, on the devices that diffusers' hooks choose."""
        device = self._execution_device
        if isinstance(face, PeopleFaces):
            face.check_fits(len(poses), (resized.shape[1], resized.shape[0]))
            face = face if face.known.any() else None
        token = clip_token(self.image_encoder, image).to(device)

        def encode(vector: np.ndarray) -> Tensor:
            return self.face_encoder(torch.from_numpy(vector).to(token)[None], token)

        tokens = None if face is None else face_tokens(encode, face)
        features = PoseFeatures(self.pose_net, poses, budget=1 << 30, calls=Counter())
        return Conditioning(
            image=token,
            face=tokens,
            reference=reference_latents(self.vae, resized, noise, noise_aug).to(device),
            time_ids=time_ids(*rates, noise_aug, token),
            pose=features,
            regions=face.regions_on(device) if isinstance(face, PeopleFaces) else None,
        )

    def _predictor(
        self, conditioning: Conditioning, plan: WindowPlan, guidance: tuple[float, float]
    ) -> Callable[[Tensor, Tensor, int], Tensor]:
        """(scaled latents [t,c,h,w], timestep, step) -> the guided output over the windows of the step."""
        reference, contexts = conditioning.reference, conditioning.contexts(guided=True)

        def call(latents: Tensor, timestep: Tensor, frames: tuple[int, ...], conditional: bool) -> Tensor:
            image = reference if conditional else torch.zeros_like(reference)
            index = torch.tensor(frames, device=latents.device)
            sample = torch.cat([latents[index].to(reference), image.expand(len(frames), -1, -1, -1)], dim=1)[None]
            pose = conditioning.pose.window(frames).to(reference) if conditional else None
            context = conditioning.with_regions(contexts[True], frames) if conditional else contexts[False]
            return self.unet(sample, timestep, context, conditioning.time_ids, pose)[0].to(latents)

        def predict(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
            placement = plan.placement(step)
            branches = window_branches(placement, guidance)
            outputs = (call(latents, timestep, window.frames, conditional) for window, conditional in branches)
            return blender(placement, guidance=guidance)(latents, outputs)

        return predict

    def _output(self, latents: Tensor, chunk: int, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        decoder = Decoder(self.vae, Counter())
        pixels = torch.cat([decoder.pixels(part).float().cpu() for part in latents[0].split(chunk)])
        pixels = ((pixels + 1) / 2).clamp(0, 1)
        if output_type == "pt":
            return pixels[None]
        images = pixels.permute(0, 2, 3, 1).numpy()
        if output_type == "np":
            return images[None]
        return [[Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]]


def _check_vector(embedding: np.ndarray) -> None:
    """Raise ``ValueError`` for what no face recogniser gives."""
    if embedding.shape != (WIDTH,):
        raise ValueError(f"face_embedding of shape {embedding.shape}, expected ({WIDTH},)")
    if not np.isfinite(embedding).all() or not embedding.any():
        raise ValueError("face_embedding is not finite, or zeros only: pass None and allow_no_face=True for no face")


def _rgb(image: ImageInput) -> np.ndarray:
    if isinstance(image, Image.Image):
        return pixels_of(image)
    check_frame(image)
    return image


def _resized(skeleton: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    own = (skeleton.shape[1], skeleton.shape[0])
    return skeleton if own == size else resize_transform(own, size, "stretch").apply_image(skeleton, resample="bicubic")
