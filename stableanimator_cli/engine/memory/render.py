"""Estimate the device memory of a rendering before anything is loaded, for ``--plan`` and ``--max-memory``.

Activations are counted, not modelled: the networks run on the ``meta`` device, the UNet on the longest window, the VAE
on one chunk. Weights on the device, latents of the full video and cached features are added.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from stableanimator_cli.config.animate import AnimateConfig, DeviceConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.diffusion.face_optimization import Box
from stableanimator_cli.diffusion.guidance import is_guided, window_branches
from stableanimator_cli.diffusion.windows import WindowPlan, plan_windows
from stableanimator_cli.engine.backbones import backbone_of
from stableanimator_cli.engine.conditioning import CLIP_SIZE, bytes_of_pose_frame
from stableanimator_cli.engine.group_offload import blocks_of, bytes_of
from stableanimator_cli.engine.memory.onnx_networks import (
    face_networks,
    motion_detection,
    recogniser_bytes,
    recogniser_file,
)
from stableanimator_cli.engine.memory.prediction import RenderMemory
from stableanimator_cli.engine.memory.profile import FlopCounter, peak_bytes, prepare_context
from stableanimator_cli.engine.weights import build_on_meta, builders, recogniser
from stableanimator_cli.nets.arcface import crop_resize
from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.quantized import quantize_weights
from stableanimator_cli.nets.unet import AnimationUNet
from stableanimator_cli.records import STRIDE, ModelFolder

FRAGMENTED = 0.04  # of live memory: rounding and fragmentation of torch's CUDA allocator
CONTEXT = 600 << 20  # the CUDA context and workspaces of libraries
WORKSPACES = 0.12  # of live memory: CPU kernels and malloc, measured (docs/performance.md)
ARENA = 512 << 20  # ONNX Runtime on a GPU: images of 640x640, cuDNN's workspaces, growth in powers of two
PROGRAM = 700 << 20  # this process and its libraries, measured; on a GPU not in device memory
_LATENTS = 5  # copies for the full video: latents, denoised, outputs, and two in the sampler
_SHARE = 0.8  # of the available memory that face optimisation without checkpoints may fill
_FACE = 4  # size of a face of which nothing is known: a quarter of the frame's shorter side
# networks that each stage moves to the device, in order; without offloading they stay
_STAGES = {
    "motion detection": (),
    "image encoder": ("image_encoder", "face_encoder"),
    "VAE encoder": ("vae",),
    "UNet": ("unet", "pose_net"),
    "face optimisation": ("vae", "recogniser"),
    "VAE decoder": ("vae",),
    "face detection": ("vae",),
}
_COUNTS: dict[tuple[Any, ...], Any] = {}
"""Counts of this process by all that they depend on: a page or a program renders with one model many times."""


@dataclass(slots=True)
class MemoryEstimator:
    """Estimate memory for one model, ``size`` (width, height) and number of ``frames``, anchor included.

    ``available`` bytes decide ``refine.checkpointing auto``. ``face_sets`` of face tokens are one, or with regions one
    per person and one for the background. ``detected_size``: (width, height) of the plain video in which the motion is
    detected first, None for another motion. ``face_box``: the largest that face optimisation decodes at once (x0, y0,
    x1, y1 in output pixels), None if unknown. Counts are cached in the process, so other settings and further
    renderings cost only what they change.
    """

    model: ModelFolder
    device: torch.device
    dtype: torch.dtype
    size: tuple[int, int]
    frames: int
    available: int = 0
    face_sets: int = 1
    detected_size: tuple[int, int] | None = None
    face_box: Box | None = None
    _networks: dict[tuple[str, str], Any] = field(default_factory=dict)
    _counts: MutableMapping[tuple[Any, ...], Any] = field(default_factory=lambda: _COUNTS)

    def of(self, config: AnimateConfig) -> RenderMemory:
        """Memory of a rendering with these settings. Only the model's configs are read."""
        plan = config.device
        window, chunk = min(config.windows.length, self.frames), min(config.decode.chunk, self.frames)
        width, height = self._latent
        channels = self._network("unet", plan.quantization).config["block_out_channels"][0]
        latents = 4 * self.frames * self._network("vae").config["latent_channels"] * width * height
        regions = 4 * self.frames * self.face_sets * width * height if self.face_sets > 1 else 0
        frame = bytes_of_pose_frame(channels, self.size[1], self.size[0], self.dtype)
        poses = min(self.frames, (plan.pose_budget_mb << 20) // frame) * frame
        cached = poses + regions + self._deep_features(config, window)
        work = {
            "image encoder": self._image_encoder(),
            "VAE encoder": self._vae_encoder(),
            "UNet": _LATENTS * latents + cached + max(self._pose_net(window), self._unet(window, plan)),
            "VAE decoder": latents + self._vae_decoder(chunk),
        }
        if self._refines_faces(config):
            mode = "crop" if config.refine.face == "auto" else config.refine.face
            work["face optimisation"] = _LATENTS * latents + cached + self._face(chunk, mode, config)
            if plan.cuda_graphs:  # recorded graphs keep their memory between steps
                work["face optimisation"] += self._cuda_graphs(config, window)
        if plan.cuda_graphs:  # the warm-up before a recording runs beside earlier graphs
            work["UNet"] += self._cuda_graphs(config, window)
        work |= self._detection(config, latents)
        return self._by_stage(_STAGES, work, lambda network: self._weights(network, plan), plan)

    def _detection(self, config: AnimateConfig, latents: int) -> dict[str, int]:
        """Stages in which ONNX networks run, if they run in the device's memory: before the rendering in a plain video,
        and on decoded frames."""
        if not self._runs_onnx:
            return {}
        work = {}
        if self.detected_size is not None:
            work["motion detection"] = motion_detection(self.model, self.detected_size)
        faces = face_networks(self.model)
        if faces is not None:
            pixels = 4 * 3 * min(config.decode.chunk, self.frames) * self.size[0] * self.size[1]
            work["face detection"] = latents + pixels + faces.activations
        return work

    def _refines_faces(self, config: AnimateConfig) -> bool:
        return config.refine.face != "off" and config.refine.iterations > 0 and "face" in self.model.files

    def _by_stage(
        self,
        networks: Mapping[str, tuple[str, ...]],
        work: Mapping[str, int],
        weights_of: Callable[[str], int],
        plan: DeviceConfig,
    ) -> RenderMemory:
        """Memory of stages in the order of ``networks``, each with ``work`` bytes besides the weights of its networks.

        Networks of earlier stages stay unless they are offloaded; on a CPU these stay in the same memory.
        """
        on_cpu = self.device.type == "cpu"
        offloading = plan.offload != "none" and not on_cpu
        resident: set[str] = set()
        stages: dict[str, tuple[int, int]] = {}

        def weights(network: str) -> int:
            return recogniser_bytes(self.model) if network == "recogniser" else weights_of(network)

        for name, needed in networks.items():
            if name in work:
                resident = set(needed) if offloading else resident | set(needed)
                stages[name] = sum(weights(network) for network in resident), work[name]
        peak = max(sum(parts) for parts in stages.values())
        reserve = WORKSPACES * peak + PROGRAM if on_cpu else FRAGMENTED * peak + CONTEXT
        faces = face_networks(self.model) if self._runs_onnx else None
        resident_faces = 0 if faces is None else faces.weights + (0 if on_cpu else ARENA)
        return RenderMemory(stages=stages, faces=resident_faces, reserve=int(reserve))

    def checkpointed(self, config: AnimateConfig) -> bool:
        """Whether face optimisation on full frames recomputes the decoder's blocks: ``auto`` does, unless the whole
        graph fits into ``_SHARE`` of the available memory."""
        if config.refine.checkpointing != "auto":
            return config.refine.checkpointing == "on"
        if not self.available or config.refine.face != "full":
            return True
        unchecked = replace(config, refine=replace(config.refine, checkpointing="off"))
        return self.of(unchecked).total > _SHARE * self.available

    def work(self, config: AnimateConfig) -> dict[str, FlopCounter]:
        """Operations of one call: ``unet`` on the longest window with a face, ``decoder`` on a chunk, and ``face``, an
        iteration of face optimisation on a chunk."""
        window, chunk = min(config.windows.length, self.frames), min(config.decode.chunk, self.frames)
        again = replace(self, _counts={})  # bytes are counted already, and nothing would run
        plan = config.device
        runs: dict[str, tuple[Callable[[], object], tuple[Any, ...]]] = {
            "unet": (lambda: again._unet(window, plan), (window, plan.ff_chunks, plan.quantization)),
            "decoder": (lambda: again._vae_decoder(chunk), (chunk,)),
        }
        if self._refines_faces(config):
            mode = "crop" if config.refine.face == "auto" else config.refine.face
            settings = chunk, mode, config.refine.crop_margin, self.checkpointed(config)
            runs["face"] = (lambda: again._face(chunk, mode, config), settings)

        def count(run: Callable[[], object]) -> FlopCounter:
            with FlopCounter() as counter:
                run()
            return counter

        return {
            name: self._cached("work", name, *settings, count=lambda run=run: count(run))
            for name, (run, settings) in runs.items()
        }

    @property
    def _runs_onnx(self) -> bool:
        """Whether ONNX Runtime uses the device's memory; a plan for a card that is not here expects that."""
        elsewhere = self.device.type == "cuda" and not torch.cuda.is_available()
        return self.device.type == "cpu" or elsewhere or onnx.on_card(str(self.device))

    def _cuda_graphs(self, config: AnimateConfig, window: int) -> int:
        """Memory of CUDA graphs: a pool of the size of one call; inputs and output per branch and window length."""
        unet, (width, height) = self._network("unet", config.device.quantization), self._latent
        plan = self._windows(config)
        lengths = {len(window.frames) for turn in range(plan.num_placements) for window in plan.placement(turn)}
        channels = unet.sample_channels + unet.config["out_channels"] + unet.config["block_out_channels"][0]
        size = sum(lengths) * channels * width * height * self.dtype.itemsize
        if self.face_sets > 1:
            size += 4 * sum(lengths) * self.face_sets * width * height
        return self._unet(window, config.device) + (2 if is_guided(*config.sampling.guidance) else 1) * size

    def _windows(self, config: AnimateConfig) -> WindowPlan:
        windows = config.windows
        return plan_windows(self.frames, length=windows.length, overlap=windows.overlap, blend=windows.blend)

    @property
    def _latent(self) -> tuple[int, int]:
        return self.size[0] // STRIDE, self.size[1] // STRIDE

    def _cached(self, *key: Any, count: Callable[[], Any]) -> Any:
        key = (*self._identity, *key)
        if key not in self._counts:
            self._counts[key] = count()
        return self._counts[key]

    @property
    def _identity(self) -> tuple[Any, ...]:
        """Values on which every count depends."""
        configs = json.dumps({role: dict(config) for role, config in self.model.configs.items()}, default=str)
        file = recogniser_file(self.model) if "face" in self.model.files else None
        stat = file and file.stat()
        recogniser = stat and (str(file), stat.st_size, stat.st_mtime_ns)
        where = self.device.type, self.dtype, self.size, self.face_sets, self._face_box
        return self.model.backbone, configs, recogniser, *where

    def _built(self, role: str, weights: str, build: Callable[[], Any]) -> Any:
        key = role, weights
        if key not in self._networks:
            self._networks[key] = build()
        return self._networks[key]

    def _network(self, role: str, weights: str = "plain") -> Any:
        def build() -> nn.Module:
            network = build_on_meta(builders(self.model, "distribution")[role], self.dtype)
            network = network.eval().requires_grad_(False)
            return quantize_weights(network, weights) if role == "unet" else network  # type: ignore[arg-type]

        return self._built(role, weights if role == "unet" else "", build)

    def _weights(self, role: str, plan: DeviceConfig) -> int:
        """Bytes of a network on the device; with group offload the blocks count as two buffers of the largest one."""
        network = self._network(role, plan.quantization)
        if role != "unet" or plan.offload != "group" or self.device.type == "cpu":
            return bytes_of(network)
        blocks = [bytes_of(block) for block in blocks_of(network)]
        return bytes_of(network) - sum(blocks) + 2 * max(blocks)

    def _peak(self, run: Callable[[], object]) -> int:
        with torch.no_grad():
            return peak_bytes(run, on_cpu=self.device.type == "cpu")

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype or self.dtype)

    def _image_encoder(self) -> int:
        encoder = self._network("image_encoder")

        def count() -> int:
            return self._peak(lambda: encoder(pixel_values=self._empty(1, 3, CLIP_SIZE, CLIP_SIZE)))

        return self._cached("image encoder", count=count)

    def _vae_encoder(self) -> int:
        vae = self._network("vae")
        image = self._empty(1, 3, self.size[1], self.size[0])

        def count() -> int:
            alive = self._peak(lambda: vae.encode(image, return_dict=False))
            if self.dtype == torch.float16 and vae.config["force_upcast"]:
                return 2 * alive + bytes_of(vae)  # upcast to float32 while encoding
            return alive

        return self._cached("VAE encoder", count=count)

    def _pose_net(self, window: int) -> int:
        net, (width, height) = self._network("pose_net"), self.size
        images = 4 * window * 3 * width * height

        def count() -> int:
            return images + self._peak(lambda: net(self._empty(window, 3, height, width)))

        return self._cached("PoseNet", window, count=count)

    def _unet(self, window: int, plan: DeviceConfig) -> int:
        """One call of ``Engine.denoiser`` on a window, with a face."""
        unet: AnimationUNet = self._network("unet", plan.quantization)
        width, height = self._latent

        def count() -> int:
            unet.ff_chunks = plan.ff_chunks
            channels, tokens = unet.config["block_out_channels"][0], unet.config["cross_attention_dim"]
            face = self._empty(1, self.face_sets * unet.id_tokens, tokens)
            regions = self._empty(window, self.face_sets, height, width, dtype=torch.float32)
            context = prepare_context(
                unet, self._empty(1, 1, tokens), face, regions=regions if self.face_sets > 1 else None
            )

            def call() -> None:
                sample = self._empty(1, window, unet.sample_channels, height, width)
                pose = torch.stack([self._empty(channels, height, width)] * window)
                unet(sample, 1.0, context, self._empty(1, 3), pose)

            return self._peak(call)

        return self._cached("UNet", window, self.face_sets, plan.ff_chunks, plan.quantization, count=count)

    def _deep_features(self, config: AnimateConfig, window: int) -> int:
        """Deep features cached by ``--cache-features`` for the windows and branches of one process."""
        sampling = config.sampling
        if sampling.cache_features == 1:
            return 0
        unet: AnimationUNet = self._network("unet", config.device.quantization)
        width, height = self._latent

        def count() -> int:
            sample = self._empty(1, window, unet.sample_channels, height, width)
            tokens = self._empty(1, 1, unet.config["cross_attention_dim"])
            layers = min(sampling.cache_layers, unet.num_up_layers)
            with torch.no_grad():
                deep = unet.forward_caching(sample, 1.0, Context(tokens, None), self._empty(1, 3), layers=layers)[1]
            return deep.numel() * deep.element_size()

        plan = self._windows(config)
        branches = -(-len(window_branches(plan, sampling.guidance)) // config.device.gpus)
        if sampling.guidance_interval is not None and is_guided(*sampling.guidance):
            branches = max(branches, len(plan))  # outside the interval one process computes all windows
        return branches * self._cached("deep features", window, sampling.cache_layers, count=count)

    def _vae_decoder(self, chunk: int) -> int:
        width, height = self._latent
        vae = self._network("vae")
        channels, decoder = vae.config["latent_channels"], backbone_of(self.model).decoder(vae, Counter())
        return self._cached(
            "VAE decoder",
            chunk,
            count=lambda: self._peak(lambda: decoder.pixels(self._empty(chunk, channels, height, width)).float()),
        )

    def _face(self, chunk: int, mode: str, config: AnimateConfig) -> int:
        """Forward and backward through decoder and recogniser for one chunk."""
        checkpointed, margin = self.checkpointed(config), config.refine.crop_margin
        width, height = self._latent
        vae = self._network("vae")
        backbone = backbone_of(self.model)
        decoder = backbone.face_decoder(vae, Counter(), checkpointed=checkpointed, margin=margin)
        box = self._face_box
        embedded = self._embedding(box)

        def step() -> None:
            latents = self._empty(chunk, vae.config["latent_channels"], height, width, dtype=torch.float32)
            variable = latents.requires_grad_(True)
            if mode == "full":
                embedded(decoder.pixels(variable), (0, 0)).mean().backward()
            else:
                frames = range(chunk)
                with decoder.with_recorded_stats(latents, [frames]), torch.enable_grad():
                    embedded(*decoder.crop(variable, frames, box)).mean().backward()

        def count() -> int:
            with torch.enable_grad():
                alive = peak_bytes(step, on_cpu=self.device.type == "cpu")
            return 2 * alive if self.dtype == torch.float16 else alive  # the decoder then runs in float32

        return self._cached("face", chunk, mode, margin, checkpointed, count=count)

    @property
    def _face_box(self) -> Box:
        side = min(self.size) // _FACE
        return self.face_box or (0, 0, side - 1, side - 1)

    def _embedding(self, box: Box) -> Callable[[Tensor, tuple[int, int]], Tensor]:
        """Faces in ``box`` of decoded pixels [b,3,h,w] as embeddings, or the pixels themselves before the
        recogniser is downloaded."""
        file = recogniser_file(self.model)
        if file is None:
            return lambda pixels, corner: pixels.float()
        network = self._built("recogniser", "", lambda: recogniser(file).to("meta"))

        def embed(pixels: Tensor, corner: tuple[int, int]) -> Tensor:
            x, y = corner
            boxes = [(box[0] - x, box[1] - y, box[2] - x, box[3] - y)] * len(pixels)
            return network.embed(crop_resize(pixels.float().clamp(-1, 1), boxes, network.size[0]))

        return embed
