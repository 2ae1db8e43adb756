"""What a rendering needs on its device, before anything is loaded: what ``--plan`` prints and ``memory_fit`` asks.

What a stage keeps alive is not modelled but counted: its networks run on the ``meta`` device (``alive``), the UNet on
the longest window, the VAE on one chunk. Beside that lie the weights that the plan leaves on the device, the latents of
the whole video, and the pose features and deep features that are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stableanimator_cli.config.animate import AnimateConfig, DeviceConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.diffusion.guidance import is_guided, window_branches
from stableanimator_cli.diffusion.windows import WindowPlan, plan_windows
from stableanimator_cli.engine.conditioning import CLIP_SIZE, bytes_of_pose_frame
from stableanimator_cli.engine.decoder import Decoder, FaceDecoder
from stableanimator_cli.engine.group_offload import blocks_of, bytes_of
from stableanimator_cli.engine.memory.profile import alive_bytes
from stableanimator_cli.engine.weights import builders
from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.nets.id_adapter import PreparedCrossAttention
from stableanimator_cli.nets.quantized import quantize_weights
from stableanimator_cli.nets.unet import AnimationUNet, Context
from stableanimator_cli.records import STRIDE, ModelFolder

FRAGMENTED = 0.04  # of what is alive: what torch's allocator on a card rounds up and cannot use
CONTEXT = 600 << 20  # CUDA's own, with the libraries' workspaces
WORKSPACES = 0.12  # of what is alive: what a CPU's kernels and malloc take, from resident sizes (docs/performance.md)
ARENA = 512 << 20  # ONNX Runtime's on a card: pictures of 640x640, cuDNN's workspaces, and its growth in powers of two
PROGRAM = 700 << 20  # this program and its libraries, from the same; on a card that is another memory
_LATENTS = 5  # of the whole video at once: latents, clean estimate, answers, and two of the sampler's
_FACE = 4  # a face is taken to be a quarter of the frame's shorter side
# networks that come onto the device at each stage, in order; without swapping they stay
_STAGES = {
    "image encoder": ("image_encoder", "face_encoder"),
    "VAE encoder": ("vae",),
    "UNet": ("unet", "pose_net"),
    "face optimisation": ("vae",),
    "VAE decoder": ("vae",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderMemory:
    """Bytes on the device. ``stages`` by name: weights that are there, and what is alive beside them. ``reserve`` is
    what the allocator and the card (on a CPU: this program) take for themselves."""

    stages: dict[str, tuple[int, int]]
    reserve: int

    @property
    def allocated(self) -> int:
        """Most at once, as an allocator counts it."""
        return max(sum(parts) for parts in self.stages.values())

    @property
    def total(self) -> int:
        return self.allocated + self.reserve

    @property
    def worst(self) -> str:
        """The stage that needs most."""
        return max(self.stages, key=lambda name: sum(self.stages[name]))

    def to_json(self) -> dict[str, Any]:
        stages = {name: {"weights": there, "alive": alive} for name, (there, alive) in self.stages.items()}
        return {"total": self.total, "allocated": self.allocated, "reserve": self.reserve, "stages": stages}

    def describe(self) -> str:
        there, alive = self.stages[self.worst]
        return (
            f"{_gib(self.total)} predicted: {_gib(there)} of weights and {_gib(alive)} of work in the {self.worst}, "
            f"{_gib(self.reserve)} for the allocator and the libraries"
        )


@dataclass(slots=True)
class MemoryEstimator:
    """Counts one model at one size (width, height); ``frames`` is the length of the video, anchor included. What was
    counted is kept, so that trying other settings costs only what they change."""

    model: ModelFolder
    device: torch.device
    dtype: torch.dtype
    size: tuple[int, int]
    frames: int
    _known: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def of(self, config: AnimateConfig) -> RenderMemory:
        """Memory of a run with these settings. Only the model's configs are read."""
        plan = config.device
        on_cpu = self.device.type == "cpu"
        window, chunk = min(config.windows.length, self.frames), min(config.decode.chunk, self.frames)
        width, height = self._latent
        channels = self._network("unet", plan.quantization).config["block_out_channels"][0]
        latents = 4 * self.frames * self._network("vae").config["latent_channels"] * width * height
        frame = bytes_of_pose_frame(channels, self.size[1], self.size[0], self.dtype)
        poses = min(self.frames, (plan.pose_budget_mb << 20) // frame) * frame
        kept = poses + self._deep(config, window)
        work = {
            "image encoder": self._image_encoder(),
            "VAE encoder": self._vae_encoder(),
            "UNet": _LATENTS * latents + kept + max(self._pose_net(window), self._unet(window, plan)),
            "VAE decoder": latents + self._vae_decoder(chunk),
        }
        if config.refine.face != "off" and config.refine.iterations and "face" in self.model.files:
            mode = "crop" if config.refine.face == "auto" else config.refine.face
            work["face optimisation"] = _LATENTS * latents + kept + self._face(chunk, mode, config.refine.crop_margin)
            if plan.cuda_graphs:  # what is recorded keeps its memory between steps
                work["face optimisation"] += self._recorded(config, window)
        if plan.cuda_graphs:  # calls before a recording have memory of their own beside what was recorded before
            work["UNet"] += self._recorded(config, window)
        swapping = plan.offload != "none" and not on_cpu  # on a CPU the networks wait in the same memory
        there: set[str] = set()
        stages: dict[str, tuple[int, int]] = {}
        for name, networks in _STAGES.items():
            if name in work:
                there = set(networks) if swapping else there | set(networks)
                stages[name] = sum(self._weights(network, plan) for network in there), work[name]
        most = max(sum(parts) for parts in stages.values())
        reserve = WORKSPACES * most + PROGRAM if on_cpu else FRAGMENTED * most + CONTEXT + self._detectors()
        return RenderMemory(stages=stages, reserve=int(reserve))

    def _detectors(self) -> int:
        """Memory of ONNX Runtime, which torch does not see: face networks that stay open for the whole run."""
        if "face" not in self.model.files or not onnx.on_card(str(self.device)):
            return 0
        folder = self.model.files["face"]
        return ARENA + sum(file.stat().st_size for file in folder.glob("**/*.onnx"))

    def _recorded(self, config: AnimateConfig, window: int) -> int:
        """What CUDA graphs keep: a pool as large as one call, and by branch and length of a window its inputs and its
        answer."""
        unet, (width, height) = self._network("unet", config.device.quantization), self._latent
        plan = self._windows(config)
        kinds = {len(one.frames) for turn in range(plan.num_placements) for one in plan.placement(turn)}
        channels = unet.config["in_channels"] + unet.config["out_channels"] + unet.config["block_out_channels"][0]
        each = sum(kinds) * channels * width * height * self.dtype.itemsize
        return self._unet(window, config.device) + (2 if is_guided(*config.sampling.guidance) else 1) * each

    def _windows(self, config: AnimateConfig) -> WindowPlan:
        windows = config.windows
        return plan_windows(self.frames, length=windows.length, overlap=windows.overlap, blend=windows.blend)

    @property
    def _latent(self) -> tuple[int, int]:
        return self.size[0] // STRIDE, self.size[1] // STRIDE

    def _once(self, *key: Any, count: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = count()
        return self._known[key]

    def _network(self, role: str, weights: str = "plain") -> Any:
        def build() -> nn.Module:
            try:
                with torch.device("meta"):
                    network = builders(self.model, "distribution")[role]()
            except (TypeError, ValueError, LookupError, RuntimeError) as error:
                why = " ".join(str(error).split())[:160]
                raise ModelDamaged(
                    f"{self.model.path}: the config of {role} describes no network that can be built ({why})",
                    hint="compare the config with the one that the weights came with",
                ) from error
            network = nn.Module.to(network.to("meta"), self.dtype)  # diffusers makes some parameters where it wants
            network = network.eval().requires_grad_(False)
            return quantize_weights(network, weights) if role == "unet" else network  # type: ignore[arg-type]

        return self._once("network", role, weights if role == "unet" else "", count=build)

    def _weights(self, role: str, plan: DeviceConfig) -> int:
        """Of which in groups two buffers of the largest block are there."""
        network = self._network(role, plan.quantization)
        if role != "unet" or plan.offload != "group" or self.device.type == "cpu":
            return bytes_of(network)
        blocks = [bytes_of(block) for block in blocks_of(network)]
        return bytes_of(network) - sum(blocks) + 2 * max(blocks)

    def _alive(self, run: Callable[[], object]) -> int:
        with torch.no_grad():
            return alive_bytes(run, on_cpu=self.device.type == "cpu")

    def _noise(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype or self.dtype)

    def _image_encoder(self) -> int:
        encoder = self._network("image_encoder")

        def count() -> int:
            return self._alive(lambda: encoder(pixel_values=self._noise(1, 3, CLIP_SIZE, CLIP_SIZE)))

        return self._once("image encoder", count=count)

    def _vae_encoder(self) -> int:
        vae = self._network("vae")
        picture = self._noise(1, 3, self.size[1], self.size[0])

        def count() -> int:
            alive = self._alive(lambda: vae.encode(picture, return_dict=False))
            if self.dtype == torch.float16 and vae.config["force_upcast"]:
                return 2 * alive + bytes_of(vae)  # all in float32 for that while
            return alive

        return self._once("VAE encoder", count=count)

    def _pose_net(self, window: int) -> int:
        net, (width, height) = self._network("pose_net"), self.size
        pictures = 4 * window * 3 * width * height

        def count() -> int:
            return pictures + self._alive(lambda: net(self._noise(window, 3, height, width)))

        return self._once("PoseNet", window, count=count)

    def _unet(self, window: int, plan: DeviceConfig) -> int:
        """One window's call as ``Engine.denoiser`` makes it, a face given."""
        unet: AnimationUNet = self._network("unet", plan.quantization)
        width, height = self._latent

        def count() -> int:
            unet.ff_chunks = plan.ff_chunks
            channels, tokens = unet.config["block_out_channels"][0], unet.config["cross_attention_dim"]
            context = prepared(unet, self._noise(1, 1, tokens), self._noise(1, unet.id_tokens, tokens))

            def call() -> None:
                sample = self._noise(1, window, unet.config["in_channels"], height, width)
                pose = torch.stack([self._noise(channels, height, width)] * window)
                unet(sample, 1.0, context, self._noise(1, 3), pose)

            return self._alive(call)

        return self._once("UNet", window, plan.ff_chunks, plan.quantization, count=count)

    def _deep(self, config: AnimateConfig, window: int) -> int:
        """Deep features that ``--cache-features`` keeps: of each window and branch that one process answers for."""
        sampling = config.sampling
        if sampling.cache_features == 1:
            return 0
        unet: AnimationUNet = self._network("unet", config.device.quantization)
        width, height = self._latent

        def count() -> int:
            sample = self._noise(1, window, unet.config["in_channels"], height, width)
            tokens = self._noise(1, 1, unet.config["cross_attention_dim"])
            layers = min(sampling.cache_layers, unet.num_up_layers)
            with torch.no_grad():
                deep = unet.forward_caching(sample, 1.0, Context(tokens, None), self._noise(1, 3), layers=layers)[1]
            return deep.numel() * deep.element_size()

        plan = self._windows(config)
        pairs = -(-len(window_branches(plan, sampling.guidance)) // config.device.gpus)
        if sampling.guidance_interval is not None and is_guided(*sampling.guidance):
            pairs = max(pairs, len(plan))  # outside of the interval one process answers for all windows
        return pairs * self._once("deep features", window, sampling.cache_layers, count=count)

    def _vae_decoder(self, chunk: int) -> int:
        width, height = self._latent
        vae = self._network("vae")
        channels, decoder = vae.config["latent_channels"], Decoder(vae, Counter())
        return self._once(
            "VAE decoder",
            chunk,
            count=lambda: self._alive(lambda: decoder.pixels(self._noise(chunk, channels, height, width)).float()),
        )

    def _face(self, chunk: int, mode: str, margin: int) -> int:
        """One chunk forward and back, without the recogniser, which is small beside it."""
        width, height = self._latent
        vae = self._network("vae")
        decoder = FaceDecoder(vae, Counter(), margin=margin)
        side = min(self.size) // _FACE
        box = (0, 0, side - 1, side - 1)

        def step() -> None:
            latents = self._noise(chunk, vae.config["latent_channels"], height, width, dtype=torch.float32)
            variable = latents.requires_grad_(True)
            if mode == "full":
                decoder.pixels(variable).float().mean().backward()
            else:
                frames = range(chunk)
                with decoder.with_recorded_stats(latents, [frames]), torch.enable_grad():
                    decoder.crop(variable, frames, box)[0].float().mean().backward()

        def count() -> int:
            with torch.enable_grad():
                alive = alive_bytes(step, on_cpu=self.device.type == "cpu")
            return 2 * alive if self.dtype == torch.float16 else alive  # the decoder works in float32 then

        return self._once("face", chunk, mode, margin, count=count)


def prepared(unet: AnimationUNet, image: Tensor, face: Tensor) -> Context:
    """``AnimationUNet.prepare`` of a face that is there, without looking at numbers: the ``meta`` device has none."""
    with torch.no_grad():
        layers: dict[nn.Module, PreparedCrossAttention] = dict(unet.prepare(Context(image, None)).layers)
        attentions: dict[str, Any] = dict(unet.spatial_cross_attentions())
        for attn in attentions.values():
            adapter = attn.processor
            layers[attn] = PreparedCrossAttention(
                base=attn.to_v(image), keys=adapter.id_to_k(face), values=adapter.id_to_v(face)
            )
    return Context(image, face, layers)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
